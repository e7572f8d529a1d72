// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func prefixes(s ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range s {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

// peerAt returns the peer that the trie and the outer addresses lead to, as programs look: by longest prefix, by exact address.
func peerAt(t *testing.T, o *Objects, pod, node string) (byPod, byNode uint32) {
	t.Helper()
	key := LayoutPeerCidr{Prefixlen: 128, Bytes: netip.MustParseAddr(pod).As16()}
	var err1, err2 error
	byPod, _, err1 = o.peers.cidrs.get(key)
	byNode, _, err2 = o.peers.nodes.get(addrOf(netip.MustParseAddr(node)))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return byPod, byNode
}

func TestPeerPutDelete(t *testing.T) {
	o := openTest(t)
	p := Peer{
		ID: 3, Incarnation: 9, Node: netip.MustParseAddr("192.0.2.3"), Sources: []netip.Addr{netip.MustParseAddr("2001:db8::3")},
		MTU: 1450, CIDRs: prefixes("10.0.3.0/24", "fd00:3::/64"),
	}
	if err := o.Peers().Put(p); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{"10.0.3.77", "192.0.2.3"}, {"fd00:3::77", "2001:db8::3"}} {
		if a, b := peerAt(t, o, c[0], c[1]); a != 3 || b != 3 {
			t.Errorf("%s leads to %d, %s to %d, want 3", c[0], a, c[1], b)
		}
	}

	// The node gets another address and another CIDR.
	p.Node, p.Sources, p.CIDRs = netip.MustParseAddr("192.0.2.33"), nil, prefixes("10.0.33.0/24", "fd00:3::/64")
	if err := o.Peers().Put(p); err != nil {
		t.Fatal(err)
	}
	if a, b := peerAt(t, o, "10.0.3.77", "192.0.2.3"); a != 0 || b != 0 {
		t.Errorf("what the node had leads to %d and %d", a, b)
	}
	if a, b := peerAt(t, o, "10.0.33.1", "192.0.2.33"); a != 3 || b != 3 {
		t.Errorf("what the node has leads to %d and %d", a, b)
	}
	var raw LayoutPeer
	if err := o.maps[LayoutMapPeers].Lookup(uint32(3), &raw); err != nil {
		t.Fatal(err)
	}
	if want := (LayoutPeer{Word: 9<<32 | 1, Node: addrOf(p.Node), Mtu: 1450}); raw != want {
		t.Errorf("element is %+v, want %+v", raw, want)
	}

	// A CIDR moves to another node; deleting the first later leaves it there.
	q := Peer{ID: 4, Incarnation: 10, Node: netip.MustParseAddr("192.0.2.4"), CIDRs: prefixes("10.0.33.0/24")}
	if err := o.Peers().Put(q); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(o.Peers().Delete(3), o.Peers().Delete(3)); err != nil {
		t.Fatal(err)
	}
	if a, b := peerAt(t, o, "10.0.33.1", "192.0.2.33"); a != 4 || b != 0 {
		t.Errorf("after the first was deleted: %d and %d, want 4 and 0", a, b)
	}
	all, err := o.Peers().List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Peer{q}, all, sameAddr()); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
}

func TestPeersAreAdopted(t *testing.T) {
	dir := testDir(t)
	first := mustOpen(t, Options{Dir: dir, Capacity: small()})
	want := []Peer{
		{ID: 1, Incarnation: 1, Node: netip.MustParseAddr("192.0.2.1"), CIDRs: prefixes("10.0.1.0/24", "fd00:1::/64")},
		{ID: 2, Incarnation: 2, Flags: PeerDirect, Node: netip.MustParseAddr("2001:db8::2"), Sources: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
			CIDRs: prefixes("10.0.2.0/24", "10.0.12.0/24")},
	}
	for _, p := range want {
		if err := first.Peers().Put(p); err != nil {
			t.Fatal(err)
		}
	}
	// A predecessor that died after the word of peer 9 was cleared, or before it was written: its index entries lead nowhere.
	if err := first.peers.cidrs.put(cidrOf(prefixes("10.0.9.0/24")[0]), 9); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := mustOpen(t, Options{Dir: dir, Capacity: small()})
	defer second.Close()
	all, err := second.Peers().List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, all, sameAddr()); diff != "" {
		t.Errorf("adopted peers (-want +got):\n%s", diff)
	}
	if a, _ := peerAt(t, second, "10.0.9.1", "192.0.2.9"); a != 0 {
		t.Errorf("an entry that leads to no peer is still there: %d", a)
	}
}

func TestPeerFullIsTakenBack(t *testing.T) {
	capacity := small()
	capacity["peer_cidrs"] = 2
	o := mustOpen(t, Options{Dir: testDir(t), Capacity: capacity})
	defer o.Close()
	a := Peer{ID: 1, Incarnation: 1, Node: netip.MustParseAddr("192.0.2.1"), CIDRs: prefixes("10.0.1.0/24")}
	b := Peer{ID: 2, Incarnation: 2, Node: netip.MustParseAddr("192.0.2.2"), CIDRs: prefixes("10.0.2.0/24", "fd00:2::/64")}
	if err := o.Peers().Put(a); err != nil {
		t.Fatal(err)
	}
	err := o.Peers().Put(b)
	if !errors.Is(err, ErrFull) {
		t.Fatalf("third CIDR: %v, want ErrFull", err)
	}
	wantError(t, err, "put peer 2: write peer_cidrs: map is full (2 elements)")
	// A change of a known peer that does not fit leaves it as it was.
	grown := a
	grown.CIDRs = prefixes("10.0.1.0/24", "10.0.8.0/24", "10.0.9.0/24")
	if err := o.Peers().Put(grown); !errors.Is(err, ErrFull) {
		t.Fatalf("third CIDR: %v, want ErrFull", err)
	}
	all, err := o.Peers().List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Peer{a}, all, sameAddr()); diff != "" {
		t.Errorf("peers after refused Puts (-want +got):\n%s", diff)
	}
	if pod, node := peerAt(t, o, "10.0.1.1", "192.0.2.1"); pod != 1 || node != 1 {
		t.Errorf("the known peer is found at %d and %d", pod, node)
	}
}

func TestPeerRefuses(t *testing.T) {
	o := openTest(t)
	node := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		p    Peer
		want string
	}{
		{Peer{Node: node}, "put peer 0: id out of range, 1 to 8191"},
		{Peer{ID: 1}, "put peer 1: node address is missing"},
		{Peer{ID: 1, Node: node, CIDRs: prefixes("10.0.0.1/24")}, "put peer 1: cidr 10.0.0.1/24 is not a masked prefix"},
	} {
		wantError(t, o.Peers().Put(c.p), c.want)
	}
}
