// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
)

// maxSourceRangeSets is how many sets may exist: as many as the map has room for, one prefix each.
const maxSourceRangeSets = 65535

// prefixOf returns the 128-bit form of a masked prefix: bits counts from the mapped form of IPv4.
func prefixOf(p netip.Prefix) (bits uint32, bytes [16]byte) {
	bits = uint32(p.Bits())
	if p.Addr().Is4() {
		bits += 96
	}
	return bits, p.Addr().As16()
}

// prefixFrom is the inverse of prefixOf.
func prefixFrom(bits uint32, bytes [16]byte) netip.Prefix {
	a := netip.AddrFrom16(bytes)
	if bits >= 96 && a.Is4In6() {
		return netip.PrefixFrom(a.Unmap(), int(bits-96))
	}
	return netip.PrefixFrom(a, int(bits))
}

// PutSourceRange lets the clients of a masked prefix use the load balancer addresses of services whose SourceRange is set. A full map
// is ErrFull.
func (t *Services) PutSourceRange(set uint32, p netip.Prefix) error {
	bits, bytes := prefixOf(p)
	if err := t.ranges.put(LayoutSourceRange{Prefixlen: 32 + bits, Set: set, Bytes: bytes}, set); err != nil {
		return fmt.Errorf("put source range %s of set %d: %w", p, set, err)
	}
	return nil
}

// DeleteSourceRange removes a prefix from a set; one that is not there is no error.
func (t *Services) DeleteSourceRange(set uint32, p netip.Prefix) error {
	bits, bytes := prefixOf(p)
	if err := t.ranges.delete(LayoutSourceRange{Prefixlen: 32 + bits, Set: set, Bytes: bytes}); err != nil {
		return fmt.Errorf("delete source range %s of set %d: %w", p, set, err)
	}
	return nil
}

// SourceRanges returns the prefixes of every set.
func (t *Services) SourceRanges() (map[uint32][]netip.Prefix, error) {
	all := map[uint32][]netip.Prefix{}
	err := t.ranges.walk(func(k LayoutSourceRange, _ uint32) {
		all[k.Set] = append(all[k.Set], prefixFrom(k.Prefixlen-32, k.Bytes))
	})
	return all, err
}

// PutServiceCIDR says that ClusterIPs come from a masked prefix: packets to an address in it that no Service has are dropped.
func (t *Services) PutServiceCIDR(p netip.Prefix) error {
	bits, bytes := prefixOf(p)
	if err := t.cidrs.put(LayoutServiceCidr{Prefixlen: bits, Bytes: bytes}, 1); err != nil {
		return fmt.Errorf("put service CIDR %s: %w", p, err)
	}
	return nil
}

// DeleteServiceCIDR removes a prefix; one that is not there is no error.
func (t *Services) DeleteServiceCIDR(p netip.Prefix) error {
	bits, bytes := prefixOf(p)
	if err := t.cidrs.delete(LayoutServiceCidr{Prefixlen: bits, Bytes: bytes}); err != nil {
		return fmt.Errorf("delete service CIDR %s: %w", p, err)
	}
	return nil
}

// ServiceCIDRs returns all prefixes.
func (t *Services) ServiceCIDRs() ([]netip.Prefix, error) {
	var all []netip.Prefix
	err := t.cidrs.walk(func(k LayoutServiceCidr, _ uint32) { all = append(all, prefixFrom(k.Prefixlen, k.Bytes)) })
	return all, err
}
