// SPDX-License-Identifier: Apache-2.0

package bpf

import "net/netip"

// Config is what the programs know from the moment they are loaded (bpf/lib/config.h). It is frozen: a change is a new Open, which
// updates the links in place.
type Config struct {
	Node4, Node6           netip.Addr // InternalIP of the own node per family; the zero Addr without the family
	Overlay4, Overlay6     netip.Addr // first address of the own pod CIDR per family: on the VXLAN device
	Snat4, Snat6           netip.Addr // second address: the source that others' traffic to pods gets
	HostCookie             uint64     // network namespace cookie of the node
	OverlayIfindex         uint32     // the flow-based VXLAN device; 0: none
	OverlayMTU             uint32     // largest inner packet from its IP header on, in bytes
	OverlayPort            uint16     // UDP port of the overlay's outer packets
	VNI                    uint32     // VXLAN network identifier, 24 bits
	GatewayMAC             [6]byte    // host side of every pod's veth
	OverlayMAC             [6]byte    // the VXLAN device
	SocketLB               bool       // sock.c chooses backends at the system call
	OuterV6                bool       // nodes talk over IPv6: the outer header is IPv6
	MasqueradeAll          bool       // what is sent to a ClusterIP always gets the node's source
	Loopback               bool       // NodePorts answer on the node's loopback addresses
	flowBuckets, flowSlots uint32     // follow from the pinned flow table
}

// layout returns the C struct.
func (c Config) layout() LayoutConfig {
	l := LayoutConfig{
		HostCookie:     c.HostCookie,
		OverlayIfindex: c.OverlayIfindex,
		OverlayMtu:     c.OverlayMTU,
		Vni:            c.VNI,
		OverlayPort:    portOf(c.OverlayPort),
		FlowBuckets:    c.flowBuckets,
		FlowSlots:      c.flowSlots,
		GatewayMac:     c.GatewayMAC,
		OverlayMac:     c.OverlayMAC,
		SocketLb:       flag(c.SocketLB),
		OuterV6:        flag(c.OuterV6),
		MasqueradeAll:  flag(c.MasqueradeAll),
		Loopback:       flag(c.Loopback),
	}
	l.Node4.Bytes = addrOf(c.Node4).Bytes
	l.Node6.Bytes = addrOf(c.Node6).Bytes
	l.Overlay4.Bytes = addrOf(c.Overlay4).Bytes
	l.Overlay6.Bytes = addrOf(c.Overlay6).Bytes
	l.Snat4.Bytes = addrOf(c.Snat4).Bytes
	l.Snat6.Bytes = addrOf(c.Snat6).Bytes
	return l
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
