// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/google/nftables"
)

// elementsOf returns the interval of each prefix as the kernel keeps it: its first address, and the first address behind it as an end.
// The prefix that reaches the last address of all has no end.
func elementsOf(prefixes []netip.Prefix) []nftables.SetElement {
	list := make([]nftables.SetElement, 0, 2*len(prefixes))
	for _, p := range prefixes {
		list = append(list, nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := last(p).Next(); end.IsValid() {
			list = append(list, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return list
}

// prefixesOf is the inverse of elementsOf. An interval that is no prefix comes back as the prefixes that make it up: somebody else made it.
func prefixesOf(list []nftables.SetElement) []netip.Prefix {
	var starts, ends []netip.Addr
	for _, e := range list {
		a, ok := netip.AddrFromSlice(e.Key)
		switch {
		case !ok:
		case e.IntervalEnd:
			ends = append(ends, a)
		default:
			starts = append(starts, a)
		}
	}
	slices.SortFunc(starts, netip.Addr.Compare)
	slices.SortFunc(ends, netip.Addr.Compare)
	var prefixes []netip.Prefix
	for _, from := range starts {
		i, _ := slices.BinarySearchFunc(ends, from.Next(), netip.Addr.Compare)
		end := netip.Addr{}
		if i < len(ends) {
			end = ends[i]
		}
		prefixes = append(prefixes, cover(from, end)...)
	}
	return prefixes
}

// cover returns the fewest prefixes that make up the addresses from the first to the one before the end; an invalid end is behind the
// last address of all.
func cover(from, end netip.Addr) []netip.Prefix {
	var prefixes []netip.Prefix
	for from.IsValid() && (!end.IsValid() || from.Less(end)) {
		for bits := 0; ; bits++ {
			p := netip.PrefixFrom(from, bits)
			if p.Masked().Addr() == from && (!end.IsValid() || last(p).Less(end)) {
				prefixes = append(prefixes, p)
				from = last(p).Next()
				break
			}
		}
	}
	return prefixes
}

// last returns the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := bytes.Clone(p.Addr().AsSlice())
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
