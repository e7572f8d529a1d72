// SPDX-License-Identifier: Apache-2.0

// Package ipam hands out the addresses of a node's pod CIDRs. It is pure: the caller keeps the journal, the clock and the lock.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Reserved is how many addresses from the start of a CIDR belong to the node: the first sits on the overlay device, the second is the
// source of translated traffic.
const Reserved = 2

// window is how many addresses of a large CIDR are in use at all: more than a node has pods by far, and little to remember.
const window = 1 << 16

// Errors that callers tell apart.
var (
	ErrFull     = errors.New("pool is full")
	ErrTaken    = errors.New("address is in use")
	ErrOutside  = errors.New("address is outside of the pool")
	ErrReserved = errors.New("address is reserved")
)

// Pool is the addresses of one CIDR. An address that was never used comes first, then the one that has been free for the longest time.
// One that was freed less than the cooldown ago is given out only when there is no other: packets and NAT entries of its former pod are
// still under way (a half-open TCP connection is kept for 120 s by the kernel), but no pod fails for that.
//
// Times are durations on one clock that never jumps: the caller uses the time since boot. Not for concurrent use.
type Pool struct {
	prefix   netip.Prefix
	cooldown time.Duration
	limit    uint32 // offsets from Reserved to limit-1 may be given out
	next     uint32 // offsets from here on were never given out, except those in state
	state    map[uint32]bool
	freed    []Freed // oldest first
	used     int
	hurried  uint64
}

// Freed is an address and the time at which it became free.
type Freed struct {
	Addr netip.Addr    `json:"addr"`
	At   time.Duration `json:"at"`
}

// State is what a pool must not forget over a restart.
type State struct {
	Prefix netip.Prefix `json:"prefix"`
	Next   uint32       `json:"next"`
	Freed  []Freed      `json:"freed,omitempty"`
}

// New returns the pool of a CIDR, or an error when no address of it can be given to a pod.
func New(prefix netip.Prefix, cooldown time.Duration) (*Pool, error) {
	if !prefix.IsValid() || prefix != prefix.Masked() {
		return nil, fmt.Errorf("pool %s: not a network prefix", prefix)
	}
	if prefix.Addr().Is4In6() {
		return nil, fmt.Errorf("pool %s: IPv4-mapped", prefix)
	}
	limit := uint64(window)
	if host := prefix.Addr().BitLen() - prefix.Bits(); host <= 16 {
		limit = 1 << host
		if prefix.Addr().Is4() {
			limit-- // the broadcast address
		}
	}
	if limit <= Reserved {
		return nil, fmt.Errorf("pool %s: too small, the node keeps %d addresses and none is left for pods", prefix, Reserved)
	}
	return &Pool{prefix: prefix, cooldown: cooldown, limit: uint32(limit), next: Reserved, state: map[uint32]bool{}}, nil
}

// Prefix returns the CIDR.
func (p *Pool) Prefix() netip.Prefix { return p.prefix }

// Allocate returns an address and marks it used. ErrFull when every one is.
func (p *Pool) Allocate(now time.Duration) (netip.Addr, error) {
	for ; p.next < p.limit; p.next++ {
		if _, known := p.state[p.next]; !known {
			p.state[p.next] = true
			p.used++
			p.next++
			return p.at(p.next - 1), nil
		}
	}
	if len(p.freed) == 0 {
		return netip.Addr{}, fmt.Errorf("pool %s: %w (%d addresses)", p.prefix, ErrFull, p.Size())
	}
	oldest := p.freed[0]
	p.freed = p.freed[1:]
	if now-oldest.At < p.cooldown {
		p.hurried++
	}
	p.state[p.offset(oldest.Addr)] = true
	p.used++
	return oldest.Addr, nil
}

// Take marks a certain address used: one that a pod asks for, or has since before a restart. The cooldown does not count.
func (p *Pool) Take(a netip.Addr) error {
	if !p.prefix.Contains(a) {
		return fmt.Errorf("pool %s: %s: %w", p.prefix, a, ErrOutside)
	}
	o := p.offset(a)
	if o < Reserved || o >= p.limit {
		return fmt.Errorf("pool %s: %s: %w", p.prefix, a, ErrReserved)
	}
	used, known := p.state[o]
	if used {
		return fmt.Errorf("pool %s: %s: %w", p.prefix, a, ErrTaken)
	}
	if known {
		p.freed = slices.DeleteFunc(p.freed, func(f Freed) bool { return f.Addr == a })
	}
	p.state[o] = true
	p.used++
	return nil
}

// Free gives an address back. One that is not in use stays as it is.
func (p *Pool) Free(a netip.Addr, now time.Duration) {
	if !p.prefix.Contains(a) || !p.state[p.offset(a)] {
		return
	}
	p.state[p.offset(a)] = false
	p.used--
	p.freed = append(p.freed, Freed{a, now})
}

// InUse says whether an address is given out.
func (p *Pool) InUse(a netip.Addr) bool { return p.prefix.Contains(a) && p.state[p.offset(a)] }

// Size returns how many addresses pods may have, Used how many have one.
func (p *Pool) Size() int { return int(p.limit - Reserved) }

// Used returns how many addresses are in use.
func (p *Pool) Used() int { return p.used }

// Cooling returns how many free addresses were in use less than the cooldown ago.
func (p *Pool) Cooling(now time.Duration) int {
	i, _ := slices.BinarySearchFunc(p.freed, now-p.cooldown, func(f Freed, t time.Duration) int {
		if f.At <= t {
			return -1
		}
		return 1
	})
	return len(p.freed) - i
}

// Hurried returns how often an address was given out before its cooldown ended.
func (p *Pool) Hurried() uint64 { return p.hurried }

// State returns a copy of what must be kept.
func (p *Pool) State() State {
	return State{Prefix: p.prefix, Next: p.next, Freed: slices.Clone(p.freed)}
}

// Restore brings a pool that has given out nothing back to a state, that of the same CIDR. clip moves each time onto the caller's present
// clock, which began anew if the machine did. Entries that do not belong here are left out.
func (p *Pool) Restore(s State, clip func(time.Duration) time.Duration) {
	if s.Prefix != p.prefix {
		return
	}
	p.next = min(max(s.Next, Reserved), p.limit)
	for _, f := range s.Freed {
		p.Return(f.Addr, clip(f.At))
	}
	slices.SortStableFunc(p.freed, func(a, b Freed) int { return int(a.At/time.Millisecond - b.At/time.Millisecond) })
}

// Return notes that an address was in use and became free at a time, from a journal that says no more.
func (p *Pool) Return(a netip.Addr, at time.Duration) {
	if !p.prefix.Contains(a) {
		return
	}
	o := p.offset(a)
	if _, known := p.state[o]; known || o < Reserved || o >= p.limit {
		return
	}
	p.state[o] = false
	p.freed = append(p.freed, Freed{a, at})
}

// offset counts from the first address of the CIDR; beyond the window it is the limit.
func (p *Pool) offset(a netip.Addr) uint32 {
	base, b := p.prefix.Addr().As16(), a.As16()
	var n uint64
	for i := range b {
		n = min(n<<8|uint64(b[i]-base[i]), 1<<32) // the base has no host bits: no borrow
	}
	return uint32(min(n, uint64(p.limit)))
}

// at is the address at an offset.
func (p *Pool) at(o uint32) netip.Addr {
	b := p.prefix.Addr().As16()
	for i := 15; o > 0; i, o = i-1, o>>8 {
		b[i] |= byte(o)
	}
	if p.prefix.Addr().Is4() {
		return netip.AddrFrom16(b).Unmap()
	}
	return netip.AddrFrom16(b)
}
