// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// learn takes a batch into what is known and returns the records that it touches, in order; the lock is held.
func (s *Proxy) learn(b cluster.Batch) (dirty []*record) {
	touch := func(r *record) {
		if r != nil && !r.dirty {
			r.dirty = true
			dirty = append(dirty, r)
		}
	}
	everything := false
	for _, c := range b.Changes {
		switch c.Kind {
		case cluster.ServiceKind:
			r := s.recordOf(c.Key)
			r.service, _ = c.Value.(*cluster.Service)
			touch(r)
		case cluster.SliceKind:
			old := s.slices[c.Key]
			slice, _ := c.Value.(*cluster.Slice)
			if slice == nil {
				delete(s.slices, c.Key)
			} else {
				s.slices[c.Key] = slice
			}
			touch(s.setSlice(old, slice))
			if old != nil && slice != nil && old.Service != slice.Service {
				touch(s.records[cluster.Key{Namespace: old.Namespace, Name: old.Service}])
			}
		case cluster.NodeKind:
			node, _ := c.Value.(*cluster.Node)
			everything = s.setNode(c.Key.Name, node, touch) || everything
		}
	}
	for _, k := range b.Synced {
		s.synced[k] = true
	}
	if everything && s.open {
		return s.all()
	}
	return dirty
}

func (s *Proxy) recordOf(k cluster.Key) *record {
	r := s.records[k]
	if r == nil {
		r = &record{key: k}
		s.records[k] = r
	}
	return r
}

// setSlice replaces one slice by another in the records of their Services and returns the record that has it now, or had it.
func (s *Proxy) setSlice(old, slice *cluster.Slice) (r *record) {
	if old != nil && old.Service != "" {
		r = s.recordOf(cluster.Key{Namespace: old.Namespace, Name: old.Service})
		r.slices = slices.DeleteFunc(r.slices, func(x *cluster.Slice) bool { return x == old })
	}
	if slice != nil && slice.Service != "" {
		r = s.recordOf(cluster.Key{Namespace: slice.Namespace, Name: slice.Service})
		r.slices = append(r.slices, slice)
	}
	return r
}

// setNode takes a Node, or that it is gone, and touches the records whose endpoints have an address that became a node's or stopped to
// be one. True when the own zone changed: then every choice may.
func (s *Proxy) setNode(name string, node *cluster.Node, touch func(*record)) (everything bool) {
	old := s.nodes[name]
	if node == nil {
		delete(s.nodes, name)
	} else {
		s.nodes[name] = node
	}
	var before, after []netip.Addr
	if old != nil {
		before = old.InternalIPs
	}
	if node != nil {
		after = node.InternalIPs
	}
	for _, a := range after {
		s.hosts[a]++
		if s.hosts[a] == 1 && !slices.Contains(before, a) {
			for _, r := range s.byHost[a] {
				touch(r)
			}
		}
	}
	for _, a := range before {
		if s.hosts[a]--; s.hosts[a] == 0 {
			delete(s.hosts, a)
			for _, r := range s.byHost[a] {
				touch(r)
			}
		}
	}
	if name != s.cfg.Node {
		return false
	}
	s.nodeSeen = s.nodeSeen || node != nil
	oldZone, zone := "", ""
	if old != nil {
		oldZone = old.Zone
	}
	if node != nil {
		zone = node.Zone
	}
	return oldZone != zone
}

// indexHosts notes which endpoints of a record may be on a host network: all but those with an address of their node's pod CIDRs, which
// are nearly all. It spares a Node's change a look at every endpoint of the cluster.
func (s *Proxy) indexHosts(r *record) {
	for _, a := range r.hosts {
		rest := slices.DeleteFunc(s.byHost[a], func(x *record) bool { return x == r })
		if len(rest) == 0 {
			delete(s.byHost, a)
		} else {
			s.byHost[a] = rest
		}
	}
	r.hosts = nil
	if r.service == nil {
		return
	}
	for _, slice := range r.slices {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if n := s.nodes[e.Node]; n != nil && slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(e.Addr) }) {
				continue
			}
			if !e.Addr.IsValid() || slices.Contains(s.byHost[e.Addr], r) {
				continue
			}
			s.byHost[e.Addr] = append(s.byHost[e.Addr], r)
			r.hosts = append(r.hosts, e.Addr)
		}
	}
}
