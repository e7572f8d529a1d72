// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/fairlead/fairlead/pkg/query"
)

func printStatus(out io.Writer, s query.Status) error {
	t := newTable(out)
	ready := "ready"
	if !s.Ready {
		ready = "not ready"
	}
	t.row("Agent", fmt.Sprintf("%s, %s, pid %d, started %s", ready, s.Agent.Version, s.Agent.PID, s.Agent.Started.Local().Format(time.DateTime)))
	t.row("Source", s.Agent.Source)
	t.row("Node", s.Node.Name+" "+strings.Join(s.Node.IPs, " "))
	socket := "at the system call"
	if !s.Node.SocketLB {
		socket = "in packets"
	}
	t.row("Pods", fmt.Sprintf("%s, MTU %d, routing %s", none(strings.Join(s.Node.PodCIDRs, " ")), s.Node.MTU, s.Node.RoutingMode))
	t.row("Holds", fmt.Sprintf("%d endpoints, %d peers, %d services, %d backends; backends chosen %s",
		s.Endpoints, s.Peers, s.Services, s.Backends, socket))
	for _, g := range s.Gates {
		state := "open"
		if !g.Open {
			state = "closed, waiting for " + strings.Join(g.Waiting, ", ")
		}
		t.row("Gate "+g.Name, state)
	}
	if err := t.flush(); err != nil {
		return err
	}

	if len(s.Pools) > 0 {
		fmt.Fprintln(out)
		t = newTable(out)
		t.row("POD CIDR", "USED", "SIZE", "COOLING")
		for _, p := range s.Pools {
			t.row(p.CIDR, p.Used, p.Size, p.Cooling)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if len(s.Maps) > 0 {
		fmt.Fprintln(out)
		t = newTable(out)
		t.row("MAP", "USED", "CAPACITY", "FULL", "FAILED")
		for _, m := range s.Maps {
			full := "-"
			if m.Capacity > 0 {
				full = fmt.Sprintf("%.1f%%", 100*float64(m.Used)/float64(m.Capacity))
			}
			t.row(m.Name, m.Used, m.Capacity, full, m.Failed)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if len(s.Conditions) > 0 {
		fmt.Fprintln(out)
		t = newTable(out)
		t.row("WRONG NOW", "OBJECT", "MESSAGE")
		for _, c := range s.Conditions {
			t.row(c.Component, none(c.Object), c.Message)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if len(s.Errors) > 0 {
		fmt.Fprintln(out)
		t = newTable(out)
		t.row("LAST ERRORS", "LEVEL", "MESSAGE")
		for _, e := range s.Errors {
			t.row(e.Time.Local().Format(time.DateTime), e.Level, e.Message)
		}
		return t.flush()
	}
	return nil
}
