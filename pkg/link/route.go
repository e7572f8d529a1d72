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

// Protocol is the owner that every route of Fairlead carries (rtnetlink(7), rtm_protocol), so that it is found again and no other is
// ever touched.
const Protocol = 201

// Route is one route of Fairlead in the main table, with the kernel's default metric of its family.
type Route struct {
	Dst         netip.Prefix // masked
	Unreachable bool         // answer "host unreachable"; the fields below are empty
	Link        int
	Gateway     netip.Addr // invalid: the destination is on the link
	OnLink      bool       // the gateway is reached on the link although no address says so
	Src         netip.Addr // preferred source of the host's own packets; invalid: the kernel's choice
	MTU         int        // bytes; 0: the link's
}

// ErrForeignRoute says that somebody else has a route to the same destination.
var ErrForeignRoute = errors.New("a route of another owner is there")

// Routes lists the routes that carry Protocol, of both families, in no order.
func (h *Handle) Routes() ([]Route, error) {
	var list []Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retry(func() ([]netlink.Route, error) {
			return h.nl.RouteListFiltered(family, &netlink.Route{Protocol: Protocol, Table: unix.RT_TABLE_MAIN},
				netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for i := range routes {
			if r, ok := routeOf(&routes[i]); ok {
				list = append(list, r)
			}
		}
	}
	return list, nil
}

// SetRoute adds a route, or replaces the one that Fairlead has to the same destination in one step. A route of another owner stays and
// is the error ErrForeignRoute.
func (h *Handle) SetRoute(r Route) error {
	err := h.nl.RouteAdd(r.netlink())
	if errors.Is(err, unix.EEXIST) {
		err = h.replaceRoute(r)
	}
	if err != nil {
		return fmt.Errorf("set route to %s: %w", r.Dst, err)
	}
	return nil
}

func (h *Handle) replaceRoute(r Route) error {
	there, err := retry(func() ([]netlink.Route, error) {
		return h.nl.RouteListFiltered(familyOf(r.Dst.Addr()), &netlink.Route{Dst: netOf(r.Dst), Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return err
	}
	for i := range there {
		if there[i].Protocol == Protocol {
			if have, ok := routeOf(&there[i]); ok && have == r {
				return nil
			}
			return h.nl.RouteReplace(r.netlink())
		}
	}
	for i := range there {
		return fmt.Errorf("%w: %s (protocol %s)", ErrForeignRoute, r.Dst, there[i].Protocol)
	}
	return h.nl.RouteAdd(r.netlink()) // vanished meanwhile
}

// DeleteRoute removes a route of Fairlead; one that is not there is no error.
func (h *Handle) DeleteRoute(r Route) error {
	err := h.nl.RouteDel(r.netlink())
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete route to %s: %w", r.Dst, err)
	}
	return nil
}

func (r Route) netlink() *netlink.Route {
	n := &netlink.Route{
		Family: familyOf(r.Dst.Addr()), Dst: netOf(r.Dst), Protocol: Protocol, Table: unix.RT_TABLE_MAIN, LinkIndex: r.Link, MTU: r.MTU,
	}
	switch {
	case r.Unreachable:
		n.Type = unix.RTN_UNREACHABLE
	case r.Gateway.IsValid():
		n.Gw = r.Gateway.AsSlice()
	default:
		n.Scope = netlink.SCOPE_LINK
	}
	if r.OnLink {
		n.Flags = int(netlink.FLAG_ONLINK)
	}
	if r.Src.IsValid() {
		n.Src = r.Src.AsSlice()
	}
	return n
}

func routeOf(n *netlink.Route) (Route, bool) {
	dst, ok := prefixOf(n.Dst)
	if !ok || len(n.MultiPath) != 0 {
		return Route{}, false
	}
	if n.Type == unix.RTN_UNREACHABLE {
		return Route{Dst: dst, Unreachable: true}, true
	}
	return Route{
		Dst: dst, Link: n.LinkIndex, Gateway: addrOf(n.Gw), Src: addrOf(n.Src), MTU: n.MTU,
		OnLink: n.Flags&int(netlink.FLAG_ONLINK) != 0,
	}, true
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// DefaultLinks returns the links that the default routes of the main table lead out of, for the family of an address, in no order.
func (h *Handle) DefaultLinks(like netip.Addr) ([]int, error) {
	routes, err := retry(func() ([]netlink.Route, error) {
		return h.nl.RouteListFiltered(familyOf(like), &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list default routes: %w", err)
	}
	var links []int
	for i := range routes {
		if routes[i].LinkIndex != 0 {
			links = append(links, routes[i].LinkIndex)
		}
		for _, hop := range routes[i].MultiPath {
			links = append(links, hop.LinkIndex)
		}
	}
	return links, nil
}
