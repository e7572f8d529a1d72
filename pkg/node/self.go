// SPDX-License-Identifier: Apache-2.0

// Package node connects this node with the others: it makes the overlay device, keeps one peer entry per other node and one route per
// remote pod CIDR, and decides the MTU.
package node

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/link"
)

// Names and numbers that nodes of one cluster share (DESIGN, "Overlay").
const (
	Device = "fairlead0" // the overlay device
	Port   = 8472        // UDP port of the overlay unless configured
	VNI    = 1           // VXLAN network identifier unless configured
)

// Mode says how packets reach the pods of other nodes.
type Mode uint8

// The modes.
const (
	Overlay Mode = iota // in VXLAN, always
	Direct              // by the network's own routing, always
	Auto                // direct to nodes on the same link, overlay to the others
)

var modes = []string{Overlay: "overlay", Direct: "direct", Auto: "auto"}

// ParseMode reads the value of --routing-mode.
func ParseMode(s string) (Mode, error) {
	if i := slices.Index(modes, s); i >= 0 {
		return Mode(i), nil
	}
	return 0, fmt.Errorf("routing mode %q: not one of %s", s, strings.Join(modes, ", "))
}

func (m Mode) String() string { return modes[m] }

// Self is what this node knows of itself once its Node object and its devices are known.
type Self struct {
	Name       string
	PodCIDRs   []netip.Prefix // at most one per family, IPv4 first
	Mode       Mode
	Node4      netip.Addr // InternalIP per family, invalid without
	Node6      netip.Addr
	Overlay4   netip.Addr // first address of the pod CIDR per family, on the overlay device
	Overlay6   netip.Addr
	SNAT4      netip.Addr // second address: source of others' traffic to remote pods
	SNAT6      netip.Addr
	GatewayMAC [6]byte
	OverlayMAC [6]byte
	OuterV6    bool           // nodes talk over IPv6
	Underlay   link.Device    // carries the outer address
	OnLink     []netip.Prefix // of the underlay device's addresses
	MTU        int            // of every pod's device and of the overlay device: largest packet from its IP header on, in bytes

	OverlayIndex int // of the overlay device; 0: there is none (mode Direct)
	Port         uint16
	VNI          uint32
}

// Equal says that two values agree in everything that routes, programs and pods depend on.
func (s Self) Equal(o Self) bool {
	return s.sameForOthers(o) && s.Underlay.Index == o.Underlay.Index && slices.Equal(s.OnLink, o.OnLink)
}

// sameForOthers leaves out what only the routes of this package depend on.
func (s Self) sameForOthers(o Self) bool {
	return s.Name == o.Name && slices.Equal(s.PodCIDRs, o.PodCIDRs) && s.Mode == o.Mode && s.Node4 == o.Node4 && s.Node6 == o.Node6 &&
		s.OuterV6 == o.OuterV6 && s.MTU == o.MTU && s.OverlayIndex == o.OverlayIndex && s.Port == o.Port && s.VNI == o.VNI
}

// Outer returns the address that the node's outer headers carry.
func (s Self) Outer() netip.Addr {
	if s.OuterV6 {
		return s.Node6
	}
	return s.Node4
}

// LogValue shows the facts that people look for.
func (s Self) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("podCIDRs", s.PodCIDRs), slog.Any("nodeIP", s.Outer()), slog.String("device", s.Underlay.Name),
		slog.Int("mtu", s.MTU), slog.String("mode", s.Mode.String()))
}

// overlayAddr returns the node's overlay address in the family of a prefix; invalid: the node has no pods of that family.
func (s Self) overlayAddr(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return s.Overlay4
	}
	return s.Overlay6
}

// network is what the kernel says of the node's devices.
type network struct {
	devices   []link.Device
	addresses []link.Address
	defaults  func(like netip.Addr) ([]int, error) // links of the default routes of a family; asked for only where it matters
}

// Bytes that the overlay adds to a packet: inner Ethernet 14, VXLAN 8, UDP 8 and the outer IP header 20 or 40 (RFC 7348, section 5).
const (
	overhead4 = 50
	overhead6 = 70
)

// The least MTU that pods can live with: IPv6 needs 1280 (RFC 8200, section 5); IPv4 hosts accept 576 (RFC 1122, 3.3.2).
const (
	leastMTU4 = 576
	leastMTU6 = 1280
)

// compileSelf derives everything from the configuration, the own Node object and the devices. Errors name object, field and value.
func compileSelf(cfg Config, own *cluster.Node, net network) (Self, error) {
	s := Self{
		Name: own.Name, Mode: cfg.Mode, Port: cfg.Port, VNI: cfg.VNI,
		GatewayMAC: GatewayMAC(own.Name), OverlayMAC: mac(own.Name, overlayRole),
	}
	ips := own.InternalIPs
	if len(cfg.NodeIPs) > 0 {
		ips = cfg.NodeIPs
	}
	if len(ips) == 0 {
		return Self{}, fmt.Errorf("node %s: status.addresses: no InternalIP: the kubelet has not reported one; set --node-ip to go without", own.Name)
	}
	s.OuterV6 = ips[0].Is6() // the primary family: that of the first address
	for _, ip := range ips {
		if to := pick(ip, &s.Node4, &s.Node6); !to.IsValid() {
			*to = ip
		}
	}
	if err := s.takeCIDRs(own, ips); err != nil {
		return Self{}, err
	}
	if err := s.findUnderlay(cfg.Devices, net); err != nil {
		return Self{}, fmt.Errorf("node %s: %w", own.Name, err)
	}
	if err := s.decideMTU(cfg.MTU); err != nil {
		return Self{}, fmt.Errorf("node %s: %w", own.Name, err)
	}
	return s, nil
}

// takeCIDRs checks the pod CIDRs and derives the node's own addresses in them.
func (s *Self) takeCIDRs(own *cluster.Node, ips []netip.Addr) error {
	if len(own.PodCIDRs) == 0 {
		return fmt.Errorf("node %s: spec.podCIDRs: empty: run kube-controller-manager with --allocate-node-cidrs, or set the field", own.Name)
	}
	for _, p := range own.PodCIDRs {
		if p.Addr().BitLen()-p.Bits() < 2 {
			return fmt.Errorf("node %s: spec.podCIDRs: %s: too small: two addresses are the node's own and none is left for pods", own.Name, p)
		}
		for _, ip := range ips {
			if p.Contains(ip) {
				return fmt.Errorf("node %s: spec.podCIDRs: %s: contains the node's address %s", own.Name, p, ip)
			}
		}
		overlay := pick(p.Addr(), &s.Overlay4, &s.Overlay6)
		if overlay.IsValid() {
			return fmt.Errorf("node %s: spec.podCIDRs: %s: second one of its family", own.Name, p)
		}
		*overlay = p.Addr()
		*pick(p.Addr(), &s.SNAT4, &s.SNAT6) = p.Addr().Next()
		s.PodCIDRs = append(s.PodCIDRs, p)
	}
	slices.SortFunc(s.PodCIDRs, netip.Prefix.Compare) // IPv4 sorts first
	return nil
}

// findUnderlay finds the device that outer packets leave by: the first of the named ones that is there; without names the one that has the
// node's address or, where that is the loopback device (nodes that announce a host route), the default route's with the smallest MTU.
func (s *Self) findUnderlay(named []string, net network) error {
	byIndex := map[int]link.Device{}
	for _, d := range net.devices {
		byIndex[d.Index] = d
	}
	for _, a := range net.addresses {
		if a.Prefix.Addr() == s.Outer() {
			s.Underlay = byIndex[a.Link]
		}
	}
	if s.Underlay.Index == 0 {
		return fmt.Errorf("InternalIP %s: on no device of this host: set --node-ip to an address that is", s.Outer())
	}
	if len(named) > 0 {
		d, err := firstOf(named, net.devices)
		if err != nil {
			return err
		}
		s.Underlay = d
	} else if s.Underlay.Loopback {
		links, err := net.defaults(s.Outer())
		if err != nil {
			return err
		}
		var best link.Device
		for _, i := range links {
			if d := byIndex[i]; best.Index == 0 || d.MTU < best.MTU {
				best = d
			}
		}
		if best.Index == 0 {
			return fmt.Errorf("InternalIP %s: on device %s, and there is no default route: set --node-ip to the address of an uplink", s.Outer(), s.Underlay.Name)
		}
		s.Underlay = best
	}
	for _, a := range net.addresses {
		if a.Link == s.Underlay.Index && !a.Prefix.IsSingleIP() && !a.Prefix.Addr().IsLinkLocalUnicast() {
			s.OnLink = append(s.OnLink, a.Prefix.Masked())
		}
	}
	slices.SortFunc(s.OnLink, netip.Prefix.Compare)
	s.OnLink = slices.Compact(s.OnLink)
	return nil
}

// firstOf returns the first named device that is there: nodes of several kinds may share one list.
func firstOf(named []string, devices []link.Device) (link.Device, error) {
	for _, name := range named {
		i := slices.IndexFunc(devices, func(d link.Device) bool { return d.Name == name })
		if i < 0 {
			continue
		}
		if d := devices[i]; !d.Loopback && d.Name != Device {
			return d, nil
		}
		return link.Device{}, fmt.Errorf("--devices %s: leads to no other node: name an uplink", name)
	}
	return link.Device{}, fmt.Errorf("--devices %s: no such device on this host", strings.Join(named, ", "))
}

// decideMTU takes the configured MTU or the largest that fits the underlay.
func (s *Self) decideMTU(configured int) error {
	overhead := 0
	if s.Mode != Direct {
		overhead = overhead4
		if s.OuterV6 {
			overhead = overhead6
		}
	}
	most := min(s.Underlay.MTU, 65535) - overhead
	s.MTU = most
	if configured != 0 {
		s.MTU = configured
	}
	least := leastMTU4
	if s.Overlay6.IsValid() {
		least = leastMTU6
	}
	switch {
	case configured > most:
		return fmt.Errorf("--mtu %d: device %s has %d bytes and the way to other nodes needs %d of them: at most %d",
			configured, s.Underlay.Name, s.Underlay.MTU, overhead, most)
	case s.MTU < least:
		return fmt.Errorf("MTU %d on device %s: leaves pods %d bytes, they need %d", s.Underlay.MTU, s.Underlay.Name, s.MTU, least)
	}
	return nil
}

// pick returns the one of two fields that has the address's family.
func pick(a netip.Addr, v4, v6 *netip.Addr) *netip.Addr {
	if a.Is4() {
		return v4
	}
	return v6
}
