// SPDX-License-Identifier: Apache-2.0

package service

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// HealthCheck is a Service whose load balancer asks each node, on a port of the Service's own, whether it has endpoints.
type HealthCheck struct {
	Namespace, Name string
	Port            uint16 // spec.healthCheckNodePort
	Local           int    // ready endpoints on this node
}

// HealthChecks returns the health checks of all Services that have one, in order of their names. Before the gate it is empty: nobody
// knows then how many endpoints there are.
func (s *Proxy) HealthChecks() []HealthCheck {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.checks), func(a, b HealthCheck) int {
		return slices.Compare([]string{a.Namespace, a.Name}, []string{b.Namespace, b.Name})
	})
}

// check notes the health check of a record.
func (s *Proxy) check(r *record) {
	old, had := s.checks[r.key]
	if r.service == nil || r.service.HealthCheckPort == 0 {
		delete(s.checks, r.key)
		s.checked = s.checked || had
		return
	}
	now := HealthCheck{r.key.Namespace, r.key.Name, r.service.HealthCheckPort, localReady(r.service, r.slices, s.cfg.Node)}
	s.checks[r.key] = now
	s.checked = s.checked || !had || old != now
}

// localReady returns how many ready endpoints a Service has on a node. An address counts once for all ports, as kube-proxy has it
// (EndpointsMap.LocalReadyEndpoints), and a pod of two families once: it is the larger count of both.
func localReady(svc *cluster.Service, ofService []*cluster.Slice, node string) int {
	seen := map[netip.Addr]bool{}
	count := map[Family]int{}
	for _, slice := range ofService {
		if !slices.ContainsFunc(slice.Ports, func(p cluster.SlicePort) bool { return p.Port != 0 }) {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if !e.Ready || node == "" || e.Node != node || !e.Addr.IsValid() || seen[e.Addr] {
				continue
			}
			family := familyOf(e.Addr)
			if slice.IPv6 != (family == IPv6) || !slices.ContainsFunc(svc.ClusterIPs, func(a netip.Addr) bool { return familyOf(a) == family }) {
				continue
			}
			seen[e.Addr] = true
			count[family]++
		}
	}
	return max(count[IPv4], count[IPv6])
}
