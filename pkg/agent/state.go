// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/endpoint"
	"github.com/fairlead/fairlead/pkg/health"
	"github.com/fairlead/fairlead/pkg/masquerade"
	"github.com/fairlead/fairlead/pkg/node"
	"github.com/fairlead/fairlead/pkg/service"
)

// state is what a run can be asked about: its components as far as they have been made, and what it waits for.
type state struct {
	agent *agent
	gates []*gate

	answering sync.RWMutex // held for reading by every answer: components must not be closed under it
	over      bool         // the components are being closed

	mu         sync.Mutex
	parts      parts
	self       node.Self // zero before the own node was set up
	conditions cluster.Conditions
	names      map[netip.Addr]string // InternalIP -> name of the node that has it
}

// parts are the components. One that has not been made yet is nil.
type parts struct {
	source     source
	objects    *bpf.Objects
	nodes      *node.Node
	front      *node.Front
	proxy      *service.Proxy
	checks     *health.ServicePorts
	endpoints  *endpoint.Table
	masquerade *masquerade.Masquerade
}

func newState(a *agent, gates ...*gate) *state {
	return &state{agent: a, gates: gates, names: map[netip.Addr]string{}}
}

// guard lets requests through until close.
func (s *state) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.answering.RLock()
		defer s.answering.RUnlock()
		if s.over {
			http.Error(w, "agent is starting again or ends", http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// close returns when nobody is being answered any more; whoever still comes is told so.
func (s *state) close() {
	s.answering.Lock()
	defer s.answering.Unlock()
	s.over = true
}

// made says that components were made.
func (s *state) made(change func(*parts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.parts)
}

func (s *state) get() (parts, node.Self) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.parts, s.self
}

// setUp makes what the own Node asks for.
func (s *state) setUp(nodes *node.Node, own *cluster.Node) error {
	err := s.agent.checkOwn(own)
	var self node.Self
	if err == nil {
		self, err = nodes.Setup(own)
	}
	if err != nil {
		s.conditions.Set(cluster.Condition{Name: "node", Object: own.Name, Reason: "not-set-up", Message: err.Error()})
		return err
	}
	s.conditions.Clear("node", own.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.self = self
	return nil
}

// learn keeps the nodes' names: peers are known to the programs by address.
func (s *state) learn(b cluster.Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range b.Changes {
		if n, ok := c.Value.(*cluster.Node); ok {
			for _, a := range n.InternalIPs {
				s.names[a] = n.Name
			}
		}
	}
}

// waiting names the gates that are closed, with what they wait for; none means ready.
func (s *state) waiting() []string {
	var closed []string
	for _, g := range s.gates {
		if len(g.missing()) > 0 {
			closed = append(closed, g.String())
		}
	}
	return closed
}

// condition is something that is wrong now, of any component.
type condition struct {
	component, object, message string
	since                      time.Time // zero: unknown
}

// wrong returns everything that is wrong now.
func (s *state) wrong() []condition {
	p, _ := s.get()
	var all []condition
	take := func(list []cluster.Condition) {
		for _, c := range list {
			all = append(all, condition{c.Name, c.Object, c.Message, c.Since})
		}
	}
	take(s.conditions.List())
	if p.source != nil {
		take(p.source.Conditions())
	}
	if p.nodes != nil {
		for name, err := range p.nodes.Status().Conditions {
			all = append(all, condition{component: "node", object: name, message: err.Error()})
		}
	}
	if p.front != nil {
		for object, err := range p.front.Status().Conditions {
			all = append(all, condition{component: "front", object: object, message: err.Error()})
		}
	}
	if p.proxy != nil {
		for _, c := range p.proxy.Conditions() {
			all = append(all, condition{"service", c.Object, c.Message, c.Since})
		}
	}
	if p.checks != nil {
		for _, c := range p.checks.Conditions() {
			all = append(all, condition{"health", "service " + c.Service, "health check port: " + c.Err.Error(), c.Since})
		}
	}
	if p.masquerade != nil {
		if _, err := p.masquerade.Status(); err != nil {
			all = append(all, condition{component: "masquerade", message: err.Error()})
		}
	}
	if p.endpoints != nil {
		for _, pool := range p.endpoints.Status().Pools {
			if pool.Used >= pool.Size {
				all = append(all, condition{component: "endpoint", object: "pool " + pool.Prefix.String(), message: "is full: no pod can start on this node"})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b condition) int {
		return slices.Compare([]string{a.component, a.object, a.message}, []string{b.component, b.object, b.message})
	})
	return all
}
