// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
)

// world is everything that a source may say.
type world struct {
	node     string
	nodes    map[string]*cluster.Node
	services map[cluster.Key]*cluster.Service
	slices   map[cluster.Key]*cluster.Slice
}

func newWorld(node string) *world {
	return &world{node, map[string]*cluster.Node{}, map[cluster.Key]*cluster.Service{}, map[cluster.Key]*cluster.Slice{}}
}

func (w *world) apply(b cluster.Batch) {
	for _, c := range b.Changes {
		switch v := c.Value.(type) {
		case *cluster.Node:
			w.nodes[c.Key.Name] = v
		case *cluster.Service:
			w.services[c.Key] = v
		case *cluster.Slice:
			w.slices[c.Key] = v
		case nil:
			switch c.Kind {
			case cluster.NodeKind:
				delete(w.nodes, c.Key.Name)
			case cluster.ServiceKind:
				delete(w.services, c.Key)
			case cluster.SliceKind:
				delete(w.slices, c.Key)
			}
		}
	}
}

// all returns the world as a source lists it.
func (w *world) all() cluster.Batch {
	var b cluster.Batch
	for k, v := range w.nodes {
		b.Changes = append(b.Changes, cluster.Change{Kind: cluster.NodeKind, Key: cluster.Key{Name: k}, Value: v})
	}
	for k, v := range w.services {
		b.Changes = append(b.Changes, cluster.Change{Kind: cluster.ServiceKind, Key: k, Value: v})
	}
	for k, v := range w.slices {
		b.Changes = append(b.Changes, cluster.Change{Kind: cluster.SliceKind, Key: k, Value: v})
	}
	slices.SortFunc(b.Changes, func(a, b cluster.Change) int {
		return strings.Compare(fmt.Sprint(a.Kind, a.Key), fmt.Sprint(b.Kind, b.Key))
	})
	b.Synced = []cluster.Kind{cluster.NodeKind, cluster.ServiceKind, cluster.SliceKind}
	return b
}

// expected is what the maps should say of a world.
type expected struct {
	services  map[Key]outcome
	owner     map[bpf.FrontendKey]Key
	frontends map[bpf.FrontendKey]outcome
	ips       map[netip.Addr]uint32
}

// oracle says it by the rules as kube-proxy's sources tell them, one at a time and without regard to cost. It shares no code with
// Compile.
func (w *world) oracle() expected {
	e := expected{map[Key]outcome{}, map[bpf.FrontendKey]Key{}, map[bpf.FrontendKey]outcome{}, map[netip.Addr]uint32{}}
	rank := map[bpf.FrontendKey]string{} // of the owner so far; the lowest string wins
	for k, svc := range w.services {
		for _, ip := range svc.ClusterIPs {
			if len(svc.Ports) > 0 {
				e.ips[ip]++
			}
			for _, port := range svc.Ports {
				key := Key{Key: k, Port: port.Name, Protocol: port.Protocol, Family: IPv4}
				if ip.Is6() {
					key.Family = IPv6
				}
				e.services[key] = w.outcome(svc, port, ip.Is6())
				want := func(class int, a netip.Addr, number uint16) {
					if a.Is6() != ip.Is6() || number == 0 {
						return
					}
					f := bpf.FrontendKey{Addr: a, Port: number, Protocol: uint8(port.Protocol)}
					r := fmt.Sprintf("%d %020d %s %s %s %s", class, svc.Created.Unix(), svc.UID, k.Namespace, k.Name, port.Name)
					if have, ok := rank[f]; !ok || r < have {
						rank[f], e.owner[f] = r, key
					}
				}
				want(0, ip, port.Port)
				for _, a := range svc.LoadBalancerIPs {
					want(1, a, port.Port)
				}
				for _, a := range svc.ExternalIPs {
					want(2, a, port.Port)
				}
				if ip.Is6() {
					want(3, netip.MustParseAddr("::"), port.NodePort)
				} else {
					want(3, netip.MustParseAddr("0.0.0.0"), port.NodePort)
				}
			}
		}
	}
	for f, key := range e.owner {
		e.frontends[f] = e.services[key]
	}
	return e
}

func (w *world) outcome(svc *cluster.Service, port cluster.ServicePort, v6 bool) outcome {
	endpoints := map[string]cluster.Endpoint{}
	for _, name := range sortedKeys(w.slices) {
		slice := w.slices[name]
		if slice.Namespace != svc.Namespace || slice.Service != svc.Name || slice.IPv6 != v6 {
			continue
		}
		for _, sp := range slice.Ports {
			if sp.Name != port.Name || sp.Protocol != port.Protocol {
				continue
			}
			for _, ep := range slice.Endpoints {
				at := netip.AddrPortFrom(ep.Addr, sp.Port).String()
				old, twice := endpoints[at]
				better := !ep.Terminating && old.Terminating ||
					ep.Terminating == old.Terminating && (ep.Ready && !old.Ready || ep.Ready == old.Ready && ep.Serving && !old.Serving)
				if !twice || better {
					endpoints[at] = ep
				}
			}
		}
	}
	zone := ""
	if n := w.nodes[w.node]; n != nil {
		zone = n.Zone
	}
	ready := filter(endpoints, func(ep cluster.Endpoint) bool { return ep.Ready })
	allNode, allZone := len(ready) > 0, len(ready) > 0
	for _, ep := range ready {
		allNode = allNode && len(ep.ForNodes) > 0
		allZone = allZone && len(ep.ForZones) > 0
	}
	forNode := filter(ready, func(ep cluster.Endpoint) bool { return slices.Contains(ep.ForNodes, w.node) })
	forZone := filter(ready, func(ep cluster.Endpoint) bool { return slices.Contains(ep.ForZones, zone) })
	draining := filter(endpoints, func(ep cluster.Endpoint) bool { return ep.Serving && ep.Terminating })
	local := func(ep cluster.Endpoint) bool { return ep.Node == w.node }

	inCluster := ready
	switch {
	case allNode && len(forNode) > 0:
		inCluster = forNode
	case allZone && len(forZone) > 0:
		inCluster = forZone
	}
	if len(inCluster) == 0 {
		inCluster = draining
	}
	inLocal := filter(ready, local)
	if len(inLocal) == 0 {
		inLocal = filter(draining, local)
	}
	verdict := "refuse"
	if len(ready)+len(draining) > 0 {
		verdict = "drop"
	}
	var flags bpf.ServiceFlag
	if svc.InternalLocal {
		flags |= bpf.ServiceInternalLocal
	}
	if svc.ExternalLocal {
		flags |= bpf.ServiceExternalLocal
	}
	clients := map[string]bool{}
	for _, r := range svc.SourceRanges {
		if r.Addr().Is6() == v6 {
			clients[r.String()] = true
		}
	}
	who := strings.Join(slices.Sorted(maps.Keys(clients)), " ")
	if who == "" {
		who = "everybody"
	}
	return outcome{members(inCluster, "refuse"), members(inLocal, verdict), config{flags, svc.AffinitySeconds}, who}
}

func filter(all map[string]cluster.Endpoint, keep func(cluster.Endpoint) bool) map[string]cluster.Endpoint {
	some := map[string]cluster.Endpoint{}
	for k, ep := range all {
		if keep(ep) {
			some[k] = ep
		}
	}
	return some
}

func members(set map[string]cluster.Endpoint, verdict string) string {
	if len(set) == 0 {
		return verdict
	}
	var all []string
	for k := range set {
		all = append(all, k)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func sortedKeys[V any](m map[cluster.Key]V) []cluster.Key {
	var keys []cluster.Key
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b cluster.Key) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	return keys
}
