// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/link"
)

// The next hop of every route over the overlay device, one per family. A program takes each packet there and looks only at its
// destination, so one permanent neighbour stands for all peers: without a gateway the kernel would keep a neighbour for every remote pod
// that the host talks to, in a table that overflows at 1,024 entries.
var (
	nextHop4 = netip.MustParseAddr("169.254.1.1")
	nextHop6 = netip.MustParseAddr("fe80::1")
)

// Setup makes everything that the own Node object asks for, and may be called again at any time: what is right already is left
// alone. It turns forwarding on, makes the overlay device with the node's overlay addresses, and makes the own pod CIDRs unreachable but
// for the pods that have a route of their own, so that packets to absent pods do not leave by the default route. On an error what was
// there keeps working.
func (n *Node) Setup(own *cluster.Node) (Self, error) {
	net, err := n.network()
	if err != nil {
		return Self{}, err
	}
	s, err := compileSelf(n.cfg, own, net)
	if err != nil {
		return Self{}, err
	}
	if err := n.forward(s); err != nil {
		return Self{}, err
	}
	if s.Mode == Direct {
		err = n.nl.DeleteDevice(Device)
	} else {
		err = n.setupOverlay(&s)
	}
	if err != nil {
		return Self{}, err
	}
	if err := n.fence(s); err != nil {
		return Self{}, err
	}
	n.mu.Lock()
	n.self, n.own = s, own
	n.mu.Unlock()
	return s, nil
}

// network asks the kernel for the devices.
func (n *Node) network() (network, error) {
	devices, err := n.nl.Devices()
	if err != nil {
		return network{}, err
	}
	addresses, err := n.nl.Addresses(0)
	if err != nil {
		return network{}, err
	}
	return network{devices: devices, addresses: addresses, defaults: n.nl.DefaultLinks}, nil
}

// setupOverlay makes the device and what belongs to it.
func (n *Node) setupOverlay(s *Self) error {
	d, made, err := n.nl.SetVxlan(link.Vxlan{Name: Device, Port: s.Port, MTU: s.MTU, MAC: s.OverlayMAC[:], ZeroChecksum6: s.OuterV6})
	if err != nil {
		return err
	}
	if made {
		n.log.Info("made overlay device", "device", Device, "ifindex", d.Index, "port", s.Port, "mtu", s.MTU)
	}
	s.OverlayIndex = d.Index
	// Loose: with routing mode auto two nodes may for a moment disagree on the way between them. The larger of this and conf/all counts.
	if _, err := n.nl.SetSysctl("2", "ipv4", "conf", Device, "rp_filter"); err != nil {
		return err
	}
	if s.Overlay6.IsValid() { // hosts that have IPv6 off by default give every new device none
		if err := n.setSysctl("0", "ipv6", "conf", Device, "disable_ipv6"); err != nil {
			return err
		}
	}
	var addrs []netip.Addr
	for _, a := range []netip.Addr{s.Overlay4, s.Overlay6} {
		if a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	if err := n.nl.SetAddresses(d.Index, addrs); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := n.nl.SetNeighbour(d.Index, *pick(a, &nextHop4, &nextHop6), s.GatewayMAC[:]); err != nil {
			return err
		}
	}
	return nil
}

// forward turns forwarding on for the families that have pods. With IPv6 forwarding on, the kernel ignores router advertisements and drops
// the routes that it has from them, unless a device says 2: the uplinks that listen now go on listening.
func (n *Node) forward(s Self) error {
	if s.Overlay4.IsValid() {
		if err := n.setSysctl("1", "ipv4", "ip_forward"); err != nil {
			return err
		}
	}
	if !s.Overlay6.IsValid() {
		return nil
	}
	on, err := n.nl.Sysctl("ipv6", "conf", "all", "forwarding")
	if err != nil {
		return fmt.Errorf("node %s: spec.podCIDRs: has an IPv6 prefix: %w", s.Name, err)
	}
	if on == "1" {
		return nil
	}
	devices, err := n.nl.Devices()
	if err != nil {
		return err
	}
	for _, d := range devices {
		if accept, err := n.nl.Sysctl("ipv6", "conf", d.Name, "accept_ra"); err != nil || accept != "1" || d.Loopback {
			continue // a device without IPv6 has no such setting
		}
		if err := n.setSysctl("2", "ipv6", "conf", d.Name, "accept_ra"); err != nil {
			return err
		}
	}
	return n.setSysctl("1", "ipv6", "conf", "all", "forwarding")
}

func (n *Node) setSysctl(value string, name ...string) error {
	old, err := n.nl.SetSysctl(value, name...)
	if err == nil && old != value {
		n.log.Info("set sysctl", "sysctl", "net."+strings.Join(name, "."), "old", old, "new", value)
	}
	return err
}

// fence makes the own pod CIDRs unreachable, and takes away the fences of CIDRs that are not the node's any more.
func (n *Node) fence(s Self) error {
	have, err := n.nl.Routes()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range have {
		if r.Unreachable && !slices.Contains(s.PodCIDRs, r.Dst) {
			errs = append(errs, n.nl.DeleteRoute(r))
		}
	}
	for _, p := range s.PodCIDRs {
		if r := (link.Route{Dst: p, Unreachable: true}); !slices.Contains(have, r) {
			errs = append(errs, n.nl.SetRoute(r))
		}
	}
	return errors.Join(errs...)
}

// Remove takes away everything that this package makes, whoever made it: the overlay device with all that is on it, and the routes to
// nodes. Pods' own routes stay.
func Remove(nl *link.Handle) error {
	d, ok, err := nl.Device(Device)
	if err != nil {
		return err
	}
	have, err := nl.Routes()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range have {
		if ours(r, d.Index) {
			errs = append(errs, nl.DeleteRoute(r))
		}
	}
	if ok && d.Type == "vxlan" {
		errs = append(errs, nl.DeleteDevice(Device))
	}
	return errors.Join(errs...)
}

// ours tells this package's routes from those of the pods on this node, which lead straight to a pod's device.
func ours(r link.Route, overlay int) bool {
	return r.Unreachable || r.Gateway.IsValid() || (overlay != 0 && r.Link == overlay)
}
