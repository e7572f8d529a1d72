// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one side of a wire: a device with on-link addresses, up.
type End struct {
	Name      string
	MTU       int            // bytes; 0: the kernel's default
	Addresses []netip.Prefix // host bits kept; IPv6 ones are usable at once
}

// Wire joins two namespaces by a veth pair, as a cable joins two machines. It stands in for an uplink where nodes are namespaces: in
// tests, the demo and the benchmarks.
func Wire(a *Handle, left End, b *Handle, right End) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = left.Name
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: right.Name, PeerNamespace: netlink.NsFd(int(b.ns))}
	if err := a.nl.LinkAdd(pair); err != nil {
		return fmt.Errorf("add wire %s to %s: %w", left.Name, right.Name, err)
	}
	if err := a.setEnd(left); err != nil {
		return err
	}
	return b.setEnd(right)
}

func (h *Handle) setEnd(e End) error {
	l, err := h.nl.LinkByName(e.Name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", e.Name, err)
	}
	if e.MTU != 0 {
		if err := h.nl.LinkSetMTU(l, e.MTU); err != nil {
			return fmt.Errorf("set MTU of link %s to %d: %w", e.Name, e.MTU, err)
		}
	}
	if err := h.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up link %s: %w", e.Name, err)
	}
	for _, p := range e.Addresses {
		if err := h.AddAddress(e.Name, p); err != nil {
			return err
		}
	}
	return nil
}

// AddAddress gives a link an address with its on-link prefix, without duplicate address detection. One that is there already is no error.
func (h *Handle) AddAddress(name string, p netip.Prefix) error {
	l, err := h.nl.LinkByName(name)
	if err == nil {
		a := &netlink.Addr{IPNet: netOf(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		err = h.nl.AddrReplace(l, a)
	}
	if err != nil {
		return fmt.Errorf("add address %s to link %s: %w", p, name, err)
	}
	return nil
}

// DeleteAddress takes an address from a link.
func (h *Handle) DeleteAddress(name string, p netip.Prefix) error {
	l, err := h.nl.LinkByName(name)
	if err == nil {
		err = h.nl.AddrDel(l, &netlink.Addr{IPNet: netOf(p)})
	}
	if err != nil {
		return fmt.Errorf("delete address %s of link %s: %w", p, name, err)
	}
	return nil
}

// SetMTU changes the MTU of a link, in bytes.
func (h *Handle) SetMTU(name string, mtu int) error {
	l, err := h.nl.LinkByName(name)
	if err == nil {
		err = h.nl.LinkSetMTU(l, mtu)
	}
	if err != nil {
		return fmt.Errorf("set MTU of link %s to %d: %w", name, mtu, err)
	}
	return nil
}

// SetUp sets a link up, or down.
func (h *Handle) SetUp(name string, up bool) error {
	l, err := h.nl.LinkByName(name)
	if err == nil && up {
		err = h.nl.LinkSetUp(l)
	} else if err == nil {
		err = h.nl.LinkSetDown(l)
	}
	if err != nil {
		return fmt.Errorf("set link %s up (%t): %w", name, up, err)
	}
	return nil
}
