// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// selectors makes EndpointSlices for Services that have a selector, as the EndpointSlice controller of a cluster does: one slice for each family and
// each set of port numbers. A change costs the Services of its namespace.
type selectors struct {
	node      string // own node
	addresses Addresses

	nodes    map[string]*cluster.Node
	pods     map[string]map[string]*cluster.Pod     // by namespace
	services map[string]map[string]*cluster.Service // by namespace; with selectors only
	given    map[cluster.Key][]netip.Addr           // by ADD, to pods of the own node
	slices   map[cluster.Key]map[string]*cluster.Slice
	dirty    map[cluster.Key]bool // Services
}

func newSelectors(node string, a Addresses) *selectors {
	return &selectors{
		node: node, addresses: a, nodes: map[string]*cluster.Node{}, pods: map[string]map[string]*cluster.Pod{},
		services: map[string]map[string]*cluster.Service{}, given: map[cluster.Key][]netip.Addr{},
		slices: map[cluster.Key]map[string]*cluster.Slice{}, dirty: map[cluster.Key]bool{},
	}
}

// note takes a change of a manifest.
func (s *selectors) note(c cluster.Change) {
	switch c.Kind {
	case cluster.NodeKind:
		if n, ok := c.Value.(*cluster.Node); ok {
			s.nodes[c.Key.Name] = n
		} else {
			delete(s.nodes, c.Key.Name)
		}
		for namespace := range s.services { // host-network pods have the node's addresses
			s.spoil(namespace)
		}
	case cluster.PodKind:
		p, ok := c.Value.(*cluster.Pod)
		set(s.pods, c.Key, p, ok)
		delete(s.given, c.Key)
		if ok && s.own(p) {
			s.given[c.Key] = s.lookUp(c.Key)
		}
		s.spoil(c.Key.Namespace)
	case cluster.ServiceKind:
		v, ok := c.Value.(*cluster.Service)
		set(s.services, c.Key, v, ok && len(v.Selector) > 0)
		s.dirty[c.Key] = true
	}
}

// poll asks for the addresses of the own pods again.
func (s *selectors) poll() {
	for key, old := range s.given {
		if now := s.lookUp(key); !slices.Equal(old, now) {
			s.given[key] = now
			s.spoil(key.Namespace)
		}
	}
}

func (s *selectors) spoil(namespace string) {
	for name := range s.services[namespace] {
		s.dirty[cluster.Key{Namespace: namespace, Name: name}] = true
	}
}

// own says that ADD gives the pod its addresses, on this node.
func (s *selectors) own(p *cluster.Pod) bool {
	return s.addresses != nil && !p.HostNetwork && (p.Node == "" || p.Node == s.node)
}

func (s *selectors) lookUp(key cluster.Key) []netip.Addr {
	return slices.Clone(s.addresses.PodAddresses(key.Namespace, key.Name))
}

// flush returns the slices that changed, were added or went.
func (s *selectors) flush() []cluster.Change {
	var changes []cluster.Change
	for _, key := range slices.SortedFunc(maps.Keys(s.dirty), compareKeys) {
		old, now := s.slices[key], map[string]*cluster.Slice{}
		if v := s.services[key.Namespace][key.Name]; v != nil {
			now = s.compute(v)
		}
		for _, name := range slices.Sorted(maps.Keys(now)) {
			if reflect.DeepEqual(old[name], now[name]) {
				now[name] = old[name]
				continue
			}
			changes = append(changes, cluster.Change{Kind: cluster.SliceKind, Key: cluster.Key{Namespace: key.Namespace, Name: name}, Value: now[name]})
		}
		for _, name := range slices.Sorted(maps.Keys(old)) {
			if now[name] == nil {
				changes = append(changes, cluster.Change{Kind: cluster.SliceKind, Key: cluster.Key{Namespace: key.Namespace, Name: name}})
			}
		}
		delete(s.slices, key)
		if len(now) > 0 {
			s.slices[key] = now
		}
	}
	clear(s.dirty)
	return changes
}

// compute makes all slices of a Service, by name. Their names have a slash, which no manifest's can.
func (s *selectors) compute(v *cluster.Service) map[string]*cluster.Slice {
	all := map[string]*cluster.Slice{}
	pods := s.pods[v.Namespace]
	for _, name := range slices.Sorted(maps.Keys(pods)) {
		p := pods[name]
		ports := resolve(v, p)
		if p.Terminal || !matches(v.Selector, p.Labels) || len(ports) == 0 {
			continue
		}
		for _, ip := range v.ClusterIPs {
			for _, a := range s.of(p) {
				if a.Is4() != ip.Is4() {
					continue
				}
				n := sliceName(v, ip, ports)
				if all[n] == nil {
					all[n] = &cluster.Slice{Namespace: v.Namespace, Name: n, Service: v.Name, IPv6: ip.Is6(), Ports: ports}
				}
				all[n].Endpoints = append(all[n].Endpoints, cluster.Endpoint{
					Addr: a, Ready: p.Ready || v.NotReady, Serving: p.Ready, Terminating: p.Deleting, Node: cmp.Or(p.Node, s.node),
				})
				break // an endpoint has one address of a family
			}
		}
	}
	return all
}

// of returns a pod's addresses: of the own node's pods what ADD gave, of others what the manifest's status says.
func (s *selectors) of(p *cluster.Pod) []netip.Addr {
	switch {
	case s.own(p):
		return s.given[cluster.Key{Namespace: p.Namespace, Name: p.Name}]
	case len(p.IPs) == 0 && p.HostNetwork && s.nodes[cmp.Or(p.Node, s.node)] != nil:
		return s.nodes[cmp.Or(p.Node, s.node)].InternalIPs
	}
	return p.IPs
}

// resolve returns the numbers of a Service's ports in a pod. A name that the pod does not have leaves the port out.
func resolve(v *cluster.Service, p *cluster.Pod) []cluster.SlicePort {
	var list []cluster.SlicePort
	for _, port := range v.Ports {
		number, err := strconv.ParseUint(port.TargetPort, 10, 16)
		if err != nil {
			i := slices.IndexFunc(p.Ports, func(q cluster.PodPort) bool { return q.Name == port.TargetPort && q.Protocol == port.Protocol })
			if i < 0 {
				continue
			}
			number = uint64(p.Ports[i].Port)
		}
		if number > 0 {
			list = append(list, cluster.SlicePort{Name: port.Name, Protocol: port.Protocol, Port: uint16(number)})
		}
	}
	return list
}

func sliceName(v *cluster.Service, ip netip.Addr, ports []cluster.SlicePort) string {
	family := "ipv4"
	if ip.Is6() {
		family = "ipv6"
	}
	parts := []string{v.Name, family}
	for _, p := range ports {
		parts = append(parts, fmt.Sprintf("%s=%d", p.Name, p.Port))
	}
	return strings.Join(parts, "/")
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if l, ok := labels[k]; !ok || l != v {
			return false
		}
	}
	return true
}

// set puts a value into a map of maps, or removes it and the inner map that it was the last of.
func set[V any](all map[string]map[string]V, key cluster.Key, v V, present bool) {
	inner := all[key.Namespace]
	switch {
	case present && inner == nil:
		all[key.Namespace] = map[string]V{key.Name: v}
	case present:
		inner[key.Name] = v
	default:
		delete(inner, key.Name)
		if len(inner) == 0 {
			delete(all, key.Namespace)
		}
	}
}

func compareKeys(a, b cluster.Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func compareObjects(a, b object) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), compareKeys(a.key, b.key))
}
