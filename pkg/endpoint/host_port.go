// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
)

// HostPorts is the table of host ports that the programs read.
type HostPorts interface {
	Put(bpf.HostPort) error
	Delete(bpf.FrontendKey) error
	List() ([]bpf.HostPort, error)
}

// IP protocol numbers of the capability's words.
var protocols = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}

// A record holds its host ports as the programs' table does: one for each family that the pod has, with an address. From the moment that
// the record is known to the moment that it is forgotten nobody else gets them; the table has them for a shorter time than that. So what
// the table has and no record does is nobody's.

// hostPortKey is where clients send to.
func hostPortKey(p cni.HostPort) bpf.FrontendKey {
	return bpf.FrontendKey{Addr: p.Addr, Port: p.Port, Protocol: protocols[p.Protocol]}
}

// hostPort is a host port as the programs see it.
func (e *Endpoint) hostPort(p cni.HostPort) bpf.HostPort {
	return bpf.HostPort{FrontendKey: hostPortKey(p), Endpoint: e.ID, Incarnation: e.Incarnation, To: p.To}
}

// hostPorts returns what a request's host ports are for a pod with these addresses, of which only the family counts, in the order of
// records. What is for a family that the pod lacks is left out.
func hostPorts(wanted []cni.HostPort, addrs []netip.Addr) ([]cni.HostPort, error) {
	var all []cni.HostPort
	for _, w := range wanted {
		if w.Port == 0 || w.To == 0 || protocols[w.Protocol] == 0 {
			return nil, cni.Errorf(cni.CodeDecode, "host port %d to %d, protocol %q: out of range", w.Port, w.To, w.Protocol)
		}
		for _, a := range addrs {
			p := w
			switch {
			case !w.Addr.IsValid() && a.Is4():
				p.Addr = netip.IPv4Unspecified()
			case !w.Addr.IsValid():
				p.Addr = netip.IPv6Unspecified()
			case w.Addr.Is4() != a.Is4():
				continue
			}
			if i := slices.IndexFunc(all, func(o cni.HostPort) bool { return hostPortKey(o) == hostPortKey(p) }); i < 0 {
				all = append(all, p)
			} else if all[i] != p {
				return nil, cni.Errorf(cni.CodeConfig, "host port %s leads to two ports of the container, %d and %d", hostPortKey(p), all[i].To, p.To)
			}
		}
	}
	slices.SortFunc(all, inOrder)
	return all, nil
}

// inOrder is the order of records.
func inOrder(a, b cni.HostPort) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}

// overlap says whether some packet may be for both host ports.
func overlap(a, b cni.HostPort) bool {
	return a.Port == b.Port && a.Protocol == b.Protocol && a.Addr.Is4() == b.Addr.Is4() &&
		(a.Addr == b.Addr || a.Addr.IsUnspecified() || b.Addr.IsUnspecified())
}

// claimant returns the endpoint that has one of these host ports, or one that overlaps it, and which; nil: they are free. The caller has
// the lock.
func (t *Table) claimant(ports []cni.HostPort, but string) (*Endpoint, cni.HostPort) {
	if len(ports) == 0 {
		return nil, cni.HostPort{}
	}
	for _, e := range t.endpoints {
		for _, p := range e.HostPorts {
			if e.Link != but && slices.ContainsFunc(ports, func(o cni.HostPort) bool { return overlap(o, p) }) {
				return e, p
			}
		}
	}
	return nil, cni.HostPort{}
}

// expose enters an endpoint's host ports, after the endpoint itself.
func (t *Table) expose(e *Endpoint) error {
	for _, p := range e.HostPorts {
		if err := t.cfg.HostPorts.Put(e.hostPort(p)); err != nil {
			return cni.Errorf(cni.CodeUnavailable, "%s", cni.Harmless(err.Error()))
		}
	}
	return nil
}

// conceal removes an endpoint's host ports, before the endpoint itself.
func (t *Table) conceal(e *Endpoint) error {
	var errs []error
	for _, p := range e.HostPorts {
		errs = append(errs, t.cfg.HostPorts.Delete(hostPortKey(p)))
	}
	return errors.Join(errs...)
}

// checkHostPorts compares the programs' table with an endpoint's host ports.
func (t *Table) checkHostPorts(e *Endpoint) error {
	if len(e.HostPorts) == 0 {
		return nil
	}
	have, err := t.cfg.HostPorts.List()
	if err != nil {
		return err
	}
	for _, p := range e.HostPorts {
		if !slices.Contains(have, e.hostPort(p)) {
			return fmt.Errorf("host port %s is missing or different in the programs' table", hostPortKey(p))
		}
	}
	return nil
}

// takeHostPorts gives records the host ports that the programs' table says are theirs: the journal that said so was lost, or a release
// that knows no host ports wrote it anew. The caller has the table to itself.
func (t *Table) takeHostPorts() error {
	have, err := t.cfg.HostPorts.List()
	if err != nil {
		return err
	}
	byID := map[bpf.ID]*Endpoint{}
	for _, e := range t.endpoints {
		byID[bpf.ID{ID: e.ID, Incarnation: e.Incarnation}] = e
	}
	for _, b := range have {
		e := byID[bpf.ID{ID: b.Endpoint, Incarnation: b.Incarnation}]
		if e == nil {
			continue
		}
		p := cni.HostPort{Addr: b.Addr, Port: b.Port, To: b.To}
		for name, number := range protocols {
			if number == b.Protocol {
				p.Protocol = name
			}
		}
		if slices.ContainsFunc(e.HostPorts, func(o cni.HostPort) bool { return hostPortKey(o) == b.FrontendKey }) {
			continue
		}
		if other, _ := t.claimant([]cni.HostPort{p}, e.Link); other != nil || p.Protocol == "" {
			continue
		}
		t.log.Warn("host port taken over from the programs' table", "endpoint", e, "hostPort", b.FrontendKey)
		e.HostPorts = append(slices.Clone(e.HostPorts), p)
		slices.SortFunc(e.HostPorts, inOrder)
	}
	return nil
}

// repairHostPorts brings the programs' table to what the records say, and returns how many host ports were missing or different.
func (t *Table) repairHostPorts(ctx context.Context) (repaired int, err error) {
	have, err := t.cfg.HostPorts.List()
	if err != nil {
		return 0, err
	}
	for _, e := range t.List() {
		if !slices.ContainsFunc(e.HostPorts, func(p cni.HostPort) bool { return !slices.Contains(have, e.hostPort(p)) }) {
			continue
		}
		n, e := t.restoreHostPorts(ctx, e.Link)
		repaired, err = repaired+n, errors.Join(err, e)
	}
	// A host port is claimed under the lock and entered after that: what nobody has now, nobody enters meanwhile.
	t.mu.Lock()
	defer t.mu.Unlock()
	claimed := map[bpf.FrontendKey]bool{}
	for _, e := range t.endpoints {
		for _, p := range e.HostPorts {
			claimed[hostPortKey(p)] = true
		}
	}
	for _, b := range have {
		if !claimed[b.FrontendKey] {
			err = errors.Join(err, t.cfg.HostPorts.Delete(b.FrontendKey))
		}
	}
	return repaired, err
}

// restoreHostPorts enters those of an endpoint's host ports that are missing or different, unless a verb has removed it meanwhile.
func (t *Table) restoreHostPorts(ctx context.Context, name string) (restored int, err error) {
	release, err := t.lock(ctx, name)
	if err != nil {
		return 0, err
	}
	defer release()
	e, ok := t.get(name)
	if !ok || !e.Complete {
		return 0, nil
	}
	have, err := t.cfg.HostPorts.List()
	if err != nil {
		return 0, err
	}
	for _, p := range e.HostPorts {
		if slices.Contains(have, e.hostPort(p)) {
			continue
		}
		if err := t.cfg.HostPorts.Put(e.hostPort(p)); err != nil {
			return restored, err
		}
		restored++
	}
	return restored, nil
}
