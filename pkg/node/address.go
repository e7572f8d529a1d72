// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/link"
)

// NodePorts says on which of the node's addresses NodePorts answer: the value of --nodeport-addresses.
type NodePorts struct {
	Primary   bool           // the node's InternalIPs
	Localhost bool           // loopback addresses, for processes of the node itself
	All       bool           // every address that is not link-local
	CIDRs     []netip.Prefix // every address inside
}

// loopback are the addresses that never leave a host.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// ParseNodePorts reads the words primary, localhost and all, and CIDRs.
func ParseNodePorts(words []string) (NodePorts, error) {
	var n NodePorts
	for _, w := range words {
		switch w {
		case "primary":
			n.Primary = true
		case "localhost":
			n.Localhost = true
		case "all":
			n.All = true
		default:
			p, err := netip.ParsePrefix(w)
			switch {
			case err != nil:
				return NodePorts{}, fmt.Errorf("%q is neither primary, localhost, all nor a CIDR", w)
			case p != p.Masked():
				return NodePorts{}, fmt.Errorf("%s has address bits behind its length, meant is %s", p, p.Masked())
			case p.Addr().Is4In6() || slices.ContainsFunc(loopback, func(l netip.Prefix) bool { return l.Bits() <= p.Bits() && l.Overlaps(p) }):
				return NodePorts{}, fmt.Errorf("%s holds no address that other machines use: for loopback addresses say localhost", p)
			}
			n.CIDRs = append(n.CIDRs, p)
		}
	}
	return n, nil
}

// accepts says whether NodePorts answer on an address of the node; primary: it is one of its InternalIPs.
func (n NodePorts) accepts(a netip.Addr, primary bool) bool {
	return n.Primary && primary || n.All && !a.IsLinkLocalUnicast() ||
		slices.ContainsFunc(n.CIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// fronts is how traffic from other machines finds the node's Services: the addresses that answer, and the devices that carry the programs
// for it.
type fronts struct {
	addresses map[netip.Addr]bpf.NodeAddressFlag
	devices   map[int]bpf.NetDevice // by index
}

// compileFronts derives both from the devices and addresses of the host. Every address of a device that is not Fairlead's is one of the
// node's, its InternalIPs are wherever they sit, and loopback addresses never are. A device carries the programs when it has an
// InternalIP or an address that NodePorts answer on, when it leads to other nodes, or when it is named; the loopback device never.
func compileFronts(cfg FrontConfig, s Self, net network) fronts {
	f := fronts{addresses: map[netip.Addr]bpf.NodeAddressFlag{}, devices: map[int]bpf.NetDevice{}}
	enter := func(a netip.Addr) (carries bool) {
		if a.IsLoopback() {
			return false
		}
		primary := a == s.Node4 || a == s.Node6
		flags := bpf.NodeAddressLocal
		if cfg.NodePorts.accepts(a, primary) {
			flags |= bpf.NodeAddressNodePort
		}
		f.addresses[a] = flags
		return primary || flags&bpf.NodeAddressNodePort != 0
	}
	for _, a := range []netip.Addr{s.Node4, s.Node6} {
		if a.IsValid() {
			enter(a)
		}
	}
	for _, d := range net.devices {
		if d.Loopback || d.Name == Device || cfg.Pod(d.Name) {
			continue
		}
		carries := d.Index == s.Underlay.Index || slices.Contains(cfg.Devices, d.Name)
		var on []link.Address
		for _, a := range net.addresses {
			if a.Link == d.Index {
				carries = enter(a.Prefix.Addr()) || carries
				on = append(on, a)
			}
		}
		if carries {
			f.devices[d.Index] = bpf.NetDevice{Addr4: lasting(on, s.Node4, true), Addr6: lasting(on, s.Node6, false)}
		}
	}
	return f
}

// lasting chooses what a device's traffic of one family may come from: the InternalIP, else the first address that stays; invalid: there
// is none but link-local ones.
func lasting(on []link.Address, internal netip.Addr, v4 bool) (best netip.Addr) {
	second := true
	for _, a := range on {
		switch ip := a.Prefix.Addr(); {
		case ip == internal:
			return ip
		case ip.Is4() != v4 || ip.IsLinkLocalUnicast():
		case !best.IsValid() || second && !a.Secondary:
			best, second = ip, a.Secondary
		}
	}
	return best
}
