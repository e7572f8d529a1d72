// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// PeerFlag is a bit of a peer's word (bpf/lib/peer.h).
type PeerFlag = LayoutPeerFlag

// The flags that a caller may set; that a peer is live is said by Put.
const (
	PeerDirect = LayoutPeerFlagPEER_DIRECT // same L2: routed by the kernel, no overlay
	peerLive   = LayoutPeerFlagPEER_LIVE
)

// Peer is another node as the programs know it.
type Peer struct {
	ID          uint32 // 1 to Peers.Capacity()
	Incarnation uint32 // from IDs: never the same for two nodes with one id
	Flags       PeerFlag
	Node        netip.Addr     // outer address: where packets for its pods go
	Sources     []netip.Addr   // further outer addresses that its packets may come from; Node always may
	MTU         uint32         // largest inner packet to this peer in bytes; 0: the node's own
	CIDRs       []netip.Prefix // its pod CIDRs, masked
}

// LogValue describes the peer by what people look for.
func (p Peer) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("id", p.ID), slog.Any("incarnation", p.Incarnation), slog.Any("node", p.Node),
		slog.Any("cidrs", p.CIDRs))
}

// Peers is the table of the other nodes: the element that describes one, its pod CIDRs and its outer addresses. All methods may be
// called by several goroutines.
type Peers struct {
	mu     sync.Mutex
	array  *mapped
	cidrs  *hash[LayoutPeerCidr, uint32]
	nodes  *hash[LayoutAddr, uint32]
	live   uint64
	failed uint64

	// What the two indexes hold, read from the kernel once: a trie does not say which prefixes lead to an id, nor, before Linux 6.13,
	// whether a prefix is new.
	read      bool
	cidrOwner owners[netip.Prefix]
	nodeOwner owners[netip.Addr]
}

// owners says to which id each key of an index leads, and which keys lead to an id: a change costs what it changes, not the table.
type owners[K comparable] struct {
	of   map[K]uint32
	keys map[uint32][]K
}

func newOwners[K comparable]() owners[K] {
	return owners[K]{of: map[K]uint32{}, keys: map[uint32][]K{}}
}

func (o owners[K]) set(k K, id uint32) {
	o.drop(k)
	o.of[k] = id
	o.keys[id] = append(o.keys[id], k)
}

func (o owners[K]) drop(k K) {
	id, ok := o.of[k]
	if !ok {
		return
	}
	delete(o.of, k)
	o.keys[id] = slices.DeleteFunc(o.keys[id], func(other K) bool { return other == k })
	if len(o.keys[id]) == 0 {
		delete(o.keys, id)
	}
}

// Capacity returns the largest usable id.
func (t *Peers) Capacity() uint32 { return t.array.entries - 1 }

// Put writes a peer: its element with the live word last, then its addresses and CIDRs; what it had before and has no more goes last, so
// that a node whose address or CIDR changes is never without an entry. An address or CIDR of another peer moves to this one. When a map is
// full everything of this Put is taken back.
func (t *Peers) Put(p Peer) error {
	if p.ID == 0 || p.ID >= t.array.entries {
		return fmt.Errorf("put peer %d: id out of range, 1 to %d", p.ID, t.array.entries-1)
	}
	if !p.Node.IsValid() {
		return fmt.Errorf("put peer %d: node address is missing", p.ID)
	}
	for _, c := range p.CIDRs {
		if !c.IsValid() || c != c.Masked() {
			return fmt.Errorf("put peer %d: cidr %s is not a masked prefix", p.ID, c)
		}
	}
	p.Node, p.Sources = p.Node.Unmap(), slices.Clone(p.Sources)
	for i, a := range p.Sources {
		p.Sources[i] = a.Unmap()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return fmt.Errorf("put peer %d: %w", p.ID, err)
	}
	old, had := t.peer(p.ID)
	if !had || old.Incarnation != p.Incarnation {
		if had {
			if err := t.remove(old); err != nil {
				return fmt.Errorf("put peer %d: %w", p.ID, err)
			}
		}
		old, had = Peer{ID: p.ID}, false
		t.array.store(p.ID, 0, 0)
		t.live++
	}
	t.write(p)
	if err := t.index(p); err != nil {
		t.failed++
		err = errors.Join(err, t.remove(p))
		if had {
			t.live++
			t.write(old)
			err = errors.Join(err, t.index(old))
		}
		return fmt.Errorf("put peer %d: %w", p.ID, err)
	}
	if err := t.unindex(p.ID, p); err != nil {
		return fmt.Errorf("put peer %d: %w", p.ID, err)
	}
	return nil
}

// Delete takes the CIDRs, the addresses and then the element of a peer away. An id that is not in use is no error.
func (t *Peers) Delete(id uint32) error {
	if id == 0 || id >= t.array.entries {
		return fmt.Errorf("delete peer %d: id out of range, 1 to %d", id, t.array.entries-1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return fmt.Errorf("delete peer %d: %w", id, err)
	}
	p, ok := t.peer(id)
	if !ok {
		return nil
	}
	if err := t.remove(p); err != nil {
		return fmt.Errorf("delete peer %d: %w", id, err)
	}
	return nil
}

// List returns every live peer in the order of ids, those of an agent before this one too.
func (t *Peers) List() ([]Peer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	var all []Peer
	for id := uint32(1); id < t.array.entries; id++ {
		if p, ok := t.peer(id); ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// load reads the indexes once and takes away what leads to no live peer: a predecessor died between two steps.
func (t *Peers) load() error {
	if t.read {
		return nil
	}
	t.cidrOwner, t.nodeOwner = newOwners[netip.Prefix](), newOwners[netip.Addr]()
	err := errors.Join(
		t.cidrs.walk(func(k LayoutPeerCidr, id uint32) { t.cidrOwner.set(k.Prefix(), id) }),
		t.nodes.walk(func(k LayoutAddr, id uint32) { t.nodeOwner.set(k.Addr(), id) }))
	if err != nil {
		return err
	}
	t.read, t.live = true, 0
	for id := uint32(1); id < t.array.entries; id++ {
		if _, ok := t.element(id); ok {
			t.live++
		}
	}
	for _, ids := range []iter.Seq[uint32]{maps.Keys(t.cidrOwner.keys), maps.Keys(t.nodeOwner.keys)} {
		for _, id := range slices.Collect(ids) {
			if _, ok := t.element(id); !ok {
				err = errors.Join(err, t.unindex(id, Peer{}))
			}
		}
	}
	return err
}

// element returns what the array says of a peer, without CIDRs and further addresses.
func (t *Peers) element(id uint32) (Peer, bool) {
	if id >= t.array.entries {
		return Peer{}, false
	}
	w := t.array.load(id, 0)
	if PeerFlag(low(w))&peerLive == 0 {
		return Peer{}, false
	}
	el := at[LayoutPeer](t.array, id)
	return Peer{ID: id, Incarnation: high(w), Flags: PeerFlag(low(w)) &^ peerLive, Node: addrOrNone(el.Node), MTU: el.Mtu}, true
}

// peer returns a peer with its CIDRs and addresses, in a fixed order.
func (t *Peers) peer(id uint32) (Peer, bool) {
	p, ok := t.element(id)
	if !ok {
		return p, false
	}
	p.CIDRs = slices.Clone(t.cidrOwner.keys[id])
	slices.SortFunc(p.CIDRs, netip.Prefix.Compare)
	for _, a := range t.nodeOwner.keys[id] {
		if a != p.Node {
			p.Sources = append(p.Sources, a)
		}
	}
	slices.SortFunc(p.Sources, netip.Addr.Compare)
	return p, true
}

// write writes the element. While the outer address changes the word is clear and packets to the peer are dropped and counted: where they
// would have gone is no node any more.
func (t *Peers) write(p Peer) {
	el := at[LayoutPeer](t.array, p.ID)
	if el.Node != addrOf(p.Node) {
		t.array.store(p.ID, 0, 0)
		el.Node = addrOf(p.Node)
	}
	el.Mtu = p.MTU
	t.array.store(p.ID, 0, word(p.Incarnation, uint32(p.Flags|peerLive)))
}

// index makes the peer's addresses and CIDRs lead to it.
func (t *Peers) index(p Peer) error {
	for _, a := range append([]netip.Addr{p.Node}, p.Sources...) {
		if t.nodeOwner.of[a] == p.ID {
			continue
		}
		if err := t.nodes.put(addrOf(a), p.ID); err != nil {
			return err
		}
		t.nodeOwner.set(a, p.ID)
	}
	for _, c := range p.CIDRs {
		if t.cidrOwner.of[c] == p.ID {
			continue
		}
		if err := t.cidrs.put(cidrOf(c), p.ID); err != nil {
			return err
		}
		t.cidrOwner.set(c, p.ID)
	}
	return nil
}

// unindex removes what leads to an id and is not of the peer that keeps.
func (t *Peers) unindex(id uint32, keep Peer) error {
	var err error
	for _, c := range slices.Clone(t.cidrOwner.keys[id]) {
		if slices.Contains(keep.CIDRs, c) {
			continue
		}
		if e := t.cidrs.delete(cidrOf(c)); e != nil {
			err = errors.Join(err, e)
			continue
		}
		t.cidrOwner.drop(c)
	}
	for _, a := range slices.Clone(t.nodeOwner.keys[id]) {
		if a == keep.Node || slices.Contains(keep.Sources, a) {
			continue
		}
		if e := t.nodes.delete(addrOf(a)); e != nil {
			err = errors.Join(err, e)
			continue
		}
		t.nodeOwner.drop(a)
	}
	return err
}

// remove takes a peer out: the indexes, then its word.
func (t *Peers) remove(p Peer) error {
	if err := t.unindex(p.ID, Peer{}); err != nil {
		return err
	}
	t.array.store(p.ID, 0, 0)
	t.live--
	return nil
}

// cidrOf returns the trie's key: an IPv4 prefix of n bits has 96 + n.
func cidrOf(p netip.Prefix) LayoutPeerCidr {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return LayoutPeerCidr{Prefixlen: uint32(bits), Bytes: p.Addr().As16()}
}

// Prefix returns the prefix with IPv4 unmapped.
func (c LayoutPeerCidr) Prefix() netip.Prefix {
	a := netip.AddrFrom16(c.Bytes)
	if a.Is4In6() && c.Prefixlen >= 96 {
		return netip.PrefixFrom(a.Unmap(), int(c.Prefixlen)-96)
	}
	return netip.PrefixFrom(a, int(c.Prefixlen))
}

// String returns the prefix as people write it.
func (c LayoutPeerCidr) String() string { return c.Prefix().String() }
