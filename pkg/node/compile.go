// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/link"
)

// compileClaims says which pod CIDRs another node names and may have. One that holds an address of this node or of the node itself
// would send the overlay's own packets into the overlay, and is refused.
func compileClaims(s Self, n *cluster.Node) ([]claim, error) {
	var list []claim
	for _, p := range n.PodCIDRs {
		for _, ip := range append([]netip.Addr{s.Node4, s.Node6}, n.InternalIPs...) {
			if ip.IsValid() && p.Contains(ip) {
				return nil, nodeError(n, "spec.podCIDRs", "%s: contains the node address %s", p, ip)
			}
		}
		list = append(list, claim{prefix: p, node: n.Name, uid: n.UID, created: n.Created})
	}
	return list, nil
}

// compilePeer says how packets reach the pods of another node, whose CIDRs in force are given. The peer has no id yet. ok is false, without
// error, for a node that has no pods yet.
func compilePeer(s Self, n *cluster.Node, cidrs []netip.Prefix) (p bpf.Peer, routes []link.Route, ok bool, err error) {
	if len(cidrs) == 0 {
		return bpf.Peer{}, nil, false, nil
	}
	var v4, v6 netip.Addr
	for _, ip := range n.InternalIPs {
		if ip == s.Node4 || ip == s.Node6 {
			return bpf.Peer{}, nil, false, nodeError(n, "status.addresses", "InternalIP %s: is this node's own (%s)", ip, s.Name)
		}
		if to := pick(ip, &v4, &v6); !to.IsValid() {
			*to = ip
		}
	}
	outer, family := v4, "IPv4"
	if s.OuterV6 {
		outer, family = v6, "IPv6"
	}
	if !outer.IsValid() {
		return bpf.Peer{}, nil, false, nodeError(n, "status.addresses", "no %s InternalIP, and nodes talk over %s", family, family)
	}
	p = bpf.Peer{Node: outer, CIDRs: cidrs}
	for _, ip := range n.InternalIPs {
		if ip != outer {
			p.Sources = append(p.Sources, ip)
		}
	}
	mtu := s.MTU
	if n.MTU != 0 && n.MTU < mtu {
		mtu = n.MTU
		p.MTU = uint32(mtu)
	}
	if direct(s, cidrs, v4, v6) {
		p.Flags |= bpf.PeerDirect
	}
	for _, c := range cidrs {
		r := link.Route{Dst: c, MTU: mtu}
		switch {
		case p.Flags&bpf.PeerDirect == 0:
			r.Src = s.overlayAddr(c)
			if !r.Src.IsValid() {
				continue // no pods and no address of that family here
			}
			r.Link, r.Gateway, r.OnLink = s.OverlayIndex, *pick(c.Addr(), &nextHop4, &nextHop6), true
		default:
			hop := *pick(c.Addr(), &v4, &v6)
			if !onLink(s, hop) {
				continue // mode Direct: the network's routers know the way
			}
			r.Link, r.Gateway = s.Underlay.Index, hop
		}
		routes = append(routes, r)
	}
	return p, routes, true, nil
}

// direct decides per node, not per CIDR: a peer entry has one flag.
func direct(s Self, cidrs []netip.Prefix, v4, v6 netip.Addr) bool {
	if s.Mode != Auto {
		return s.Mode == Direct
	}
	return !slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return !onLink(s, *pick(c.Addr(), &v4, &v6)) })
}

func onLink(s Self, a netip.Addr) bool {
	return slices.ContainsFunc(s.OnLink, func(p netip.Prefix) bool { return p.Contains(a) })
}
