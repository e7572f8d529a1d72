// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/reconcile"
)

// rangeSet is the clients that may use load balancer addresses. It is interned: services with the same prefixes share it. It is complete
// before a service names it, and never changes: other prefixes are another set, and a service goes there by one word.
type rangeSet struct {
	sig     bpf.Signature
	id      bpf.ID                // zero: none yet
	want    []netip.Prefix        // nil while only an agent before this one knew the set
	have    map[netip.Prefix]bool // in the map
	users   int                   // services that name it, or did so until the grace period that still runs
	changes uint32                // number of the last change that let it go
	leaving uint32                // != 0: number of the change that removes it
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// sourceRanges returns the ranges of one family in order, each once. None means everybody, also where the other family has some.
func sourceRanges(s *cluster.Service, family Family) []netip.Prefix {
	var all []netip.Prefix
	for _, r := range s.SourceRanges {
		if familyOf(r.Addr()) == family {
			all = append(all, r.Masked())
		}
	}
	slices.SortFunc(all, comparePrefixes)
	return slices.Compact(all)
}

// rangeDescription is what the signature of a set is made from.
func rangeDescription(prefixes []netip.Prefix) string {
	var b strings.Builder
	b.WriteString("source ranges")
	for _, p := range prefixes {
		b.WriteByte(' ')
		b.WriteString(p.String())
	}
	return b.String()
}

// rangesOf returns the set of these prefixes, which may not be in the maps yet; nil, which is everybody, for none.
func (s *Proxy) rangesOf(prefixes []netip.Prefix) *rangeSet {
	if len(prefixes) == 0 {
		return nil
	}
	sig := bpf.Sign(rangeDescription(prefixes))
	set := s.ranges[sig]
	if set == nil {
		set = &rangeSet{sig: sig, have: map[netip.Prefix]bool{}}
	}
	set.want = prefixes
	return set
}

// complete says whether the map holds all of the set and nothing else under its id.
func (r *rangeSet) complete() bool {
	if r == nil {
		return true
	}
	for _, p := range r.want {
		if !r.have[p] {
			return false
		}
	}
	return len(r.have) == len(r.want)
}

// number returns what a service's word says of the set.
func (r *rangeSet) number() uint32 {
	if r == nil {
		return 0
	}
	return r.id.ID
}

// rangeID reserves an id for a set. Its Undo takes back what the change wrote of the set, too.
func (s *Proxy) rangeID(set *rangeSet) reconcile.Step {
	return reconcile.Step{
		Do: func() (err error) {
			s.ranges[set.sig] = set
			if set.id.ID == 0 {
				set.id, err = s.cfg.IDs.Acquire(bpf.IDSourceRange, rangeDescription(set.want))
			}
			return err
		},
		Undo: func() error {
			if s.ranges[set.sig] != set || set.users > 0 || set.leaving != 0 {
				return nil // somebody has it, or the change that lets it go removes it
			}
			return s.removeRanges(set)
		},
	}
}

// writeRanges makes a set complete. No service names it yet, or an agent before this one left it in disorder.
func (s *Proxy) writeRanges(set *rangeSet) error {
	for _, p := range slices.SortedFunc(maps.Keys(set.have), comparePrefixes) {
		if slices.Contains(set.want, p) {
			continue
		}
		if err := s.cfg.Tables.DeleteSourceRange(set.id.ID, p); err != nil {
			return err
		}
		delete(set.have, p)
	}
	for _, p := range set.want {
		if set.have[p] {
			continue
		}
		if err := s.cfg.Tables.PutSourceRange(set.id.ID, p); err != nil {
			return err
		}
		set.have[p] = true
	}
	return nil
}

// use counts a service that names a set.
func (r *rangeSet) use() {
	if r != nil {
		r.users++
		r.leaving = 0
	}
}

// leave counts a service that names the set no more. When it was the last one, it returns the number of the change that removes the
// set; else 0.
func (r *rangeSet) leave() uint32 {
	r.users--
	return r.retire()
}

func (r *rangeSet) retire() uint32 {
	if r.users > 0 || r.leaving != 0 {
		return 0
	}
	r.changes++
	r.leaving = r.changes
	return r.leaving
}

// clearRanges removes the prefixes of a set that nobody wanted again.
func (s *Proxy) clearRanges(set *rangeSet, seq uint32) error {
	if seq == 0 || set.leaving != seq {
		return nil
	}
	for _, p := range slices.SortedFunc(maps.Keys(set.have), comparePrefixes) {
		if err := s.cfg.Tables.DeleteSourceRange(set.id.ID, p); err != nil {
			return err
		}
		delete(set.have, p)
	}
	return nil
}

// freeRanges gives back the id of a set that nobody wanted again.
func (s *Proxy) freeRanges(set *rangeSet, seq uint32) error {
	if seq == 0 || set.leaving != seq {
		return nil
	}
	// A change that wanted it back, and failed, may have written it again.
	return s.removeRanges(set)
}

// removeRanges removes a set that no program can know.
func (s *Proxy) removeRanges(set *rangeSet) error {
	for _, p := range slices.SortedFunc(maps.Keys(set.have), comparePrefixes) {
		if err := s.cfg.Tables.DeleteSourceRange(set.id.ID, p); err != nil {
			return err
		}
		delete(set.have, p)
	}
	if set.id.ID != 0 {
		if err := s.cfg.IDs.ReleaseSignature(bpf.IDSourceRange, set.sig); err != nil {
			return err
		}
	}
	set.id, set.leaving = bpf.ID{}, 0
	delete(s.ranges, set.sig)
	return nil
}

// releaseRanges ends what a service that is gone for a grace period had of its set.
func (s *Proxy) releaseRanges(p *port) error {
	set := p.ranges
	if set == nil {
		return nil
	}
	if set.users == 1 {
		if err := s.removeRanges(set); err != nil {
			return err
		}
	}
	set.users--
	p.ranges = nil
	return nil
}

// adoptRanges learns the sets in the map, by id. Prefixes under a number that no id explains are removed: a service that still has the
// number lets nobody in until it is changed.
func (s *Proxy) adoptRanges() (map[uint32]*rangeSet, error) {
	ids, err := s.cfg.IDs.List(bpf.IDSourceRange)
	if err != nil {
		return nil, err
	}
	all, err := s.cfg.Tables.SourceRanges()
	if err != nil {
		return nil, err
	}
	s.ranges = map[bpf.Signature]*rangeSet{}
	byID := map[uint32]*rangeSet{}
	for _, in := range ids {
		set := &rangeSet{sig: in.Signature, id: in.ID, have: map[netip.Prefix]bool{}}
		s.ranges[set.sig], byID[set.id.ID] = set, set
	}
	var errs []error
	for _, n := range slices.Sorted(maps.Keys(all)) {
		for _, p := range all[n] {
			if set := byID[n]; set != nil {
				set.have[p] = true
			} else if err := s.cfg.Tables.DeleteSourceRange(n, p); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return byID, errors.Join(errs...)
}

// unwantedRanges lets the sets go that no service of the agent before this one names.
func (s *Proxy) unwantedRanges() {
	var sets []*rangeSet
	for _, set := range s.ranges {
		if set.users == 0 && set.leaving == 0 {
			sets = append(sets, set)
		}
	}
	slices.SortFunc(sets, func(a, b *rangeSet) int { return cmp.Compare(a.id.ID, b.id.ID) })
	for _, set := range sets {
		seq := set.retire()
		// No error: nothing is reserved, added or flipped.
		_ = s.runner.Do(reconcile.Change{
			Name:   fmt.Sprintf("source range set %d", set.id.ID),
			Retire: []func() error{func() error { return s.clearRanges(set, seq) }},
			Free:   []func() error{func() error { return s.freeRanges(set, seq) }},
		})
	}
}
