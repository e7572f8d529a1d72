// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bridge makes a bridge of the given devices, up, with on-link addresses. It stands in for a network between machines where nodes are
// namespaces: in tests, the demo and the benchmarks.
func (h *Handle) Bridge(name string, ports []string, addrs ...netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	for _, port := range ports {
		l, err := h.nl.LinkByName(port)
		if err == nil {
			err = h.nl.LinkSetMaster(l, bridge)
		}
		if err != nil {
			return fmt.Errorf("add link %s to bridge %s: %w", port, name, err)
		}
	}
	return h.setEnd(End{Name: name, Addresses: addrs})
}

// SetDefaultRoute sends everything without a better route to a gateway on a link. The route is an administrator's (protocol static), not
// one of Fairlead's.
func (h *Handle) SetDefaultRoute(gateway netip.Addr) error {
	dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gateway.Is6() {
		dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if err := h.nl.RouteReplace(&netlink.Route{Dst: netOf(dst), Gw: gateway.AsSlice(), Protocol: unix.RTPROT_STATIC}); err != nil {
		return fmt.Errorf("set default route to %s: %w", gateway, err)
	}
	return nil
}
