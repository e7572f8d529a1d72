// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
)

// addrOf returns the 16-byte form of an address: IPv4 as ::ffff:a.b.c.d, the zero Addr as ::.
func addrOf(a netip.Addr) LayoutAddr {
	if !a.IsValid() {
		return LayoutAddr{}
	}
	return LayoutAddr{Bytes: a.As16()}
}

// Addr returns the address with IPv4 unmapped; :: stays :: (the IPv6 wildcard of a NodePort).
func (a LayoutAddr) Addr() netip.Addr { return netip.AddrFrom16(a.Bytes).Unmap() }

// addrOrNone is Addr where :: means "none".
func addrOrNone(a LayoutAddr) netip.Addr {
	if a.Bytes == [16]uint8{} {
		return netip.Addr{}
	}
	return a.Addr()
}

// String returns the address as people write it.
func (a LayoutAddr) String() string { return a.Addr().String() }

// String returns "protocol source -> destination" with ports, in the order of the packet.
func (t LayoutTuple) String() string {
	return fmt.Sprintf("%s %s -> %s", protocolName(t.Proto),
		netip.AddrPortFrom(t.Src.Addr(), portFrom(t.SrcPort)), netip.AddrPortFrom(t.Dst.Addr(), portFrom(t.DstPort)))
}

// portOf turns a port number into network byte order as a little-endian machine holds it (the only kind that we build for).
func portOf(port uint16) uint16 { return port<<8 | port>>8 }

// portFrom is the inverse of portOf.
func portFrom(port uint16) uint16 { return port<<8 | port>>8 }

// protocolName returns the lower-case name of an IP protocol number, or the number.
func protocolName(proto uint8) string {
	switch proto {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "icmpv6"
	case 132:
		return "sctp"
	}
	return fmt.Sprintf("proto-%d", proto)
}

// word packs {high:32, low:32}; map.h writes such words from the most significant bits down.
func word(high, low uint32) uint64 { return uint64(high)<<32 | uint64(low) }

// high returns the first field of a {high:32, low:32} word.
func high(w uint64) uint32 { return uint32(w >> 32) }

// low returns the second field of a {high:32, low:32} word.
func low(w uint64) uint32 { return uint32(w) }
