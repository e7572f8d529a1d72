// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

// openTest returns a connection to a fresh namespace, and the library's own for what others do there.
func openTest(t *testing.T) (*Conn, *nftables.Conn) {
	t.Helper()
	ns := sandbox.NewNamespace(t)
	other, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	return New(ns.FD()), other
}

func prefixes(s ...string) []netip.Prefix {
	list := []netip.Prefix{}
	for _, p := range s {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

func testTable(own, pods []netip.Prefix, keep bool) Table {
	a := Set{Name: "own", Prefixes: own}
	b := Set{Name: "pods", IPv6: true, Prefixes: pods, Keep: keep}
	return Table{Name: "fairlead", Sets: []Set{a, b}, Chains: []Chain{{Name: "out", Hook: Postrouting, Rules: []Rule{
		{Comment: "one", Parts: []Part{SourceIn(a), NotOut("fairlead0"), NotOut("fl*"), Masquerade()}},
		{Comment: "two", Parts: []Part{DestinationNotIn(b), Masquerade()}},
	}}}}
}

func mustEnsure(t *testing.T, c *Conn, table Table, want bool) {
	t.Helper()
	changed, err := c.Ensure(table)
	if err != nil {
		t.Fatal(err)
	}
	if changed != want {
		t.Errorf("changed %t, want %t", changed, want)
	}
}

func elements(t *testing.T, c *Conn, s Set) []string {
	t.Helper()
	list, ok, err := c.Elements("fairlead", s)
	if err != nil || !ok {
		t.Fatalf("elements of %s: %t, %v", s.Name, ok, err)
	}
	text := []string{}
	for _, p := range list {
		text = append(text, p.String())
	}
	return text
}

func TestEnsureIsExactAndIdempotent(t *testing.T) {
	c, other := openTest(t)
	foreign := other.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet})
	if err := errors.Join(other.AddSet(&nftables.Set{Table: foreign, Name: "own", KeyType: nftables.TypeIPAddr}, nil), other.Flush()); err != nil {
		t.Fatal(err)
	}
	first := testTable(prefixes("10.0.0.0/24", "10.0.1.0/24", "255.255.255.0/24", "0.0.0.0/8"), prefixes("fd00::/64", "fd00:0:0:1::/64", "ffff::/16"), false)
	mustEnsure(t, c, first, true)
	mustEnsure(t, c, first, false)
	if diff := cmp.Diff([]string{"0.0.0.0/8", "10.0.0.0/24", "10.0.1.0/24", "255.255.255.0/24"}, elements(t, c, first.Sets[0])); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"fd00::/64", "fd00:0:0:1::/64", "ffff::/16"}, elements(t, c, first.Sets[1])); diff != "" {
		t.Error(diff)
	}

	// Sets change alone; the rules and their counters stay.
	mustEnsure(t, c, testTable(prefixes("10.0.1.0/24", "10.0.2.0/23"), prefixes("fd00::/64"), false), true)
	if diff := cmp.Diff([]string{"10.0.1.0/24", "10.0.2.0/23"}, elements(t, c, first.Sets[0])); diff != "" {
		t.Error(diff)
	}
	// What is kept is not touched, also when the whole table is made anew.
	kept := testTable(prefixes("10.0.1.0/24"), prefixes("fd09::/64"), true)
	mustEnsure(t, c, kept, true)
	more := testTable(prefixes("10.0.1.0/24"), nil, true)
	more.Chains[0].Rules = append(more.Chains[0].Rules, Rule{Comment: "three", Parts: []Part{NotOut("eth0"), Masquerade()}})
	mustEnsure(t, c, more, true)
	if diff := cmp.Diff([]string{"fd00::/64"}, elements(t, c, first.Sets[1])); diff != "" {
		t.Error(diff)
	}

	if err := c.Delete("fairlead"); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete("fairlead"); err != nil {
		t.Errorf("delete again: %v", err)
	}
	if _, ok, err := c.Elements("fairlead", first.Sets[0]); ok || err != nil {
		t.Errorf("set is still there: %t, %v", ok, err)
	}
	tables, err := other.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil || len(tables) != 1 || tables[0].Name != "theirs" {
		t.Errorf("tables %v, %v, want theirs alone", tables, err)
	}
}

// Whatever somebody else does to the table, Ensure puts it right.
func TestEnsureUndoesForeignChanges(t *testing.T) {
	table := &nftables.Table{Name: "fairlead", Family: nftables.TableFamilyINet}
	for name, damage := range map[string]func(nl *nftables.Conn) error{
		"rule deleted": func(nl *nftables.Conn) error {
			rules, err := nl.GetRules(table, &nftables.Chain{Name: "out", Table: table})
			if err != nil {
				return err
			}
			return nl.DelRule(rules[0])
		},
		"rule added": func(nl *nftables.Conn) error {
			nl.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: "out", Table: table}, Exprs: []expr.Any{&expr.Counter{}}})
			return nil
		},
		"chain added": func(nl *nftables.Conn) error {
			nl.AddChain(&nftables.Chain{Table: table, Name: "extra"})
			return nil
		},
		"rules flushed": func(nl *nftables.Conn) error {
			nl.FlushTable(table)
			return nil
		},
		"set flushed": func(nl *nftables.Conn) error {
			nl.FlushSet(&nftables.Set{Table: table, Name: "own"})
			return nil
		},
		"element added": func(nl *nftables.Conn) error {
			s := Set{Name: "own"}
			return nl.SetAddElements(s.nft(table, 0), elementsOf(prefixes("172.16.0.0/12")))
		},
		"table deleted": func(nl *nftables.Conn) error {
			nl.DelTable(table)
			return nil
		},
		"set of another type": func(nl *nftables.Conn) error {
			nl.DelTable(table)
			nl.AddTable(table)
			return nl.AddSet(&nftables.Set{Table: table, Name: "own", ID: 1, KeyType: nftables.TypeInetService}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, other := openTest(t)
			want := testTable(prefixes("10.0.0.0/24"), prefixes("fd00::/64"), false)
			mustEnsure(t, c, want, true)
			if err := errors.Join(damage(other), other.Flush()); err != nil {
				t.Fatal(err)
			}
			mustEnsure(t, c, want, true)
			mustEnsure(t, c, want, false)
		})
	}
}

func TestUpdateIsOneTransaction(t *testing.T) {
	c, _ := openTest(t)
	table := testTable(prefixes("10.0.0.0/24", "10.0.1.0/24"), nil, false)
	own := table.Sets[0]
	mustEnsure(t, c, table, true)
	if err := c.Update("fairlead", own, prefixes("10.0.2.0/24", "10.0.0.0/25"), prefixes("10.0.0.0/24")); err != nil {
		t.Fatal(err)
	}
	want := []string{"10.0.0.0/25", "10.0.1.0/24", "10.0.2.0/24"}
	if diff := cmp.Diff(want, elements(t, c, own)); diff != "" {
		t.Error(diff)
	}
	for name, change := range map[string][2][]netip.Prefix{
		"absent":  {prefixes("10.9.0.0/24"), prefixes("10.8.0.0/24")},
		"overlap": {prefixes("10.7.0.0/24", "10.0.1.0/25"), prefixes("10.0.2.0/24")},
	} {
		if err := c.Update("fairlead", own, change[0], change[1]); err == nil {
			t.Errorf("%s: no error", name)
		}
		if diff := cmp.Diff(want, elements(t, c, own)); diff != "" {
			t.Errorf("%s: half a change:\n%s", name, diff)
		}
	}
	if err := c.Update("none", own, prefixes("10.0.0.0/24"), nil); !errors.Is(err, unix.ENOENT) {
		t.Errorf("error %v, want %v", err, unix.ENOENT)
	}
}

// A set holds the pod CIDRs of the largest cluster, in one transaction.
func TestLargeSet(t *testing.T) {
	c, _ := openTest(t)
	var own, pods []netip.Prefix
	for i := range 10000 {
		own = append(own, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
		pods = append(pods, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 0, 0, 0, byte(i >> 8), byte(i)}), 64))
	}
	table := testTable(own, pods, false)
	mustEnsure(t, c, table, true)
	mustEnsure(t, c, table, false)
	if n := len(elements(t, c, table.Sets[1])); n != len(pods) {
		t.Errorf("%d elements, want %d", n, len(pods))
	}
}

func TestElementsRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		var list []netip.Prefix
		for range rng.IntN(30) {
			b := [4]byte{byte(rng.IntN(4)) << 6, byte(rng.IntN(3)) * 127, byte(rng.IntN(256)), 0}
			p := netip.PrefixFrom(netip.AddrFrom4(b), 1+rng.IntN(32)).Masked()
			if !slices.ContainsFunc(list, p.Overlaps) {
				list = append(list, p)
			}
		}
		slices.SortFunc(list, netip.Prefix.Compare)
		if got := prefixesOf(elementsOf(list)); fmt.Sprint(got) != fmt.Sprint(list) {
			t.Fatalf("%v came back as %v", list, got)
		}
	}
	// What is no prefix comes back as the prefixes that make it up.
	odd := []nftables.SetElement{{Key: []byte{10, 0, 0, 1}}, {Key: []byte{10, 0, 0, 4}, IntervalEnd: true}}
	if got := fmt.Sprint(prefixesOf(odd)); got != "[10.0.0.1/32 10.0.0.2/31]" {
		t.Errorf("10.0.0.1 to 10.0.0.3 came back as %s", got)
	}
}
