// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
)

// work is what one event touches, in the order in which it was touched.
type work struct {
	ports     []*port
	frontends []bpf.FrontendKey
	ips       []netip.Addr
	records   []*record
	seen      map[any]bool
}

func newWork() *work { return &work{seen: map[any]bool{}} }

func (w *work) first(k any) bool {
	if w.seen[k] {
		return false
	}
	w.seen[k] = true
	return true
}

func (w *work) port(p *port) {
	if w.first(p) {
		w.ports = append(w.ports, p)
	}
}

func (w *work) frontend(k bpf.FrontendKey) {
	if w.first(k) {
		w.frontends = append(w.frontends, k)
	}
}

func (w *work) ip(a netip.Addr) {
	if w.first(a) {
		w.ips = append(w.ips, a)
	}
}

func (w *work) record(r *record) {
	if r != nil && w.first(r) {
		w.records = append(w.records, r)
	}
}

// flush compiles records and writes what differs; the lock is held.
func (s *Proxy) flush(dirty []*record) {
	if len(dirty) == 0 {
		return
	}
	began := s.cfg.Now()
	w := newWork()
	for _, r := range dirty {
		r.dirty = false
		s.compile(r, w)
	}
	s.write(w)
	s.stats.LastSync = s.cfg.Now().Sub(began)
}

// compile says what the ports of a record should be and which frontends they claim.
func (s *Proxy) compile(r *record, w *work) {
	w.record(r)
	var ports []Port
	r.notes = nil
	if r.service != nil {
		ports, r.notes = Compile(r.service, r.slices, s.here())
	}
	old := r.ports
	for _, p := range old {
		s.unclaim(p, w)
		p.want = nil
		w.port(p)
	}
	r.ports = make([]*port, 0, len(ports))
	for i := range ports {
		want := &ports[i]
		p := s.portOf(want.Key)
		p.key, p.record, p.want = want.Key, r, want
		r.ports = append(r.ports, p)
		w.port(p)
		s.claim(p, w)
	}
	s.indexHosts(r)
	s.check(r)
	if r.service == nil && len(r.slices) == 0 {
		delete(s.records, r.key)
	}
}

// write brings the maps to what is wanted: sets of backends first, so that whatever a frontend is led to is complete; then frontends;
// then what no frontend leads to goes.
func (s *Proxy) write(w *work) {
	now := s.cfg.Now()
	// Whose ranges go together with its address must not be open to everybody in between.
	for _, k := range w.frontends {
		if f := s.frontends[k]; f != nil && len(f.claims) == 0 && f.at != nil && f.class == bpf.FrontendLoadBalancer {
			s.placeOrFail(k, w, now)
		}
	}
	for _, p := range w.ports {
		if p.want == nil {
			s.failedPorts.Forget(p.sig)
			continue
		}
		ready := p.ready()
		if err := s.change(p); err != nil {
			if s.failedPorts.Get(p.sig) == nil {
				s.log.Warn("service not changed, the old state stays", "service", p.key.String(), "error", err)
			}
			s.failedPorts.Failed(p.sig, err, now)
			s.stats.Failures++
			continue
		}
		if s.failedPorts.Get(p.sig) != nil {
			s.log.Info("service changed after failures", "service", p.key.String())
			s.failedPorts.Forget(p.sig)
		}
		if !ready {
			for _, f := range p.want.Frontends {
				w.frontend(f.FrontendKey)
			}
		}
	}
	for _, r := range w.records {
		s.countIPs(r, w)
	}
	s.writeIPs(w.ips, false, now)
	for _, k := range w.frontends {
		s.placeOrFail(k, w, now)
	}
	s.writeIPs(w.ips, true, now)
	for _, p := range w.ports {
		if p.want == nil && p.frontends == 0 {
			s.retire(p)
		}
	}
	if len(s.leftover) > 0 {
		s.sweepLeftover()
	}
	s.cfg.Tables.SetSlotsUsed(s.space.used)
}

// placeOrFail leads a frontend where it should, or notes that this is to be tried again.
func (s *Proxy) placeOrFail(k bpf.FrontendKey, w *work, now time.Time) {
	left, err := s.place(k)
	if left != nil {
		w.port(left)
	}
	if err != nil {
		s.failedFrontends.Failed(k, err, now)
		s.stats.Failures++
	} else {
		s.failedFrontends.Forget(k)
	}
}

// here returns what compilation depends on besides the Service.
func (s *Proxy) here() Here {
	h := Here{Node: s.cfg.Node, Host: func(a netip.Addr) bool { return s.hosts[a] > 0 }, IgnoreExternalIPs: s.cfg.IgnoreExternalIPs}
	if n := s.nodes[s.cfg.Node]; n != nil {
		h.Zone = n.Zone
	}
	return h
}
