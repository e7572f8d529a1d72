// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Vxlan describes a flow-based VXLAN device: a program gives every packet its tunnel key, so the device itself has no peer, no network
// identifier and no learning. It takes no part in ARP or neighbour discovery and has no link-local address.
type Vxlan struct {
	Name          string
	Port          uint16 // UDP, host byte order
	MTU           int    // largest inner packet from its IP header on, in bytes
	MAC           net.HardwareAddr
	ZeroChecksum6 bool // receive outer IPv6 UDP with checksum 0 too
}

// ErrPortTaken says that the UDP port of the overlay belongs to somebody else in this namespace.
var ErrPortTaken = errors.New("port is taken")

// vxlanAge is how long an entry of the forwarding table would live, in seconds: the kernel's default, which it also takes for 0. A flow-based
// device that does not learn has no entries.
const vxlanAge = 300

// Attribute numbers of linux/if_link.h that the netlink package does not name.
const (
	vxlanGPE        = 27
	vxlanTTLInherit = 28
	vxlanVNIFilter  = 30
)

// vxlanForeign are attributes that change what the device does with a packet and that ours never has.
var vxlanForeign = []uint16{
	nl.IFLA_VXLAN_GROUP, nl.IFLA_VXLAN_GROUP6, nl.IFLA_VXLAN_LINK, nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_LOCAL6, nl.IFLA_VXLAN_LIMIT,
	nl.IFLA_VXLAN_REMCSUM_TX, nl.IFLA_VXLAN_REMCSUM_RX, nl.IFLA_VXLAN_GBP, nl.IFLA_VXLAN_REMCSUM_NOPARTIAL, vxlanGPE, vxlanTTLInherit,
	vxlanVNIFilter,
}

// SetVxlan makes the device, or brings the one of that name to the description. What the kernel cannot change in place (everything
// that VXLAN itself knows) is compared attribute by attribute, and a device that differs is made anew: made is true then, the index is
// another one, and programs on the old device are gone with it. A link of the name that is no VXLAN device is not Fairlead's and is an
// error, and so is another VXLAN device on the port: error ErrPortTaken.
func (h *Handle) SetVxlan(v Vxlan) (d Device, made bool, err error) {
	d, made, err = h.setVxlan(v)
	if err != nil {
		return Device{}, false, fmt.Errorf("set up VXLAN device %s: %w", v.Name, err)
	}
	return d, made, nil
}

func (h *Handle) setVxlan(v Vxlan) (Device, bool, error) {
	if err := h.vxlanPortFree(v); err != nil {
		return Device{}, false, err
	}
	d, ok, err := h.Device(v.Name)
	if err != nil {
		return Device{}, false, err
	}
	if ok && d.Type != "vxlan" {
		return Device{}, false, fmt.Errorf("the name belongs to a %s link that is not Fairlead's: rename or delete it", d.Type)
	}
	if ok {
		have, err := h.vxlanAttributes(d.Index)
		if err != nil {
			return Device{}, false, err
		}
		if vxlanDifference(v, have) != "" {
			if err := h.DeleteDevice(v.Name); err != nil {
				return Device{}, false, err
			}
			ok = false
		}
	}
	if !ok {
		if err := h.nl.LinkAdd(v.netlink()); err != nil {
			return Device{}, false, err
		}
	}
	d, err = h.tuneVxlan(v)
	if err != nil && !ok {
		err = errors.Join(err, h.DeleteDevice(v.Name)) // no half-made device stays behind
	}
	return d, !ok, err
}

// tuneVxlan sets what can change while the device lives.
func (h *Handle) tuneVxlan(v Vxlan) (Device, error) {
	l, err := h.nl.LinkByName(v.Name)
	if err != nil {
		return Device{}, err
	}
	a := l.Attrs()
	if a.MTU != v.MTU {
		if err := h.nl.LinkSetMTU(l, v.MTU); err != nil {
			return Device{}, fmt.Errorf("set MTU %d: %w", v.MTU, err)
		}
	}
	if a.HardwareAddr.String() != v.MAC.String() {
		if err := h.nl.LinkSetHardwareAddr(l, v.MAC); err != nil {
			return Device{}, fmt.Errorf("set MAC %s: %w", v.MAC, err)
		}
	}
	if a.RawFlags&unix.IFF_NOARP == 0 {
		if err := h.nl.LinkSetARPOff(l); err != nil {
			return Device{}, fmt.Errorf("turn ARP off: %w", err)
		}
	}
	// Before the device is up: 1 is "none", so the kernel makes no link-local address, solicits no router and reports no groups.
	if _, err := h.SetSysctl("1", "ipv6", "conf", v.Name, "addr_gen_mode"); err != nil && h.hasIPv6() {
		return Device{}, err
	}
	if a.RawFlags&unix.IFF_UP == 0 {
		if err := h.nl.LinkSetUp(l); errors.Is(err, unix.EADDRINUSE) {
			return Device{}, fmt.Errorf("UDP port %d: %w by another socket of this host: stop its owner or choose another port", v.Port, ErrPortTaken)
		} else if err != nil {
			return Device{}, fmt.Errorf("set up: %w", err)
		}
	}
	if l, err = h.nl.LinkByName(v.Name); err != nil {
		return Device{}, err
	}
	return deviceOf(l), nil
}

// hasIPv6 is false where the kernel was started with ipv6.disable=1.
func (h *Handle) hasIPv6() bool {
	_, err := h.Sysctl("ipv6", "conf", "all", "forwarding")
	return err == nil
}

// vxlanPortFree looks for another VXLAN device on the port. Link-up alone would say only EADDRINUSE, and one that is still down
// would fail later in our stead.
func (h *Handle) vxlanPortFree(v Vxlan) error {
	links, err := retry(h.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		other, ok := l.(*netlink.Vxlan)
		if ok && other.Name != v.Name && other.Port == int(v.Port) {
			return fmt.Errorf("UDP port %d: %w by VXLAN device %s: delete it (ip link delete %s) or choose another port",
				v.Port, ErrPortTaken, other.Name, other.Name)
		}
	}
	return nil
}

// netlink gives every attribute that vxlanDifference compares a value, so that the comparison never rests on a kernel's defaults.
func (v Vxlan) netlink() *netlink.Vxlan {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.Name, v.MTU, v.MAC
	return &netlink.Vxlan{
		LinkAttrs: attrs, FlowBased: true, Port: int(v.Port), Age: vxlanAge, UDPCSum: true, UDP6ZeroCSumRx: v.ZeroChecksum6,
	}
}

// vxlanDifference names the first attribute in which a device differs from the description; empty: none.
func vxlanDifference(v Vxlan, have map[uint16][]byte) string {
	flag := map[bool][]byte{false: {0}, true: {1}}
	want := []struct {
		name  string
		attr  uint16
		value []byte
	}{
		{"external", nl.IFLA_VXLAN_FLOWBASED, flag[true]},
		{"dstport", nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, v.Port)},
		{"id", nl.IFLA_VXLAN_ID, []byte{0, 0, 0, 0}},
		{"learning", nl.IFLA_VXLAN_LEARNING, flag[false]},
		{"ageing", nl.IFLA_VXLAN_AGEING, binary.NativeEndian.AppendUint32(nil, vxlanAge)},
		{"proxy", nl.IFLA_VXLAN_PROXY, flag[false]},
		{"rsc", nl.IFLA_VXLAN_RSC, flag[false]},
		{"l2miss", nl.IFLA_VXLAN_L2MISS, flag[false]},
		{"l3miss", nl.IFLA_VXLAN_L3MISS, flag[false]},
		{"ttl", nl.IFLA_VXLAN_TTL, flag[false]},
		{"tos", nl.IFLA_VXLAN_TOS, flag[false]},
		{"srcport", nl.IFLA_VXLAN_PORT_RANGE, []byte{0, 0, 0, 0}},
		{"udpcsum", nl.IFLA_VXLAN_UDP_CSUM, flag[true]},
		{"udp6zerocsumtx", nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, flag[false]},
		{"udp6zerocsumrx", nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, flag[v.ZeroChecksum6]},
	}
	for _, w := range want {
		if got, ok := have[w.attr]; !ok || !slices.Equal(got, w.value) {
			return w.name
		}
	}
	for _, attr := range vxlanForeign {
		// A flag that the kernel reports by presence has no bytes; one that it always reports is zero when off.
		if got, ok := have[attr]; ok && (len(got) == 0 || strings.Trim(string(got), "\x00") != "") {
			return fmt.Sprintf("attribute %d", attr)
		}
	}
	return ""
}

// vxlanAttributes reads what the kernel says of a VXLAN device, attribute number (linux/if_link.h) to value. The netlink package parses
// only some of them.
func (h *Handle) vxlanAttributes(index int) (map[uint16][]byte, error) {
	var replies [][]byte
	err := h.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(index)
		req.AddData(msg)
		var err error
		replies, err = req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read attributes: %w", err)
	}
	found := map[uint16][]byte{}
	for _, reply := range replies {
		if len(reply) < unix.SizeofIfInfomsg {
			continue
		}
		data := attribute(attribute(reply[unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO), nl.IFLA_INFO_DATA)
		attrs, err := nl.ParseRouteAttr(data)
		if err != nil {
			return nil, fmt.Errorf("parse attributes: %w", err)
		}
		for _, a := range attrs {
			found[a.Attr.Type&nl.NLA_TYPE_MASK] = a.Value
		}
	}
	return found, nil
}

// attribute returns the value of the first attribute of a sort; nil: none.
func attribute(b []byte, sort uint16) []byte {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK == sort {
			return a.Value
		}
	}
	return nil
}
