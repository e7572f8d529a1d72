// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/metrics"
	"github.com/fairlead/fairlead/pkg/query"
)

// errStarting says that a component has not been made yet.
var errStarting = errors.New("agent is starting: see fairlead status")

// answers are what the CLI gets.
func (s *state) answers() query.Answers {
	return query.Answers{Status: s.status, Drops: s.drops, Services: s.services, Endpoints: s.endpoints, Peers: s.peers}
}

func (s *state) status() (query.Status, error) {
	p, self := s.get()
	a := s.agent
	st := query.Status{
		Agent: query.Agent{Version: a.version, PID: os.Getpid(), Started: a.started, Source: a.sourceName()},
		Node: query.Node{
			Name: a.config.NodeName, PodCIDRs: []string{}, IPs: []string{}, MTU: self.MTU, RoutingMode: a.config.RoutingMode, SocketLB: a.config.SocketLB,
		},
		Ready: len(s.waiting()) == 0, Gates: []query.Gate{}, Pools: []query.Pool{}, Maps: []query.Map{}, Conditions: []query.Condition{}, Errors: []query.Error{},
	}
	for _, ip := range []netip.Addr{self.Node4, self.Node6} {
		if ip.IsValid() {
			st.Node.IPs = append(st.Node.IPs, ip.String())
		}
	}
	for _, c := range self.PodCIDRs {
		st.Node.PodCIDRs = append(st.Node.PodCIDRs, c.String())
	}
	for _, g := range s.gates {
		missing := g.missing()
		st.Gates = append(st.Gates, query.Gate{Name: g.name, Open: len(missing) == 0, Waiting: missing})
	}
	n := s.counts()
	st.Endpoints, st.Peers, st.Services, st.Backends = n.Endpoints, n.Peers, n.Services, n.Backends
	if p.endpoints != nil {
		for _, pool := range p.endpoints.Status().Pools {
			st.Pools = append(st.Pools, query.Pool{CIDR: pool.Prefix.String(), Size: pool.Size, Used: pool.Used, Cooling: pool.Cooling})
		}
	}
	if p.objects != nil {
		uses, err := p.objects.Uses()
		if err != nil {
			return query.Status{}, err
		}
		for _, u := range uses {
			st.Maps = append(st.Maps, query.Map{Name: u.Name, Capacity: u.Capacity, Used: u.Used, Failed: u.Failed})
		}
	}
	for _, c := range s.wrong() {
		st.Conditions = append(st.Conditions, query.Condition{Component: c.component, Object: c.object, Message: c.message, Since: c.since})
	}
	last, _ := a.memory.read()
	for _, l := range last {
		st.Errors = append(st.Errors, query.Error{Time: l.time, Level: l.level.String(), Message: l.message})
	}
	return st, nil
}

func (s *state) drops() (query.Drops, error) {
	p, _ := s.get()
	if p.objects == nil {
		return query.Drops{}, errStarting
	}
	drops, err := p.objects.Drops()
	if err != nil {
		return query.Drops{}, err
	}
	counters, err := p.objects.Counters()
	if err != nil {
		return query.Drops{}, err
	}
	answer := query.Drops{Drops: []query.Drop{}, Counters: []query.Counter{}}
	for _, reason := range slices.Sorted(maps.Keys(drops)) {
		answer.Drops = append(answer.Drops, query.Drop{Reason: reason, Count: drops[reason]})
	}
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		answer.Counters = append(answer.Counters, query.Counter{Name: name, Count: counters[name]})
	}
	return answer, nil
}

func (s *state) services() (query.Services, error) {
	p, _ := s.get()
	if p.proxy == nil {
		return query.Services{}, errStarting
	}
	answer := query.Services{Services: []query.Service{}}
	for _, v := range p.proxy.Services() {
		sv := query.Service{
			Namespace: v.Namespace, Name: v.Name, Port: v.Port, Protocol: strings.ToUpper(v.Protocol), ID: v.ID, Affinity: int(v.AffinitySeconds),
			Frontends: []query.Frontend{}, Cluster: []string{}, Local: []string{}, Conditions: v.Conditions,
		}
		for _, f := range v.Frontends {
			sv.Frontends = append(sv.Frontends, query.Frontend{Class: f.Class, Address: netip.AddrPortFrom(f.Addr, f.Port).String()})
		}
		for _, b := range v.Backends {
			if b.Cluster {
				sv.Cluster = append(sv.Cluster, b.Addr.String())
			}
			if b.Local {
				sv.Local = append(sv.Local, b.Addr.String())
			}
		}
		answer.Services = append(answer.Services, sv)
	}
	return answer, nil
}

func (s *state) endpoints() (query.Endpoints, error) {
	p, _ := s.get()
	if p.endpoints == nil {
		return query.Endpoints{}, errStarting
	}
	answer := query.Endpoints{Endpoints: []query.Endpoint{}}
	for _, e := range p.endpoints.List() {
		ips := make([]string, 0, len(e.Addrs))
		for _, a := range e.Addrs {
			ips = append(ips, a.String())
		}
		answer.Endpoints = append(answer.Endpoints, query.Endpoint{
			ID: e.ID, Namespace: e.Pod.Namespace, Pod: e.Pod.Name, Container: e.ContainerID, Interface: e.Ifname, Link: e.Link, IPs: ips, State: "live",
		})
	}
	return answer, nil
}

func (s *state) peers() (query.Peers, error) {
	p, _ := s.get()
	if p.objects == nil {
		return query.Peers{}, errStarting
	}
	list, err := p.objects.Peers().List()
	if err != nil {
		return query.Peers{}, err
	}
	answer := query.Peers{Peers: []query.Peer{}}
	for _, v := range list {
		peer := query.Peer{ID: v.ID, Name: s.nameOf(v.Node), IP: v.Node.String(), PodCIDRs: []string{}, Mode: "overlay", MTU: int(v.MTU)}
		if v.Flags&bpf.PeerDirect != 0 {
			peer.Mode = "direct"
		}
		for _, c := range v.CIDRs {
			peer.PodCIDRs = append(peer.PodCIDRs, c.String())
		}
		answer.Peers = append(answer.Peers, peer)
	}
	slices.SortFunc(answer.Peers, func(a, b query.Peer) int { return strings.Compare(a.Name, b.Name) })
	return answer, nil
}

func (s *state) nameOf(node netip.Addr) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[node]
}

// counts are the numbers that status and metrics share.
func (s *state) counts() (n metrics.State) {
	p, _ := s.get()
	n.Repaired = map[string]uint64{}
	if p.endpoints != nil {
		v := p.endpoints.Status()
		n.Endpoints, n.Repaired["endpoint"] = v.Endpoints, v.Repaired
		for verb, c := range v.Verbs {
			n.Verbs = append(n.Verbs, metrics.Verb{Name: string(verb), Calls: c.Calls, Failed: c.Failed, Total: c.Total})
		}
		for _, pool := range v.Pools {
			n.Pools = append(n.Pools, metrics.Pool{CIDR: pool.Prefix.String(), Size: pool.Size, Used: pool.Used})
		}
	}
	if p.nodes != nil {
		v := p.nodes.Status()
		n.Peers, n.Repaired["node"] = v.Peers, v.Repaired
	}
	if p.front != nil {
		n.Repaired["front"] = p.front.Status().Repaired
	}
	if p.masquerade != nil {
		n.Repaired["masquerade"], _ = p.masquerade.Status()
	}
	if p.proxy != nil {
		stats := p.proxy.Stats()
		n.Services, n.Backends = stats.Ports, stats.Backends
	}
	return n
}

// sources are what Prometheus gets.
func (s *state) sources() metrics.Sources {
	return metrics.Sources{
		Version: s.agent.version,
		State: func() metrics.State {
			n := s.counts()
			n.Ready, n.Gates, n.Conditions = len(s.waiting()) == 0, map[string]bool{}, map[string]int{}
			for _, g := range s.gates {
				n.Gates[g.name] = len(g.missing()) == 0
			}
			for _, c := range s.wrong() {
				n.Conditions[c.component]++
			}
			_, n.Logged = s.agent.memory.read()
			if p, _ := s.get(); p.proxy != nil {
				n.NoLocal = noLocal(p.proxy.Services())
			}
			return n
		},
		Maps: func() ([]metrics.Map, error) {
			p, _ := s.get()
			if p.objects == nil {
				return nil, nil
			}
			uses, err := p.objects.Uses()
			all := make([]metrics.Map, 0, len(uses))
			for _, u := range uses {
				all = append(all, metrics.Map{Name: u.Name, Capacity: u.Capacity, Used: u.Used, Failed: u.Failed})
			}
			return all, err
		},
		Drops: func() (map[string]uint64, error) {
			p, _ := s.get()
			if p.objects == nil {
				return nil, nil
			}
			return p.objects.Drops()
		},
		Events: func() (map[string]uint64, error) {
			p, _ := s.get()
			if p.objects == nil {
				return nil, nil
			}
			return p.objects.Counters()
		},
		Flows: func() (map[string]uint64, error) {
			p, _ := s.get()
			if p.objects == nil {
				return nil, nil
			}
			all := map[string]uint64{}
			for phase, n := range p.objects.Flows().Count() {
				all[phase.String()] = n
			}
			return all, nil
		},
	}
}
