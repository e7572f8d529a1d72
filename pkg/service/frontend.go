// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/reconcile"
)

// frontend is a key of the frontend map with everybody who wants it.
type frontend struct {
	claims   []claim // in order of precedence: the first one has it
	at       *port   // where it leads in the map; nil: it is not there
	class    bpf.FrontendClass
	promised bool // counted in Proxy.placed though it is not there yet
}

// claim is a service that wants a frontend, with what its rank depends on.
type claim struct {
	port    *port
	class   bpf.FrontendClass
	created time.Time // of the Service
	uid     string
}

// compareClaims orders claims of one frontend: by class, then by age of the Service, then by UID. What is left are ports of one
// Service, by name.
func compareClaims(a, b claim) int {
	x, y := &a.port.key, &b.port.key
	return cmp.Or(
		cmp.Compare(precedence(a.class), precedence(b.class)),
		a.created.Compare(b.created),
		cmp.Compare(a.uid, b.uid),
		cmp.Compare(x.Namespace, y.Namespace),
		cmp.Compare(x.Name, y.Name),
		cmp.Compare(x.Port, y.Port),
	)
}

// precedence is lower for the class that wins: an address that the API server gave a Service before one that a user wrote.
func precedence(c bpf.FrontendClass) int {
	switch c {
	case bpf.FrontendClusterIP:
		return 0
	case bpf.FrontendLoadBalancer:
		return 1
	case bpf.FrontendExternalIP:
		return 2
	}
	return 3
}

func compareFrontends(a, b bpf.FrontendKey) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}

// claim enters what a port wants.
func (s *Proxy) claim(p *port, w *work) {
	for _, want := range p.want.Frontends {
		f := s.frontends[want.FrontendKey]
		if f == nil {
			f = &frontend{}
			s.frontends[want.FrontendKey] = f
		}
		c := claim{p, want.Class, p.record.service.Created, p.record.service.UID}
		i, _ := slices.BinarySearchFunc(f.claims, c, compareClaims)
		f.claims = slices.Insert(f.claims, i, c)
		w.frontend(want.FrontendKey)
	}
}

// unclaim takes out what a port wanted.
func (s *Proxy) unclaim(p *port, w *work) {
	if p.want == nil {
		return
	}
	for _, had := range p.want.Frontends {
		f := s.frontends[had.FrontendKey]
		f.claims = slices.DeleteFunc(f.claims, func(c claim) bool { return c.port == p })
		w.frontend(had.FrontendKey)
	}
}

// frontendRoom reserves room in the frontend map for what a port claims.
func (s *Proxy) frontendRoom(p *port) reconcile.Step {
	var got []*frontend
	return reconcile.Step{
		Do: func() error {
			for _, want := range p.want.Frontends {
				f := s.frontends[want.FrontendKey]
				if f.at != nil || f.promised {
					continue
				}
				if s.placed >= s.cfg.Tables.FrontendCapacity() {
					return fmt.Errorf("reserve frontend %s: %w (%d frontends)", want.FrontendKey, bpf.ErrFull, s.placed)
				}
				f.promised = true
				s.placed++
				got = append(got, f)
			}
			return nil
		},
		Undo: func() error {
			for _, f := range got {
				s.unpromise(f)
			}
			got = nil
			return nil
		},
	}
}

func (s *Proxy) unpromise(f *frontend) {
	if f.promised {
		f.promised = false
		s.placed--
	}
}

// place leads a frontend to the service that wins it. While that one is not complete, the old state stays. It returns the port that
// the frontend left.
func (s *Proxy) place(k bpf.FrontendKey) (left *port, err error) {
	f := s.frontends[k]
	if f == nil {
		return nil, nil
	}
	if len(f.claims) == 0 {
		s.unpromise(f)
		if f.at != nil {
			err := s.runner.Do(reconcile.Change{Name: "frontend " + k.String(), Flip: func() error { return s.cfg.Tables.DeleteFrontend(k) }})
			if err != nil {
				return nil, err
			}
			left = f.at
			left.frontends--
			s.placed--
		}
		delete(s.frontends, k)
		return left, nil
	}
	c := f.claims[0]
	if !c.port.ready() || f.at == c.port && f.class == c.class {
		return nil, nil
	}
	err = s.runner.Do(reconcile.Change{Name: "frontend " + k.String(), Flip: func() error {
		return s.cfg.Tables.PutFrontend(bpf.Frontend{FrontendKey: k, Service: c.port.id.ID, Class: c.class})
	}})
	if err != nil {
		return nil, err
	}
	switch {
	case f.at != nil:
		left = f.at
		left.frontends--
	case f.promised:
		f.promised = false // the room is in use now
	default:
		s.placed++
	}
	f.at, f.class = c.port, c.class
	c.port.frontends++
	return left, nil
}

// clusterIP is an address of the ClusterIP map.
type clusterIP struct {
	services uint32 // that have it and can answer
	written  uint32 // what the map says; 0: nothing
}

// countIPs counts the ClusterIPs of a record that has a service in the maps.
func (s *Proxy) countIPs(r *record, w *work) {
	var now []netip.Addr
	if r.service != nil && slices.ContainsFunc(r.ports, (*port).ready) {
		now = r.service.ClusterIPs
	}
	if slices.Equal(now, r.ips) {
		return
	}
	for _, a := range now {
		ip := s.ips[a]
		if ip == nil {
			ip = &clusterIP{}
			s.ips[a] = ip
		}
		ip.services++
		w.ip(a)
	}
	for _, a := range r.ips {
		s.ips[a].services--
		w.ip(a)
	}
	r.ips = now
}

// writeIPs writes the number of services of each address: those that nobody has any more before the frontends go, the others after
// they came, so that a frontend in the map is never refused.
func (s *Proxy) writeIPs(addrs []netip.Addr, used bool, now time.Time) {
	for _, a := range addrs {
		ip := s.ips[a]
		if ip == nil || (ip.services > 0) != used {
			continue
		}
		var err error
		switch {
		case ip.services == ip.written:
		case ip.services == 0:
			err = s.cfg.Tables.DeleteClusterIP(a)
		default:
			err = s.cfg.Tables.PutClusterIP(a, ip.services)
		}
		if err != nil {
			s.failedIPs.Failed(a, err, now)
			s.stats.Failures++
			continue
		}
		s.failedIPs.Forget(a)
		ip.written = ip.services
		if ip.services == 0 {
			delete(s.ips, a)
		}
	}
}
