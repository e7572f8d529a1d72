// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/node"
)

// newNode makes the domain of peers and routes with the configured facts.
func (a *agent) newNode(nl *link.Handle, changed func(node.Self), cidrs func(node.CIDRs)) (*node.Node, error) {
	mode, err := node.ParseMode(a.config.RoutingMode)
	if err != nil {
		return nil, err
	}
	return node.New(node.Config{
		Name: a.config.NodeName, NodeIPs: a.config.NodeIPs, Devices: a.config.Devices, Mode: mode, MTU: a.config.MTU, Port: a.config.VXLANPort, VNI: a.config.VNI,
		Log: a.log.With("component", "node"), Changed: changed, CIDRs: cidrs,
	}, nl), nil
}

// checkOwn refuses an own Node whose pods would share addresses with Services: neither could be reached.
func (a *agent) checkOwn(own *cluster.Node) error {
	for _, pods := range own.PodCIDRs {
		for _, services := range a.config.ServiceCIDRs {
			if pods.Overlaps(services) {
				return fmt.Errorf("node %s: spec.podCIDRs: %s: overlaps --service-cidr %s", own.Name, pods, services)
			}
		}
	}
	return nil
}

// programConfig is what the programs are told of the own node when they are loaded.
func programConfig(c Config, self node.Self, hostCookie uint64) bpf.Config {
	return bpf.Config{
		Node4: self.Node4, Node6: self.Node6, Overlay4: self.Overlay4, Overlay6: self.Overlay6,
		Snat4: self.SNAT4, Snat6: self.SNAT6, MasqueradeAll: c.MasqueradeAll, Loopback: slices.Contains(c.NodePortAddresses, "localhost"),
		HostCookie: hostCookie, OverlayIfindex: uint32(self.OverlayIndex), OverlayMTU: uint32(self.MTU), VNI: self.VNI, OverlayPort: c.VXLANPort,
		GatewayMAC: self.GatewayMAC, OverlayMAC: self.OverlayMAC, SocketLB: c.SocketLB, OuterV6: self.OuterV6,
	}
}

// podSources returns the source addresses of the host's own traffic to its pods: the node's InternalIP, or its overlay address in a
// family that the node has no InternalIP of.
func podSources(self node.Self) (sources []netip.Addr) {
	for _, of := range [][2]netip.Addr{{self.Node4, self.Overlay4}, {self.Node6, self.Overlay6}} {
		switch {
		case !of[1].IsValid(): // no pods of this family
		case of[0].IsValid():
			sources = append(sources, of[0])
		default:
			sources = append(sources, of[1])
		}
	}
	return sources
}

// attachOverlay puts the overlay's programs on its device: by tcx, or by filters on a kernel that has none.
func attachOverlay(objects *bpf.Objects, veths *link.Veths, self node.Self) error {
	if self.OverlayIndex == 0 {
		return nil
	}
	err := objects.AttachOverlay(self.OverlayIndex)
	if !errors.Is(err, bpf.ErrNoTCX) {
		return err
	}
	from, to, err := objects.OverlayPrograms()
	if err != nil {
		return err
	}
	return veths.AttachFilters(self.OverlayIndex, link.Filters{FromPodFD: from.FD, FromPodID: from.ID, ToPodFD: to.FD, ToPodID: to.ID})
}

// podFilters returns what every pod's link carries.
func podFilters(objects *bpf.Objects) (link.Filters, error) {
	from, to, err := objects.PodPrograms()
	if err != nil {
		return link.Filters{}, err
	}
	return link.Filters{FromPodFD: from.FD, FromPodID: from.ID, ToPodFD: to.FD, ToPodID: to.ID}, nil
}
