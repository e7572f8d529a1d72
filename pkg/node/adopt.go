// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"slices"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/link"
)

// adopt reads what earlier agents left, once all Nodes are known, and marks every node: what is right already is not written again, what
// belongs to no node goes after everything else is written.
func (r *run) adopt() error {
	peers, err := r.table.List()
	if err != nil {
		return err
	}
	ids, err := r.ids.List(bpf.IDPeer)
	if err != nil {
		return err
	}
	routes, err := r.nl.Routes()
	if err != nil {
		return err
	}
	names := map[bpf.Signature]string{}
	for name := range r.nodes {
		names[bpf.Sign(name)] = name
		r.mark([]string{name}, false)
	}
	known := map[bpf.ID]string{}
	for _, id := range ids {
		if name, ok := names[id.Signature]; ok {
			known[id.ID] = name
			continue
		}
		r.left = append(r.left, func() error {
			return errors.Join(r.table.Delete(id.ID.ID), r.ids.ReleaseSignature(bpf.IDPeer, id.Signature))
		})
	}
	for _, p := range peers {
		name, ok := known[bpf.ID{ID: p.ID, Incarnation: p.Incarnation}]
		if ok {
			r.written[name] = written{peer: p}
			continue
		}
		// After puts: one of them may have been given this id, and then it stands there with its own incarnation.
		r.left = append(r.left, func() error {
			for _, w := range r.written {
				if w.peer.ID == p.ID {
					return nil
				}
			}
			return r.table.Delete(p.ID)
		})
	}
	r.claims.favour(r.written)
	overlay := r.Self().OverlayIndex
	for _, route := range routes {
		if ours(route, overlay) && !route.Unreachable {
			r.routes[route.Dst] = route
			r.stale[route.Dst] = true
		}
	}
	r.adopted = true
	return nil
}

// favour settles claims of equal age for the nodes that have them in the kernel.
func (c *claims) favour(had map[string]written) {
	for name, w := range had {
		for _, p := range w.peer.CIDRs {
			if slices.ContainsFunc(c.of[name], func(n claim) bool { return n.prefix == p }) && c.held[p] != name {
				c.held[p], c.moved[p] = name, true
				c.decide(p)
			}
		}
	}
}

// look compares this node's own facts and devices with what they should be, and repairs them. A Node object or a device that asks for the
// impossible changes nothing and is a condition of this node.
func (r *run) look(e link.Event) error {
	old := r.Self()
	if e != everything && r.intact(old) {
		if e&link.RouteEvent == 0 {
			return nil
		}
		return r.repairRoutes(old)
	}
	s, err := r.Setup(r.own)
	r.condition(r.cfg.Name, err)
	if err != nil {
		return err
	}
	if s.Equal(old) {
		return r.repairRoutes(s)
	}
	r.log.Info("own node changed", "old", old, "new", s)
	r.claimOwn(s)
	for name, v := range r.nodes {
		r.learn(name, v) // what is on the same link, and which CIDRs may be, depends on the own node
	}
	if !s.sameForOthers(old) {
		r.cfg.Changed(s)
	}
	if !r.adopted {
		return nil
	}
	return errors.Join(r.repairRoutes(s), r.write())
}

// everything is what look is asked for without any message.
const everything = link.LinkEvent | link.AddressEvent | link.RouteEvent

// intact says whether devices and addresses still lead to the same facts and the overlay device is as Setup left it. It costs two short
// dumps and is asked whenever a pod comes or goes.
func (r *run) intact(old Self) bool {
	net, err := r.network()
	if err != nil {
		return false
	}
	s, err := compileSelf(r.cfg, r.own, net)
	if err != nil {
		return false
	}
	s.OverlayIndex = old.OverlayIndex
	if !s.Equal(old) {
		return false
	}
	if s.Mode == Direct {
		return true
	}
	i := slices.IndexFunc(net.devices, func(d link.Device) bool { return d.Index == old.OverlayIndex })
	if i < 0 {
		return false
	}
	d := net.devices[i]
	if !d.Up || !d.NoARP || d.MTU != s.MTU || string(d.MAC) != string(s.OverlayMAC[:]) {
		return false
	}
	on := 0
	for _, a := range net.addresses {
		if a.Link == d.Index {
			on++
			if a.Prefix.Addr() != s.Overlay4 && a.Prefix.Addr() != s.Overlay6 {
				return false
			}
		}
	}
	return on == len(s.PodCIDRs)
}

// repairRoutes puts back routes that somebody took away, and takes away routes with our mark that nobody asked for.
func (r *run) repairRoutes(s Self) error {
	have, err := r.nl.Routes()
	if err != nil {
		return err
	}
	errs := []error{r.fence(s)}
	if !r.adopted {
		return errors.Join(errs...)
	}
	for _, route := range have {
		if !ours(route, s.OverlayIndex) || route.Unreachable {
			continue
		}
		if _, wanted := r.routes[route.Dst]; !wanted {
			errs = append(errs, r.nl.DeleteRoute(route))
			r.countRepair("route nobody asked for", "old", route)
		}
	}
	there := map[link.Route]bool{}
	for _, route := range have {
		there[route] = true
	}
	for dst, route := range r.routes {
		if _, coming := r.dirty[r.claims.held[dst]]; coming || there[route] || r.stale[dst] {
			continue
		}
		if err := r.nl.SetRoute(route); err != nil {
			errs = append(errs, err)
			continue
		}
		r.countRepair("route", "new", route)
	}
	return errors.Join(errs...)
}

// compare puts entries back that the table lost or that differ from what was written.
func (r *run) compare() error {
	if !r.adopted {
		return nil
	}
	have, err := r.table.List()
	if err != nil {
		return err
	}
	byID := map[uint32]bpf.Peer{}
	for _, p := range have {
		byID[p.ID] = p
	}
	var errs []error
	for name, w := range r.written {
		if samePeer(byID[w.peer.ID], w.peer) {
			continue
		}
		if err := r.table.Put(w.peer); err != nil {
			errs = append(errs, err)
			continue
		}
		r.countRepair("peer", "node", name, "old", byID[w.peer.ID], "new", w.peer)
	}
	return errors.Join(errs...)
}
