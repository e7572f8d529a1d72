// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
)

// Here is what the choice of endpoints depends on besides the Service: this node.
type Here struct {
	Node string                // own name; empty: no endpoint is local
	Zone string                // topology.kubernetes.io/zone of the own Node
	Host func(netip.Addr) bool // is it the address of a node?

	IgnoreExternalIPs bool // spec.externalIPs are not served: whoever may write Services could take any address with them (CVE-2020-8554)
}

// Port is what a service should be in the maps.
type Port struct {
	Key             Key
	Frontends       []Frontend         // without duplicates
	Backends        []Backend          // in order of address and port, without duplicates
	Cluster, Local  bpf.ServiceVerdict // what an empty set answers
	Flags           bpf.ServiceFlag
	AffinitySeconds uint32
	SourceRanges    []netip.Prefix // clients of its load balancer addresses, in order; none: everybody
}

// Frontend is an address, port and protocol that a service claims.
type Frontend struct {
	bpf.FrontendKey
	Class bpf.FrontendClass
}

// Backend is an endpoint of a service. Its flags say in which sets it is; every endpoint of the Service is a backend, in a set or not,
// so that flows which have it know whether it still serves.
type Backend struct {
	Addr  netip.AddrPort
	Flags bpf.BackendFlag
}

// Compile returns the services that a Service and its EndpointSlices make on this node, in order of ports and families, and what in
// them cannot be honoured, as sentences for people. The slices are those of the Service, in any order. The rules are kube-proxy's:
// serviceport.go, endpointslicecache.go and topology.go in pkg/proxy of kubernetes 1.36.
func Compile(s *cluster.Service, ofService []*cluster.Slice, here Here) (ports []Port, notes []string) {
	bySlice := slices.Clone(ofService)
	slices.SortFunc(bySlice, func(a, b *cluster.Slice) int { return strings.Compare(a.Name, b.Name) })
	if here.IgnoreExternalIPs && len(s.ExternalIPs) > 0 {
		notes = append(notes, "externalIPs are not served: --external-ips is false")
	}
	seen := map[Key]bool{}
	for _, port := range s.Ports {
		for _, family := range []Family{IPv4, IPv6} {
			// A family that the Service has no ClusterIP of is not served, whatever other addresses it has (proxier.go).
			if !slices.ContainsFunc(s.ClusterIPs, func(a netip.Addr) bool { return familyOf(a) == family }) {
				continue
			}
			key := Key{Key: cluster.Key{Namespace: s.Namespace, Name: s.Name}, Port: port.Name, Protocol: port.Protocol, Family: family}
			if seen[key] {
				notes = append(notes, fmt.Sprintf("port %q: another %s port has this name; this one is ignored", port.Name,
					protocolName(port.Protocol)))
				continue
			}
			seen[key] = true
			p := Port{Key: key}
			p.Frontends = frontends(s, port, family, here)
			endpoints := endpointsOf(bySlice, port, family)
			p.Backends, p.Cluster, p.Local = choose(endpoints, here)
			if s.InternalLocal {
				p.Flags |= bpf.ServiceInternalLocal
			}
			if s.ExternalLocal {
				p.Flags |= bpf.ServiceExternalLocal
			}
			p.AffinitySeconds = uint32(max(s.AffinitySeconds, 0))
			p.SourceRanges = sourceRanges(s, family)
			ports = append(ports, p)
		}
	}
	return ports, notes
}

// frontends returns what one port claims in one family, in order of the classes' precedence.
func frontends(s *cluster.Service, port cluster.ServicePort, family Family, here Here) []Frontend {
	var all []Frontend
	add := func(a netip.Addr, number uint16, class bpf.FrontendClass) {
		key := bpf.FrontendKey{Addr: a, Port: number, Protocol: uint8(port.Protocol)}
		if familyOf(a) == family && !slices.ContainsFunc(all, func(f Frontend) bool { return f.FrontendKey == key }) {
			all = append(all, Frontend{key, class})
		}
	}
	for _, a := range s.ClusterIPs {
		add(a, port.Port, bpf.FrontendClusterIP)
	}
	if port.NodePort != 0 {
		add(family.any(), port.NodePort, bpf.FrontendNodePort)
	}
	for _, a := range s.LoadBalancerIPs {
		add(a, port.Port, bpf.FrontendLoadBalancer)
	}
	for _, a := range s.ExternalIPs {
		if !here.IgnoreExternalIPs {
			add(a, port.Port, bpf.FrontendExternalIP)
		}
	}
	return all
}

// candidate is an endpoint with the number that the port has in its slice.
type candidate struct {
	*cluster.Endpoint
	addr netip.AddrPort
}

// endpointsOf returns the endpoints of a port in order of address and port, each once. A pod that got the address of a terminating one
// stands for both; what else is there twice is in two slices for a moment, and the one that is ready is kept.
func endpointsOf(bySlice []*cluster.Slice, port cluster.ServicePort, family Family) []candidate {
	var all []candidate
	for _, slice := range bySlice {
		if slice.IPv6 != (family == IPv6) {
			continue
		}
		for _, p := range slice.Ports {
			if p.Name != port.Name || p.Protocol != port.Protocol || p.Port == 0 {
				continue
			}
			all = slices.Grow(all, len(slice.Endpoints))
			for i := range slice.Endpoints {
				e := &slice.Endpoints[i]
				if e.Addr.IsValid() && familyOf(e.Addr) == family {
					all = append(all, candidate{e, netip.AddrPortFrom(e.Addr, p.Port)})
				}
			}
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return a.addr.Compare(b.addr) })
	once := all[:0]
	for _, c := range all {
		if len(once) == 0 || once[len(once)-1].addr != c.addr {
			once = append(once, c)
		} else if rank(c.Endpoint) > rank(once[len(once)-1].Endpoint) {
			once[len(once)-1] = c
		}
	}
	return once
}

// rank orders endpoints that have one address: the highest stands for all of them.
func rank(e *cluster.Endpoint) int {
	n := 0
	if !e.Terminating {
		n += 4
	}
	if e.Ready {
		n += 2
	}
	if e.Serving {
		n++
	}
	return n
}

// topology says which hints count.
type topology uint8

const (
	anywhere topology = iota
	sameNode
	sameZone
)

// topologyOf returns the hints that count: those that every ready endpoint has and that name this node, or this zone.
func topologyOf(endpoints []candidate, here Here) topology {
	ready, nodes, zones, toNode, toZone := false, true, true, false, false
	for _, e := range endpoints {
		if !e.Ready {
			continue
		}
		ready = true
		nodes = nodes && len(e.ForNodes) > 0
		zones = zones && len(e.ForZones) > 0
		toNode = toNode || slices.Contains(e.ForNodes, here.Node)
		toZone = toZone || slices.Contains(e.ForZones, here.Zone)
	}
	switch {
	case ready && nodes && toNode:
		return sameNode
	case ready && zones && toZone:
		return sameZone
	}
	return anywhere
}

// hinted says whether hints leave an endpoint to this node.
func (t topology) hinted(e *cluster.Endpoint, here Here) bool {
	switch t {
	case sameNode:
		return slices.Contains(e.ForNodes, here.Node)
	case sameZone:
		return slices.Contains(e.ForZones, here.Zone)
	}
	return true
}

// choose sorts endpoints into the cluster set and the local set and says what these answer when they are empty. Each set falls back
// to terminating endpoints that still serve, by itself and without regard to topology, when it has no ready one.
func choose(endpoints []candidate, here Here) (backends []Backend, clusterVerdict, localVerdict bpf.ServiceVerdict) {
	mode := topologyOf(endpoints, here)
	local := func(e *cluster.Endpoint) bool { return here.Node != "" && e.Node == here.Node }
	ready, readyLocal, usable := false, false, false
	for _, e := range endpoints {
		ready = ready || e.Ready
		readyLocal = readyLocal || e.Ready && local(e.Endpoint)
		usable = usable || e.Ready || e.Serving && e.Terminating
	}
	backends = make([]Backend, 0, len(endpoints))
	for _, e := range endpoints {
		b := Backend{Addr: e.addr}
		draining := e.Serving && e.Terminating
		// A pod that is published before it is ready gets new flows, so it must not lose them at once.
		if e.Serving || e.Ready {
			b.Flags |= bpf.BackendServing
		}
		if e.Ready && mode.hinted(e.Endpoint, here) || !ready && draining {
			b.Flags |= bpf.BackendCluster
		}
		if local(e.Endpoint) {
			b.Flags |= bpf.BackendLocal
			if e.Ready || !readyLocal && draining {
				b.Flags |= bpf.BackendInLocal
			}
		}
		if here.Host != nil && here.Host(e.Addr) {
			b.Flags |= bpf.BackendHost
		}
		backends = append(backends, b)
	}
	localVerdict = bpf.VerdictRefuse
	if usable {
		localVerdict = bpf.VerdictDrop // somewhere, but not here
	}
	return backends, bpf.VerdictRefuse, localVerdict
}
