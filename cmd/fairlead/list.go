// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/pkg/query"
)

// printDrops shows what happened at least once, most frequent first; -o json has the reasons that never did as well.
func printDrops(out io.Writer, d query.Drops) error {
	t := newTable(out)
	t.row("REASON", "COUNT")
	slices.SortStableFunc(d.Drops, func(a, b query.Drop) int { return cmp.Compare(b.Count, a.Count) })
	for _, drop := range d.Drops {
		if drop.Count > 0 {
			t.row(drop.Reason, drop.Count)
		}
	}
	t.row("")
	t.row("EVENT", "COUNT")
	for _, c := range d.Counters {
		t.row(c.Name, c.Count)
	}
	return t.flush()
}

func printServices(out io.Writer, s query.Services) error {
	t := newTable(out)
	t.row("NAMESPACE", "NAME", "PORT", "PROTO", "ID", "FRONTENDS", "BACKENDS", "LOCAL", "")
	for _, v := range s.Services {
		frontends := make([]string, 0, len(v.Frontends))
		for _, f := range v.Frontends {
			frontends = append(frontends, f.Class+" "+f.Address)
		}
		t.row(v.Namespace, v.Name, none(v.Port), v.Protocol, v.ID, none(strings.Join(frontends, ", ")),
			few(v.Cluster), len(v.Local), strings.Join(v.Conditions, "; "))
	}
	return t.flush()
}

// few shows the first backends and how many more there are: a Service may have thousands.
func few(backends []string) string {
	const shown = 3
	if len(backends) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(backends[:shown], ", "), len(backends)-shown)
	}
	return none(strings.Join(backends, ", "))
}

func printEndpoints(out io.Writer, e query.Endpoints) error {
	t := newTable(out)
	t.row("ID", "NAMESPACE", "POD", "IPS", "LINK", "INTERFACE", "STATE", "CONTAINER")
	for _, v := range e.Endpoints {
		t.row(v.ID, none(v.Namespace), none(v.Pod), strings.Join(v.IPs, ","), v.Link, v.Interface, v.State, v.Container)
	}
	return t.flush()
}

func printPeers(out io.Writer, p query.Peers) error {
	t := newTable(out)
	t.row("ID", "NODE", "IP", "POD CIDRS", "MODE", "MTU")
	for _, v := range p.Peers {
		mtu := "own"
		if v.MTU > 0 {
			mtu = fmt.Sprint(v.MTU)
		}
		t.row(v.ID, v.Name, v.IP, strings.Join(v.PodCIDRs, ","), v.Mode, mtu)
	}
	return t.flush()
}
