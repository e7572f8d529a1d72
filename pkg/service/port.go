// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"slices"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/reconcile"
)

// port is a service as the maps have it, and as it should be.
type port struct {
	sig      bpf.Signature
	key      Key // zero while only an agent before this one knew the service
	protocol uint8
	record   *record // whose port it was last
	want     *Port   // nil: it should go

	id        bpf.ID      // zero: none yet
	installed bool        // the service is complete in the maps
	words     bpf.Service // in force
	ranges    *rangeSet   // that words name; nil: everybody
	cluster   slotRange   // of words
	local     slotRange
	backends  []*backend // in order of address and port, those included that are about to go
	rewrite   bool       // the slots do not hold what backends say: an agent before this one left it so

	frontends int    // how many lead here in the map
	changes   uint32 // number of the last change
	leaving   uint32 // != 0: number of the change that retires the service
	held      string // why the maps do not say what is wanted, though nothing failed
}

// apiServer is the Service through which everything, perhaps this agent too, reaches the API server. It never loses its last backend:
// who cannot reach the API server cannot learn of the next one.
var apiServer = cluster.Key{Namespace: "default", Name: "kubernetes"}

// portOf returns the port with a key, a new one when there is none.
func (s *Proxy) portOf(k Key) *port {
	sig := bpf.Sign(k.description())
	p := s.ports[sig]
	if p == nil {
		p = &port{sig: sig}
		s.ports[sig] = p
	}
	p.key, p.protocol = k, uint8(k.Protocol)
	return p
}

// name returns what errors call the port.
func (p *port) name() string {
	if p.key.Name == "" {
		return fmt.Sprintf("service %d of an earlier agent", p.id.ID)
	}
	return "service " + p.key.String()
}

// ready says whether frontends may be led to the port: it is complete and not on its way out. One that is wanted again but could not be
// changed yet is still on its way out, and one that an agent before this one left in disorder is not complete before it is changed.
func (p *port) ready() bool { return p.installed && p.leaving == 0 && !p.rewrite }

// plan is what differs between a port in the maps and as it is wanted.
type plan struct {
	next    []*backend        // what the maps hold afterwards
	force   []bpf.BackendFlag // their flags then
	fresh   []*backend        // of next: not in the maps before
	other   []int             // of next, by index: the element changes
	left    []*backend        // of next: leaving now
	cluster bool              // the cluster set changes
	local   bool
}

func (pl *plan) add(b *backend, force bpf.BackendFlag, changed bool) {
	if changed {
		pl.other = append(pl.other, len(pl.next))
	}
	pl.next = append(pl.next, b)
	pl.force = append(pl.force, force)
	pl.cluster = pl.cluster || (b.force^force)&bpf.BackendCluster != 0
	pl.local = pl.local || (b.force^force)&bpf.BackendInLocal != 0
}

// compare returns the plan that leads from a port's backends to the wanted ones. Both are in order.
func (p *port) compare(want []Backend) plan {
	n := max(len(want), len(p.backends))
	pl := plan{cluster: p.rewrite, local: p.rewrite, next: make([]*backend, 0, n), force: make([]bpf.BackendFlag, 0, n)}
	have := p.backends
	for len(have)+len(want) > 0 {
		order := -1
		if len(have) == 0 {
			order = 1
		} else if len(want) > 0 {
			order = have[0].addr.Compare(want[0].Addr)
		}
		switch {
		case order > 0:
			b := &backend{addr: want[0].Addr}
			pl.fresh = append(pl.fresh, b)
			pl.add(b, want[0].Flags, true)
			want = want[1:]
		case order == 0:
			b, f := have[0], want[0].Flags
			pl.add(b, f, b.flags != f || b.force != f || !b.live || b.gone != 0)
			have, want = have[1:], want[1:]
		case have[0].gone == 0:
			pl.left = append(pl.left, have[0])
			pl.add(have[0], have[0].force&^departed, true)
			have = have[1:]
		default:
			pl.add(have[0], have[0].force, false)
			have = have[1:]
		}
	}
	return pl
}

// hold keeps the backends of the API server's Service when none of the wanted ones could be chosen.
func (p *port) hold(want *Port) []Backend {
	p.held = ""
	inCluster := func(b Backend) bool { return b.Flags&bpf.BackendCluster != 0 }
	if p.key.Key != apiServer || !p.installed || slices.ContainsFunc(want.Backends, inCluster) {
		return want.Backends
	}
	var kept []Backend
	for _, b := range p.backends {
		if b.force&bpf.BackendCluster != 0 {
			kept = append(kept, Backend{b.addr, b.force})
		}
	}
	if len(kept) == 0 {
		return want.Backends
	}
	p.held = "no endpoint of the API server is left; the last ones stay"
	return kept
}

// change brings a port to what is wanted. An error means that what programs see is as before.
func (s *Proxy) change(p *port) error {
	want := p.want
	pl := p.compare(p.hold(want))
	next := p.words
	ranges := s.rangesOf(want.SourceRanges)
	next.Flags, next.AffinitySeconds, next.SourceRange = want.Flags, want.AffinitySeconds, ranges.number()
	// What an empty set answers is part of the set.
	pl.cluster = pl.cluster || !p.installed || p.words.Cluster.Length == 0 && p.words.Cluster.Verdict != want.Cluster
	pl.local = pl.local || !p.installed || p.words.Local.Length == 0 && p.words.Local.Verdict != want.Local
	c := reconcile.Change{Name: p.name(), Reserve: []reconcile.Step{s.frontendRoom(p)}}
	if p.installed && p.leaving == 0 && !pl.cluster && !pl.local && next == p.words && len(pl.other) == 0 && ranges == p.ranges && ranges.complete() {
		return s.runner.Do(c) // room for what it claims anew is all there is to take
	}
	var inCluster, inLocal slotRange
	if ranges != nil {
		c.Reserve = append(c.Reserve, s.rangeID(ranges))
		c.Add = append(c.Add, reconcile.Step{Do: func() error { return s.writeRanges(ranges) }})
	}
	c.Reserve = append(c.Reserve, s.serviceID(p), s.backendIDs(p, pl.fresh))
	c.Add = append(c.Add, s.addBackends(p, pl))
	if pl.cluster {
		reserve, write := s.addSet(pl, bpf.BackendCluster, want.Cluster, &inCluster, &next.Cluster)
		c.Reserve, c.Add = append(c.Reserve, reserve), append(c.Add, write)
	}
	if pl.local {
		reserve, write := s.addSet(pl, bpf.BackendInLocal, want.Local, &inLocal, &next.Local)
		c.Reserve, c.Add = append(c.Reserve, reserve), append(c.Add, write)
	}
	flip := func() error {
		next.ID, next.Incarnation, next.SourceRange = p.id.ID, p.id.Incarnation, ranges.number()
		if p.installed && next == p.words {
			return nil // only flags of backends differ
		}
		return s.cfg.Tables.Flip(p.id.ID, next)
	}
	if !p.installed {
		// No frontend leads here yet: what makes the service visible is each frontend's own word, later.
		c.Add = append(c.Add, reconcile.Step{Do: flip, Undo: func() error { return s.unwrite(p) }})
		flip = func() error { return nil }
	}
	p.changes++
	seq := p.changes
	var oldCluster, oldLocal slotRange
	oldRanges, oldRangesSeq := p.ranges, uint32(0)
	c.Flip = func() error {
		if err := flip(); err != nil {
			return err
		}
		if pl.cluster {
			oldCluster, p.cluster = p.cluster, inCluster
		}
		if pl.local {
			oldLocal, p.local = p.local, inLocal
		}
		if ranges != oldRanges {
			ranges.use()
			if oldRanges != nil {
				oldRangesSeq = oldRanges.leave()
			}
			p.ranges = ranges
		}
		p.installed, p.rewrite, p.leaving, p.words, p.backends = true, false, 0, next, pl.next
		for _, b := range pl.left {
			b.gone = seq
		}
		for _, i := range pl.other {
			b := pl.next[i]
			b.force = pl.force[i]
			if b.gone != seq {
				b.gone, b.kept = 0, true
				delete(s.leftover, b.id.ID)
			}
		}
		return nil
	}
	touched := make([]*backend, 0, len(pl.other))
	for _, i := range pl.other {
		touched = append(touched, pl.next[i])
	}
	c.Settle = []func() error{func() error { return s.rightAll(p, touched) }}
	if p.cluster.length > 0 && pl.cluster || p.local.length > 0 && pl.local {
		c.Retire = append(c.Retire, func() error {
			s.space.give(oldCluster)
			s.space.give(oldLocal)
			return nil
		})
	}
	if oldRanges != nil && ranges != oldRanges {
		c.Retire = append(c.Retire, func() error { return s.clearRanges(oldRanges, oldRangesSeq) })
		c.Free = append(c.Free, func() error { return s.freeRanges(oldRanges, oldRangesSeq) })
	}
	if len(pl.left) > 0 {
		c.Retire = append(c.Retire, func() error { return s.clearBackends(pl.left, seq) })
		c.Free = append(c.Free, func() error { return s.freeBackends(p.sig, pl.left, seq) })
	}
	if err := s.runner.Do(c); err != nil {
		return err
	}
	s.stats.Changes++
	return nil
}

// addSet returns the steps that reserve slots for one of the two sets and write its backends there; words is what then names it.
func (s *Proxy) addSet(pl plan, flag bpf.BackendFlag, verdict bpf.ServiceVerdict, r *slotRange, words *bpf.Set) (reserve, write reconcile.Step) {
	n := 0
	for _, f := range pl.force {
		if f&flag != 0 {
			n++
		}
	}
	reserve = reconcile.Step{
		Do: func() (err error) {
			if n > 0 {
				*r, err = s.space.take(uint32(n))
			}
			return err
		},
		Undo: func() error {
			s.space.give(*r)
			*r = slotRange{}
			return nil
		},
	}
	write = reconcile.Step{Do: func() error {
		if n == 0 {
			*words = bpf.Set{Verdict: verdict}
			return nil
		}
		*words = bpf.Set{Offset: r.offset, Length: uint32(n)}
		ids := make([]uint32, 0, n)
		for i, b := range pl.next {
			if pl.force[i]&flag != 0 {
				ids = append(ids, b.id.ID)
			}
		}
		return s.cfg.Tables.WriteSlots(r.offset, ids)
	}}
	return reserve, write
}

// unwrite clears a service that was written and that no frontend ever led to. It comes before slots and backends are given back, so that
// no agent finds a service that names those of others.
func (s *Proxy) unwrite(p *port) error {
	if p.installed || p.id.ID == 0 {
		return nil
	}
	return s.cfg.Tables.DeleteService(p.id.ID)
}

// serviceID reserves an id for a port that has none.
func (s *Proxy) serviceID(p *port) reconcile.Step {
	return reconcile.Step{
		Do: func() (err error) {
			if p.id.ID == 0 {
				p.id, err = s.cfg.IDs.Acquire(bpf.IDService, p.key.description())
			}
			return err
		},
		Undo: func() error {
			if p.installed || p.id.ID == 0 {
				return nil
			}
			if err := s.unwrite(p); err != nil {
				return err
			}
			if p.leaving != 0 {
				return nil // the change that retires it gives the id back
			}
			if err := s.cfg.IDs.ReleaseSignature(bpf.IDService, p.sig); err != nil {
				return err
			}
			p.id = bpf.ID{}
			s.forget(p)
			return nil
		},
	}
}

// forget drops a port that nobody wants and that has nothing in the maps.
func (s *Proxy) forget(p *port) {
	if p.want == nil && p.id.ID == 0 && len(p.backends) == 0 && p.frontends == 0 {
		delete(s.ports, p.sig)
	}
}

// retire takes a service out of the maps that nobody wants and no frontend leads to.
func (s *Proxy) retire(p *port) {
	if p.leaving != 0 {
		return
	}
	if p.id.ID == 0 && len(p.backends) == 0 {
		s.forget(p)
		return
	}
	p.changes++
	seq := p.changes
	p.leaving, p.held = seq, ""
	p.rewrite = true // should it be wanted again, its words say more than its backends
	var left []*backend
	for _, b := range p.backends {
		b.force &^= departed
		if b.gone == 0 {
			b.gone = seq
			left = append(left, b)
		}
	}
	// No error: nothing is reserved, added or flipped.
	_ = s.runner.Do(reconcile.Change{
		Name:   p.name(),
		Settle: []func() error{func() error { return s.rightAll(p, left) }},
		Retire: []func() error{
			func() error { return s.clearService(p, seq) },
			func() error { return s.clearBackends(left, seq) },
		},
		Free: []func() error{
			func() error { return s.freeBackends(p.sig, left, seq) },
			func() error { return s.freeService(p, seq) },
		},
	})
}

// clearService ends the life of a service that is not wanted again.
func (s *Proxy) clearService(p *port, seq uint32) error {
	if p.leaving != seq {
		return nil
	}
	if err := s.cfg.Tables.DeleteService(p.id.ID); err != nil {
		return err
	}
	s.space.give(p.cluster)
	s.space.give(p.local)
	p.installed, p.rewrite, p.words, p.cluster, p.local = false, false, bpf.Service{}, slotRange{}, slotRange{}
	return nil
}

// freeService gives back the id of a service that is not wanted again.
func (s *Proxy) freeService(p *port, seq uint32) error {
	if p.leaving != seq {
		return nil
	}
	// A change that wanted it back, and failed, may have written it again.
	if err := s.cfg.Tables.DeleteService(p.id.ID); err != nil {
		return err
	}
	if err := s.releaseRanges(p); err != nil {
		return err
	}
	if err := s.cfg.IDs.ReleaseSignature(bpf.IDService, p.sig); err != nil {
		return err
	}
	p.id, p.leaving = bpf.ID{}, 0
	s.forget(p)
	return nil
}
