// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/node"
)

// newFront makes what follows the node's addresses and the devices that lead to other machines.
func (a *agent) newFront(nl *link.Handle, nodes *node.Node, objects *bpf.Objects, veths *link.Veths) (*node.Front, error) {
	ports, err := node.ParseNodePorts(a.config.NodePortAddresses)
	if err != nil {
		return nil, err
	}
	return node.NewFront(node.FrontConfig{
		NodePorts: ports, Devices: a.config.Devices, Pod: cni.IsLinkName, Self: nodes.Self, Log: a.log.With("component", "front"),
	}, nl, objects.NodeAddresses(), objects.NetDevices(), netPrograms{objects, veths}), nil
}

// netFilters are the names of the filters that take the place of tcx links on devices that lead to other machines.
func netFilters() link.FilterNames { return link.FilterNames{From: "from_net", To: "to_net"} }

// netPrograms puts net.c's programs on devices: by tcx, or by filters on a kernel that has none.
type netPrograms struct {
	objects *bpf.Objects
	veths   *link.Veths
}

func (p netPrograms) Attach(ifindex int) error {
	err := p.objects.AttachNet(ifindex)
	if !errors.Is(err, bpf.ErrNoTCX) {
		return err
	}
	f, err := p.filters()
	if err != nil {
		return err
	}
	return p.veths.AttachNamed(ifindex, f, netFilters())
}

func (p netPrograms) Detach(ifindex int) error {
	return errors.Join(p.objects.DetachNet(ifindex), p.veths.RemoveFilters(ifindex, netFilters()))
}

// Attached looks for links, and for filters on the devices that an entry was made for.
func (p netPrograms) Attached() (map[int]bool, error) {
	all, err := p.objects.NetLinks()
	if err != nil {
		return nil, err
	}
	f, err := p.filters()
	if err != nil {
		return nil, err
	}
	entered, err := p.objects.NetDevices().All()
	if err != nil {
		return nil, err
	}
	for ifindex := range entered {
		if _, linked := all[ifindex]; linked {
			continue
		}
		err := p.veths.VerifyFilters(ifindex, f)
		all[ifindex] = err == nil
		if err != nil && !errors.Is(err, link.ErrFilter) && !errors.Is(err, link.ErrNoLink) {
			return nil, err
		}
	}
	return all, nil
}

func (p netPrograms) filters() (link.Filters, error) {
	from, to, err := p.objects.NetPrograms()
	if err != nil {
		return link.Filters{}, err
	}
	return link.Filters{FromPodFD: from.FD, FromPodID: from.ID, ToPodFD: to.FD, ToPodID: to.ID}, nil
}

// removeNet takes the filters off every device; links go with their pins.
func removeNet(nl *link.Handle) error {
	devices, err := nl.Devices()
	if err != nil {
		return err
	}
	veths, err := link.OpenVeths()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range devices {
		errs = append(errs, veths.RemoveFilters(d.Index, netFilters()))
	}
	return errors.Join(append(errs, veths.Close())...)
}
