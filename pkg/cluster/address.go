// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

var (
	errAddress      = errors.New("not an IP address")
	errZone         = errors.New("an address with a zone belongs to one machine only")
	errUnspecified  = errors.New("the unspecified address")
	errLoopback     = errors.New("a loopback address")
	errMulticast    = errors.New("a multicast address")
	errBroadcast    = errors.New("the broadcast address")
	errAddressTwice = errors.New("given twice")
	errPrefix       = errors.New("not an address/length")
	errMapped       = errors.New("a v4-mapped prefix shorter than 96 bits spans both families")
)

// ParseAddr reads an address as Kubernetes always has: decimal octets may have leading zeros (KEP-4858: objects with such addresses
// exist and must keep meaning what they meant), and there is no zone. A v4-mapped address is returned as IPv4.
func ParseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		a, err = netip.ParseAddr(stripZeros(s))
	}
	if err != nil {
		return netip.Addr{}, errAddress
	}
	if a.Zone() != "" {
		return netip.Addr{}, errZone
	}
	return a.Unmap(), nil
}

// ParsePrefix reads address/length by the rules of ParseAddr and masks it; a v4-mapped prefix is returned as IPv4.
func ParsePrefix(s string) (netip.Prefix, error) {
	text, length, ok := strings.Cut(s, "/")
	if !ok {
		return netip.Prefix{}, errPrefix
	}
	for _, c := range length {
		if c < '0' || c > '9' {
			return netip.Prefix{}, errPrefix
		}
	}
	bits, err := strconv.Atoi(length)
	if err != nil {
		return netip.Prefix{}, errPrefix
	}
	a, err := ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	if a.Is4() && strings.Contains(text, ":") {
		if bits < 96 {
			return netip.Prefix{}, errMapped
		}
		bits -= 96
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}, errPrefix
	}
	return p, nil
}

// stripZeros removes the leading zeros of the octets of a dotted address, alone or at the end of an IPv6 address.
func stripZeros(s string) string {
	start := strings.LastIndexByte(s, ':') + 1
	octets := strings.Split(s[start:], ".")
	if len(octets) != 4 {
		return s
	}
	for i, o := range octets {
		if t := strings.TrimLeft(o, "0"); t != "" {
			octets[i] = t
		} else if o != "" {
			octets[i] = "0"
		}
	}
	return s[:start] + strings.Join(octets, ".")
}

// parseUnicast is ParseAddr for addresses that packets are sent to: those that cannot name one machine or one virtual address of a
// cluster are refused. The unspecified address would moreover be taken for the wildcard of NodePorts in the kernel's tables.
func parseUnicast(s string) (netip.Addr, error) {
	a, err := ParseAddr(s)
	switch {
	case err != nil:
		return a, err
	case a.IsUnspecified():
		return netip.Addr{}, errUnspecified
	case a.IsLoopback():
		return netip.Addr{}, errLoopback
	case a.IsMulticast():
		return netip.Addr{}, errMulticast
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, errBroadcast
	}
	return a, nil
}
