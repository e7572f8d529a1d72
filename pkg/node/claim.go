// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// claim says that a Node object names a pod CIDR.
type claim struct {
	prefix  netip.Prefix
	node    string
	uid     string
	created time.Time
	own     bool
}

// claims holds every claim and decides who has what: prefixes that are in force never overlap. This node always keeps its own (its
// pods live there); among others the older Node object wins, at equal age the one that has it already, then the smaller UID.
type claims struct {
	sorted []claim                 // by prefix, so that what lies inside a prefix is one run
	of     map[string][]claim      // by node
	count  map[netip.Prefix]int    // claims of exactly this prefix
	held   map[netip.Prefix]string // prefixes in force -> node
	moved  map[netip.Prefix]bool   // came into force or went since somebody cleared this
}

func newClaims() *claims {
	return &claims{
		of: map[string][]claim{}, count: map[netip.Prefix]int{}, held: map[netip.Prefix]string{}, moved: map[netip.Prefix]bool{},
	}
}

// set replaces the claims of a node and returns the nodes for which something in force changed.
func (c *claims) set(node string, now []claim) (changed []string) {
	var touched []netip.Prefix
	for _, old := range c.of[node] {
		if slices.Contains(now, old) {
			continue
		}
		if at, ok := slices.BinarySearchFunc(c.sorted, old, compareClaims); ok {
			c.sorted = slices.Delete(c.sorted, at, at+1)
			if c.count[old.prefix]--; c.count[old.prefix] == 0 {
				delete(c.count, old.prefix)
			}
		}
		touched = append(touched, old.prefix)
	}
	for _, n := range now {
		if slices.Contains(c.of[node], n) {
			continue
		}
		at, _ := slices.BinarySearchFunc(c.sorted, n, compareClaims)
		c.sorted = slices.Insert(c.sorted, at, n)
		c.count[n.prefix]++
		touched = append(touched, n.prefix)
	}
	c.of[node] = now
	if len(now) == 0 {
		delete(c.of, node)
	}
	for _, p := range touched {
		changed = append(changed, c.decide(p)...)
	}
	slices.Sort(changed)
	return slices.Compact(changed)
}

// decide settles again everything that has to do with a prefix: all claims inside the widest claim around it.
func (c *claims) decide(p netip.Prefix) (changed []string) {
	before := map[netip.Prefix]string{}
	if node := c.held[p]; node != "" {
		before[p] = node // its claim may be gone
	}
	for bits := range p.Bits() {
		if wider, err := p.Addr().Prefix(bits); err == nil && c.count[wider] > 0 {
			p = wider
			break
		}
	}
	inside := slices.Clone(c.inside(p))
	for _, n := range inside {
		if node := c.held[n.prefix]; node != "" {
			before[n.prefix] = node
		}
	}
	slices.SortFunc(inside, func(a, b claim) int {
		return cmp.Or(first(a.own, b.own), a.created.Compare(b.created), first(before[a.prefix] == a.node, before[b.prefix] == b.node),
			cmp.Compare(a.uid, b.uid), cmp.Compare(a.node, b.node))
	})
	after := map[netip.Prefix]string{}
	for _, n := range inside {
		if !overlaps(after, n.prefix) {
			after[n.prefix] = n.node
		}
	}
	for q, node := range before {
		if after[q] != node {
			delete(c.held, q)
			c.moved[q] = true
			changed = append(changed, node)
		}
	}
	for q, node := range after {
		if before[q] != node {
			c.held[q] = node
			c.moved[q] = true
			changed = append(changed, node)
		}
	}
	return changed
}

// holder returns who has the prefix in force that overlaps p.
func (c *claims) holder(p netip.Prefix) (held netip.Prefix, node string) {
	for bits := range p.Bits() + 1 {
		if q, err := p.Addr().Prefix(bits); err == nil && c.held[q] != "" {
			return q, c.held[q]
		}
	}
	for _, n := range c.inside(p) {
		if c.held[n.prefix] == n.node {
			return n.prefix, n.node
		}
	}
	return netip.Prefix{}, ""
}

// inside returns the claims of a prefix and of all inside it; the slice is the index's own.
func (c *claims) inside(p netip.Prefix) []claim {
	from, _ := slices.BinarySearchFunc(c.sorted, p, func(n claim, p netip.Prefix) int {
		if n.prefix.Addr() == p.Addr() {
			return cmp.Compare(n.prefix.Bits(), p.Bits())
		}
		return n.prefix.Addr().Compare(p.Addr())
	})
	to := from
	for to < len(c.sorted) && p.Contains(c.sorted[to].prefix.Addr()) {
		to++
	}
	return c.sorted[from:to]
}

func compareClaims(a, b claim) int {
	return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), cmp.Compare(a.node, b.node))
}

func overlaps(set map[netip.Prefix]string, p netip.Prefix) bool {
	for bits := range p.Bits() + 1 {
		if q, err := p.Addr().Prefix(bits); err == nil && set[q] != "" {
			return true
		}
	}
	for q := range set {
		if p.Bits() < q.Bits() && p.Contains(q.Addr()) {
			return true
		}
	}
	return false
}

// first sorts true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
