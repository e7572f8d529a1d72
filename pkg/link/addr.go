// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Address is an address on a link.
type Address struct {
	Link   int
	Prefix netip.Prefix // the address with the length of its on-link prefix, host bits kept

	// Secondary: not what traffic that lasts should come from. IPv4: behind another address of its prefix; IPv6: temporary (RFC 8981),
	// deprecated, or not known to be nobody else's.
	Secondary bool
}

// Addresses lists the addresses of both families in the namespace; link 0 means those of all links.
func (h *Handle) Addresses(index int) ([]Address, error) {
	var on netlink.Link
	if index != 0 {
		on = &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return h.nl.AddrList(on, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	list := make([]Address, 0, len(addrs))
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok {
			list = append(list, Address{Link: a.LinkIndex, Prefix: p, Secondary: a.Flags&secondary != 0})
		}
	}
	return list, nil
}

// secondary are the flags (linux/if_addr.h) that make an address Secondary; IFA_F_TEMPORARY is the same bit as IFA_F_SECONDARY.
const secondary = unix.IFA_F_SECONDARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED

// SetAddresses makes the addresses of a link exactly these, each as /32 or /128, without duplicate address detection and without an
// on-link route. Those of other links stay; so does nothing else on this one, which must be Fairlead's own.
func (h *Handle) SetAddresses(index int, want []netip.Addr) error {
	have, err := h.Addresses(index)
	if err != nil {
		return err
	}
	on := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
	missing := map[netip.Prefix]bool{}
	for _, a := range want {
		missing[netip.PrefixFrom(a, a.BitLen())] = true
	}
	var errs []error
	for _, a := range have {
		if missing[a.Prefix] {
			delete(missing, a.Prefix)
			continue
		}
		err := h.nl.AddrDel(on, &netlink.Addr{IPNet: netOf(a.Prefix)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("delete address %s of link %d: %w", a.Prefix, index, err))
		}
	}
	for p := range missing {
		err := h.nl.AddrReplace(on, &netlink.Addr{IPNet: netOf(p), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE})
		if err != nil {
			errs = append(errs, fmt.Errorf("add address %s to link %d: %w", p, index, err))
		}
	}
	return errors.Join(errs...)
}

// netOf is the form that netlink wants; host bits are kept.
func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf reads netlink's form.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, size := n.Mask.Size()
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits), true
}

// familyOf names the family of an address for netlink.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}
