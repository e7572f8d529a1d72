// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/reconcile"
)

// View is a service as people see it: what is in force, not what is wanted; Conditions says where both differ.
type View struct {
	Namespace       string         `json:"namespace"`
	Name            string         `json:"name"`
	Port            string         `json:"port,omitempty"` // name
	Protocol        string         `json:"protocol"`
	Family          string         `json:"family"`
	ID              uint32         `json:"id"`
	Incarnation     uint32         `json:"incarnation"`
	InternalPolicy  string         `json:"internalTrafficPolicy"`
	ExternalPolicy  string         `json:"externalTrafficPolicy"`
	AffinitySeconds uint32         `json:"affinitySeconds,omitempty"`
	SourceRanges    []netip.Prefix `json:"sourceRanges,omitempty"` // clients of load balancer addresses; none: everybody
	Frontends       []FrontendView `json:"frontends"`
	Backends        []BackendView  `json:"backends"`
	Cluster         int            `json:"cluster"`                  // backends in the cluster set
	Local           int            `json:"local"`                    // backends in the local set
	ClusterEmpty    string         `json:"clusterVerdict,omitempty"` // what the set answers, when empty
	LocalEmpty      string         `json:"localVerdict,omitempty"`
	Conditions      []string       `json:"conditions,omitempty"`
}

// FrontendView is one address of a service.
type FrontendView struct {
	Addr     netip.Addr `json:"address"`
	Port     uint16     `json:"port"`
	Class    string     `json:"class"`
	InForce  bool       `json:"inForce"`            // it leads here
	HeldBy   string     `json:"heldBy,omitempty"`   // the service that it leads to instead
	NotTaken bool       `json:"notTaken,omitempty"` // it leads nowhere yet
}

// BackendView is one backend of a service.
type BackendView struct {
	Addr    netip.AddrPort `json:"address"`
	ID      uint32         `json:"id"`
	Serving bool           `json:"serving"`
	Cluster bool           `json:"cluster"`
	Local   bool           `json:"local"` // in the local set
	OnNode  bool           `json:"onNode"`
	Leaving bool           `json:"leaving,omitempty"`
}

// Condition is something that is not as it was asked for, and why.
type Condition struct {
	Object  string    `json:"object"`
	Message string    `json:"message"`
	Since   time.Time `json:"since,omitzero"`
	Tries   int       `json:"tries,omitempty"`
}

// Services returns every service that is wanted or in force, in order of their names.
func (s *Proxy) Services() []View {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []View
	for _, p := range s.ports {
		if p.key.Name != "" && (p.want != nil || p.installed) {
			all = append(all, s.view(p))
		}
	}
	slices.SortFunc(all, func(a, b View) int {
		return slices.Compare([]string{a.Namespace, a.Name, a.Port, a.Protocol, a.Family}, []string{b.Namespace, b.Name, b.Port, b.Protocol, b.Family})
	})
	return all
}

func (s *Proxy) view(p *port) View {
	v := View{
		Namespace:       p.key.Namespace,
		Name:            p.key.Name,
		Port:            p.key.Port,
		Protocol:        protocolName(p.key.Protocol),
		Family:          p.key.Family.String(),
		ID:              p.id.ID,
		Incarnation:     p.id.Incarnation,
		InternalPolicy:  policyName(p.words.Flags&bpf.ServiceInternalLocal != 0),
		ExternalPolicy:  policyName(p.words.Flags&bpf.ServiceExternalLocal != 0),
		AffinitySeconds: p.words.AffinitySeconds,
		Cluster:         int(p.words.Cluster.Length),
		Local:           int(p.words.Local.Length),
		Frontends:       []FrontendView{},
		Backends:        []BackendView{},
	}
	if p.ranges != nil {
		v.SourceRanges = slices.SortedFunc(maps.Keys(p.ranges.have), comparePrefixes)
	}
	if p.words.Cluster.Length == 0 {
		v.ClusterEmpty = verdictName(p.words.Cluster.Verdict)
	}
	if p.words.Local.Length == 0 {
		v.LocalEmpty = verdictName(p.words.Local.Verdict)
	}
	for _, b := range p.backends {
		v.Backends = append(v.Backends, BackendView{
			Addr:    b.addr,
			ID:      b.id.ID,
			Serving: b.force&bpf.BackendServing != 0,
			Cluster: b.force&bpf.BackendCluster != 0,
			Local:   b.force&bpf.BackendInLocal != 0,
			OnNode:  b.force&bpf.BackendLocal != 0,
			Leaving: b.gone != 0,
		})
	}
	if p.want != nil {
		for _, want := range p.want.Frontends {
			f := s.frontends[want.FrontendKey]
			fv := FrontendView{Addr: want.Addr, Port: want.Port, Class: className(want.Class), InForce: f.at == p, NotTaken: f.at == nil}
			if f.at != nil && f.at != p {
				fv.HeldBy = f.at.name()
				v.Conditions = append(v.Conditions, fmt.Sprintf("frontend %s: %s has it", want.FrontendKey, fv.HeldBy))
			}
			if e := s.failedFrontends.Get(want.FrontendKey); e != nil {
				v.Conditions = append(v.Conditions, reason(e.Err))
			}
			v.Frontends = append(v.Frontends, fv)
		}
	}
	if e := s.failedPorts.Get(p.sig); e != nil {
		v.Conditions = append(v.Conditions, reason(e.Err))
	}
	if p.held != "" {
		v.Conditions = append(v.Conditions, p.held)
	}
	if p.record != nil && p.want != nil {
		v.Conditions = append(v.Conditions, p.record.notes...)
	}
	return v
}

// Conditions returns what is not as it was asked for, in order of the objects.
func (s *Proxy) Conditions() []Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Condition
	if s.adoptErr != nil {
		all = append(all, Condition{Object: "service maps", Message: s.adoptErr.Error()})
	}
	for _, p := range s.ports {
		if e := s.failedPorts.Get(p.sig); e != nil && p.want != nil {
			all = append(all, Condition{Object: p.name(), Message: reason(e.Err), Since: e.Since, Tries: e.Tries})
		}
		if p.held != "" {
			all = append(all, Condition{Object: p.name(), Message: p.held})
		}
	}
	for k, f := range s.frontends {
		if e := s.failedFrontends.Get(k); e != nil {
			all = append(all, Condition{Object: "frontend " + k.String(), Message: reason(e.Err), Since: e.Since, Tries: e.Tries})
		}
		for i, c := range f.claims {
			if i > 0 {
				all = append(all, Condition{Object: c.port.name(), Message: fmt.Sprintf("frontend %s: %s comes first", k, f.claims[0].port.name())})
			}
		}
	}
	for a := range s.ips {
		if e := s.failedIPs.Get(a); e != nil {
			all = append(all, Condition{Object: "cluster IP " + a.String(), Message: reason(e.Err), Since: e.Since, Tries: e.Tries})
		}
	}
	for c := range s.cidrs {
		if e := s.failedCIDRs.Get(c); e != nil {
			all = append(all, Condition{Object: "service CIDR " + c.String(), Message: reason(e.Err), Since: e.Since, Tries: e.Tries})
		}
	}
	for _, r := range s.records {
		for _, n := range r.notes {
			all = append(all, Condition{Object: "service " + r.key.Namespace + "/" + r.key.Name, Message: n})
		}
	}
	slices.SortFunc(all, func(a, b Condition) int {
		if c := strings.Compare(a.Object, b.Object); c != 0 {
			return c
		}
		return strings.Compare(a.Message, b.Message)
	})
	return all
}

// reason is why a change failed, without the name of its object.
func reason(err error) string {
	var e *reconcile.Error
	if errors.As(err, &e) {
		return e.Err.Error()
	}
	return err.Error()
}

func policyName(local bool) string {
	if local {
		return "Local"
	}
	return "Cluster"
}

func verdictName(v bpf.ServiceVerdict) string {
	if v == bpf.VerdictDrop {
		return "drop"
	}
	return "refuse"
}

func className(c bpf.FrontendClass) string {
	switch c {
	case bpf.FrontendClusterIP:
		return "ClusterIP"
	case bpf.FrontendNodePort:
		return "NodePort"
	case bpf.FrontendLoadBalancer:
		return "LoadBalancer"
	case bpf.FrontendExternalIP:
		return "ExternalIP"
	case bpf.FrontendHostPort:
		return "HostPort"
	}
	return "unknown"
}
