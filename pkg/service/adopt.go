// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/reconcile"
)

// leftover is a backend element or id of an agent before this one that is in no set in force.
type leftover struct {
	sig   bpf.Signature
	el    bpf.Backend // when live
	live  bool
	flags bpf.BackendFlag
	going bool // a change that removes it is pending
}

// adopt reads what an agent before this one left, at whatever instruction it stopped. It becomes the present state of ports, frontends,
// slots and ClusterIPs, so that only differences are written, and what nobody wants goes the way of everything else.
func (s *Proxy) adopt() error {
	t := s.cfg.Tables
	serviceIDs, err := s.cfg.IDs.List(bpf.IDService)
	if err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	backendIDs, err := s.cfg.IDs.List(bpf.IDBackend)
	if err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	services, err := t.Services()
	if err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	backends, err := t.Backends()
	if err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	frontends, err := t.Frontends()
	if err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	ips, err := t.ClusterIPs()
	if err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	// A program that read a set just before the agent died may still be in slots that no set names any more.
	if err := t.Grace(); err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}

	ranges, err := s.adoptRanges()
	if err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	if err := s.adoptCIDRs(); err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	s.ports, s.frontends, s.ips = map[bpf.Signature]*port{}, map[bpf.FrontendKey]*frontend{}, map[netip.Addr]*clusterIP{}
	byID := map[uint32]*port{}
	for _, in := range serviceIDs {
		p := &port{sig: in.Signature, id: in.ID}
		s.ports[p.sig], byID[p.id.ID] = p, p
	}
	s.leftover = make(map[uint32]*leftover, len(backendIDs))
	for _, in := range backendIDs {
		s.leftover[in.ID.ID] = &leftover{sig: in.Signature, el: bpf.Backend{ID: in.ID.ID, Incarnation: in.Incarnation}}
	}
	for _, b := range backends {
		l := s.leftover[b.ID]
		if l == nil {
			// No id says whose it is, so no port can take it.
			l = &leftover{el: b}
			s.leftover[b.ID] = l
		}
		if l.el.Incarnation == b.Incarnation {
			l.el, l.live, l.flags = b, true, b.Flags
		}
	}
	var sets []adoptedSet
	for _, w := range services {
		p := byID[w.ID]
		if p == nil || p.id.Incarnation != w.Incarnation {
			p = s.strange(w.ID, w.Incarnation)
			byID[w.ID] = p
		}
		p.installed, p.words, p.ranges = true, w, ranges[w.SourceRange]
		p.ranges.use()
		sets = append(sets, adoptedSet{p, &p.cluster, w.Cluster, bpf.BackendCluster}, adoptedSet{p, &p.local, w.Local, bpf.BackendInLocal})
	}
	if err := s.adoptSets(sets); err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	for _, f := range frontends {
		p := byID[f.Service]
		if p == nil {
			p = s.strange(f.Service, 0)
			byID[f.Service] = p
		}
		s.frontends[f.FrontendKey] = &frontend{at: p, class: f.Class}
		p.frontends++
	}
	s.placed = uint32(len(frontends))
	for a, n := range ips {
		s.ips[a] = &clusterIP{written: n}
	}
	if len(services)+len(backendIDs) > 0 {
		s.log.Info("service maps adopted", "services", len(services), "backends", len(backends), "frontends", len(frontends))
	}
	return nil
}

// strange returns a port for a service that no id names: nothing can want it, so it goes.
func (s *Proxy) strange(id, incarnation uint32) *port {
	p := &port{sig: bpf.Sign(fmt.Sprintf("service without id %d", id)), id: bpf.ID{ID: id, Incarnation: incarnation}}
	s.ports[p.sig] = p
	return p
}

// adoptedSet is a set in force, and where its range is to be noted.
type adoptedSet struct {
	port *port
	at   *slotRange
	set  bpf.Set
	flag bpf.BackendFlag
}

// adoptSets learns which backends the sets in force name, and which slots they take. A set that is not as this program would have
// written it is written anew at the first change of its port.
func (s *Proxy) adoptSets(sets []adoptedSet) error {
	slices.SortFunc(sets, func(a, b adoptedSet) int { return int(int64(a.set.Offset) - int64(b.set.Offset)) })
	var taken []slotRange
	var end uint32
	capacity := s.cfg.Tables.SlotCapacity()
	for _, a := range sets {
		if a.set.Length == 0 {
			continue
		}
		if uint64(a.set.Offset)+uint64(a.set.Length) > uint64(capacity) {
			a.port.rewrite = true
			continue
		}
		r := slotRange{a.set.Offset &^ 1, 0}
		r.length = (a.set.Offset + a.set.Length + 1 - r.offset) &^ 1
		if r.offset < end {
			a.port.rewrite = true // shared with another set, which keeps it
		} else {
			*a.at = r
			taken = append(taken, r)
			end = r.offset + r.length
		}
		ids, err := s.cfg.Tables.Slots(a.set.Offset, a.set.Length)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if !s.adoptBackend(a.port, id, a.flag) {
				a.port.rewrite = true
			}
		}
	}
	for _, p := range s.ports {
		slices.SortFunc(p.backends, func(a, b *backend) int { return a.addr.Compare(b.addr) })
	}
	s.space = newSlotSpace(capacity, taken)
	return nil
}

// adoptBackend gives a port a backend that a slot of it names. False when the slot names none of its, or one twice.
func (s *Proxy) adoptBackend(p *port, id uint32, flag bpf.BackendFlag) bool {
	if l := s.leftover[id]; l != nil {
		addr := netip.AddrPortFrom(l.el.Addr, l.el.Port)
		if !l.live || bpf.Sign(backendDescription(p.sig, addr)) != l.sig {
			return false
		}
		p.backends = append(p.backends, &backend{
			addr:  addr,
			id:    bpf.ID{ID: id, Incarnation: l.el.Incarnation},
			flags: l.flags,
			force: l.flags&^(bpf.BackendCluster|bpf.BackendInLocal) | flag,
			live:  true,
			kept:  true,
		})
		p.protocol = l.el.Protocol
		delete(s.leftover, id)
		return true
	}
	for _, b := range p.backends {
		if b.id.ID == id && b.force&flag == 0 {
			b.force |= flag
			return true
		}
	}
	return false
}

// sweepLeftover removes what an agent before this one left and no service wants. What a port wants that could not be changed yet is not
// its own, but must not go.
func (s *Proxy) sweepLeftover() {
	idle := true
	for _, l := range s.leftover {
		idle = idle && l.going
	}
	if idle {
		return
	}
	wanted := map[bpf.Signature]bool{}
	for _, r := range s.records {
		for _, p := range r.ports {
			if s.failedPorts.Get(p.sig) != nil && p.want != nil {
				for _, b := range p.want.Backends {
					wanted[bpf.Sign(backendDescription(p.sig, b.Addr))] = true
				}
			}
		}
	}
	var ids []uint32
	for id, l := range s.leftover {
		if !l.going && !wanted[l.sig] {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		l := s.leftover[id]
		l.going = true
		if l.live && l.flags&bpf.BackendServing != 0 && l.el.Protocol == uint8(cluster.UDP) {
			s.silenced = true
		}
		mine := func() bool { return s.leftover[id] == l }
		_ = s.runner.Do(reconcile.Change{
			Name: fmt.Sprintf("backend %d of an earlier agent", id),
			Settle: []func() error{func() error {
				if !mine() || !l.live || l.flags&departed == 0 {
					return nil
				}
				b := l.el
				b.Flags = l.flags &^ departed
				if err := s.cfg.Tables.PutBackend(b); err != nil {
					return err
				}
				l.flags = b.Flags
				return nil
			}},
			Retire: []func() error{func() error {
				if !mine() {
					return nil
				}
				if err := s.cfg.Tables.DeleteBackend(id); err != nil {
					return err
				}
				l.live, l.flags = false, 0
				return nil
			}},
			Free: []func() error{func() error {
				if !mine() {
					return nil
				}
				// A change that wanted it, and failed, may have written it again.
				if _, live := s.cfg.Tables.Backend(id); live {
					if err := s.cfg.Tables.DeleteBackend(id); err != nil {
						return err
					}
				}
				if err := s.cfg.IDs.ReleaseSignature(bpf.IDBackend, l.sig); err != nil {
					return err
				}
				delete(s.leftover, id)
				return nil
			}},
		})
	}
}
