// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// settled says who has what by the rule alone: claims in order of right, each in force unless one in force overlaps it. No two claims
// of the test are of equal age, so what was there before does not matter.
func settled(all map[string][]claim) map[netip.Prefix]string {
	var order []claim
	for _, list := range all {
		order = append(order, list...)
	}
	slices.SortFunc(order, func(a, b claim) int {
		return cmp.Or(first(a.own, b.own), a.created.Compare(b.created), cmp.Compare(a.uid, b.uid))
	})
	held := map[netip.Prefix]string{}
	for _, c := range order {
		if !slices.ContainsFunc(slices.Collect(keys(held)), c.prefix.Overlaps) {
			held[c.prefix] = c.node
		}
	}
	return held
}

func keys(m map[netip.Prefix]string) func(func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for p := range m {
			if !yield(p) {
				return
			}
		}
	}
}

// Every sequence of claims and withdrawals, with prefixes of all lengths inside each other, ends where the rule says, and each node for which
// something changed is named.
func TestClaimsSettleByTheRule(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		c, all := newClaims(), map[string][]claim{}
		for step := range 60 {
			age := rng.IntN(12)
			name := fmt.Sprintf("n%d", age)
			var list []claim
			for family := range 2 {
				if rng.IntN(3) == 0 {
					continue
				}
				base, bits := netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(4)) << 6, byte(rng.IntN(4)) << 6}), 14+rng.IntN(13)
				if family == 1 {
					base, bits = netip.AddrFrom16([16]byte{0xfd, 0, 0, 0, 0, byte(rng.IntN(4)) << 6, byte(rng.IntN(4)) << 6}), 38+rng.IntN(20)
				}
				list = append(list, claim{prefix: netip.PrefixFrom(base, bits).Masked(), node: name, uid: name,
					created: time.Unix(int64(age*7%12), 0), own: name == "n0"})
			}
			before := map[netip.Prefix]string{}
			for p, n := range c.held {
				before[p] = n
			}
			changed := c.set(name, list)
			all[name] = list
			if diff := gocmp.Diff(settled(all), c.held, gocmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Fatalf("round %d step %d: %s claims %v (-want +got):\n%s", round, step, name, list, diff)
			}
			for p, n := range c.held {
				if before[p] != n && !slices.Contains(changed, n) {
					t.Fatalf("round %d step %d: %s got %s and is not named in %v", round, step, n, p, changed)
				}
			}
			for p, n := range before {
				if c.held[p] != n && !slices.Contains(changed, n) {
					t.Fatalf("round %d step %d: %s lost %s and is not named in %v", round, step, n, p, changed)
				}
				if c.held[p] == "" {
					if q, holder := c.holder(p); slices.ContainsFunc(slices.Collect(keys(c.held)), p.Overlaps) != (holder != "") || (holder != "" && !p.Overlaps(q)) {
						t.Fatalf("round %d step %d: holder of %s is %s with %s", round, step, p, holder, q)
					}
				}
			}
		}
	}
}

// Of equal age the one that has a CIDR keeps it.
func TestClaimsOfEqualAge(t *testing.T) {
	c := newClaims()
	p := netip.MustParsePrefix("10.0.0.0/24")
	c.set("b", []claim{{prefix: p, node: "b", uid: "2"}})
	c.set("a", []claim{{prefix: p, node: "a", uid: "1"}})
	if c.held[p] != "b" {
		t.Errorf("%s went to %s", p, c.held[p])
	}
	c.set("b", nil)
	if c.held[p] != "a" {
		t.Errorf("%s is %q's after b is gone", p, c.held[p])
	}
}
