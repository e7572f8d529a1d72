// SPDX-License-Identifier: Apache-2.0

// Package service keeps the service maps as Services and EndpointSlices say: kube-proxy's rules (Compile), and the order of writes that
// never shows a program half of a change (reconcile).
//
// A service is one Service port in one family, a backend one (service, address, port), a frontend one (address, port, protocol). Two
// services may claim one frontend: ClusterIP goes before load balancer address before externalIP, then the older Service, then the UID.
// Who loses is kept ready all the same, so that it takes over by one write.
package service

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/reconcile"
)

// Config says what a Proxy works with.
type Config struct {
	Node   string // name of the own node
	Tables Tables
	IDs    IDs
	Log    *slog.Logger

	// Linger is how long a backend that left keeps its id: one that comes back meanwhile is the same, and its flows and sockets go on.
	// 0: one second.
	Linger time.Duration

	IgnoreExternalIPs bool           // see Here
	ServiceCIDRs      []netip.Prefix // where ClusterIPs come from, masked: what no Service has of them is dropped

	// OnBackendsGone is called, without locks, after UDP backends stopped serving: their connected sockets are to be destroyed once
	// they are away for a second. Nil: nobody listens.
	OnBackendsGone func()

	// OnHealthChecks is called, without locks, after what HealthChecks returns changed. Nil: nobody listens.
	OnHealthChecks func()

	Fault func(stage reconcile.Stage, name string) error // see reconcile.Options
	Now   func() time.Time                               // nil: time.Now
}

// Proxy carries what a cluster.Source says of Services into the maps. Methods may be called by several goroutines.
type Proxy struct {
	cfg  Config
	log  *slog.Logger
	wake chan struct{} // there is something for Run

	mu     sync.Mutex
	runner *reconcile.Runner

	// What the source said.
	nodes    map[string]*cluster.Node
	hosts    map[netip.Addr]int // addresses of nodes, with the number of nodes that have them
	records  map[cluster.Key]*record
	slices   map[cluster.Key]*cluster.Slice
	nodeSeen bool
	synced   [cluster.Kinds]bool
	open     bool // the gate: from here on the maps are ours

	// What the maps hold.
	ports     map[bpf.Signature]*port
	frontends map[bpf.FrontendKey]*frontend
	placed    uint32 // frontends in the map, and room promised to others
	ips       map[netip.Addr]*clusterIP
	space     *slotSpace
	ranges    map[bpf.Signature]*rangeSet
	cidrs     map[netip.Prefix]bool // service CIDRs that are to be written or removed: is it wanted?
	leftover  map[uint32]*leftover  // backends of an agent before this one that no port has taken yet, by id

	// What is to be tried again.
	failedPorts     reconcile.Retry[bpf.Signature]
	failedFrontends reconcile.Retry[bpf.FrontendKey]
	failedIPs       reconcile.Retry[netip.Addr]
	failedCIDRs     reconcile.Retry[netip.Prefix]
	adoptErr        error

	byHost   map[netip.Addr][]*record // records with endpoints that may be on a host network, by address
	checks   map[cluster.Key]HealthCheck
	checked  bool // checks changed since OnHealthChecks was called
	silenced bool // a UDP backend stopped serving since OnBackendsGone was called
	stats    Stats
}

// record is a Service with its slices. One of both may be missing.
type record struct {
	key     cluster.Key
	service *cluster.Service
	slices  []*cluster.Slice
	ports   []*port      // wanted by the last compilation
	ips     []netip.Addr // counted in Proxy.ips
	hosts   []netip.Addr // in Proxy.byHost
	notes   []string
	dirty   bool
}

// New returns a Proxy that waits for its gate: it reads and writes no map before Services, EndpointSlices and the own Node are known.
func New(c Config) (*Proxy, error) {
	if c.Tables == nil || c.IDs == nil {
		return nil, errors.New("make service proxy: no tables")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Linger == 0 {
		c.Linger = time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Proxy{
		cfg:       c,
		log:       c.Log.With("component", "service"),
		wake:      make(chan struct{}, 1),
		nodes:     map[string]*cluster.Node{},
		hosts:     map[netip.Addr]int{},
		records:   map[cluster.Key]*record{},
		slices:    map[cluster.Key]*cluster.Slice{},
		ports:     map[bpf.Signature]*port{},
		frontends: map[bpf.FrontendKey]*frontend{},
		ips:       map[netip.Addr]*clusterIP{},
		leftover:  map[uint32]*leftover{},
		checks:    map[cluster.Key]HealthCheck{},
		byHost:    map[netip.Addr][]*record{},
	}
	s.runner = reconcile.NewRunner(reconcile.Options{Lock: &s.mu, Grace: c.Tables.Grace, Linger: c.Linger, Fault: c.Fault, Now: c.Now})
	return s, nil
}

// Apply takes what a source learned. When it returns, the maps say it too, or Conditions says why not; what failed is tried again by
// Run.
func (s *Proxy) Apply(b cluster.Batch) {
	s.mu.Lock()
	dirty := s.learn(b)
	if s.open {
		s.flush(dirty)
	} else if s.gate() {
		s.start()
	}
	tell := s.news()
	s.mu.Unlock()
	s.kick()
	tell()
}

// Synced says whether the gate is open and the maps hold, or refused with a condition, everything known then.
func (s *Proxy) Synced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// gate says whether enough is known to write: everything but the own Node may not exist, and the own Node is known to the source even
// where it may not list the others.
func (s *Proxy) gate() bool {
	return s.synced[cluster.ServiceKind] && s.synced[cluster.SliceKind] && (s.nodeSeen || s.synced[cluster.NodeKind])
}

// start adopts what is in the maps when the gate opens, and writes what differs from everything that is known.
func (s *Proxy) start() {
	if s.adoptErr = s.adopt(); s.adoptErr != nil {
		s.log.Warn("service maps cannot be adopted, trying again", "error", s.adoptErr)
		return
	}
	s.open = true
	began := s.cfg.Now()
	w := newWork()
	for _, r := range s.all() {
		r.dirty = false
		s.compile(r, w)
	}
	s.unwanted(w)
	s.write(w)
	s.writeCIDRs(slices.SortedFunc(maps.Keys(s.cidrs), comparePrefixes), began)
	s.stats.LastSync = s.cfg.Now().Sub(began)
	s.log.Info("services synced", "services", len(s.records), "took", s.stats.LastSync)
}

// unwanted touches what the maps hold though nobody wants it.
func (s *Proxy) unwanted(w *work) {
	var ports []*port
	for _, p := range s.ports {
		if p.want == nil {
			ports = append(ports, p)
		}
	}
	slices.SortFunc(ports, func(a, b *port) int { return cmp.Compare(a.id.ID, b.id.ID) })
	var keys []bpf.FrontendKey
	for k, f := range s.frontends {
		if len(f.claims) == 0 {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, compareFrontends)
	addrs := slices.SortedFunc(maps.Keys(s.ips), netip.Addr.Compare)
	for _, p := range ports {
		w.port(p)
	}
	for _, k := range keys {
		w.frontend(k)
	}
	for _, a := range addrs {
		w.ip(a)
	}
	s.unwantedRanges()
}

// all marks every record, in order of names so that ids and slots of a first start do not depend on chance.
func (s *Proxy) all() []*record {
	all := make([]*record, 0, len(s.records))
	for _, r := range s.records {
		r.dirty = true
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *record) int {
		return cmp.Or(strings.Compare(a.key.Namespace, b.key.Namespace), strings.Compare(a.key.Name, b.key.Name))
	})
	return all
}

func (s *Proxy) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run does what Apply leaves behind: removal after grace periods, and what failed. It returns when the context ends; the maps stay as
// they are.
func (s *Proxy) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		if err := s.tend(); err != nil {
			s.log.Warn("service maps lag behind, trying again", "error", err)
		}
		s.mu.Lock()
		at, ok := s.next()
		s.mu.Unlock()
		if ok {
			timer.Reset(max(at.Sub(s.cfg.Now()), time.Millisecond))
		}
	}
}

// next returns when there is something to tend; the lock is held.
func (s *Proxy) next() (at time.Time, ok bool) {
	for _, f := range []func() (time.Time, bool){s.runner.Next, s.failedPorts.Next, s.failedFrontends.Next, s.failedIPs.Next, s.failedCIDRs.Next} {
		if t, some := f(); some && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	if s.adoptErr != nil && !ok {
		return s.cfg.Now().Add(time.Second), true
	}
	return at, ok
}

// tend tries again what is due and ends changes behind a grace period.
func (s *Proxy) tend() error {
	ended, err := s.runner.Collect()
	s.mu.Lock()
	now := s.cfg.Now()
	if !s.open && s.gate() {
		s.start()
	}
	if s.open {
		if ended > 0 {
			// Something became free: what found no room may find it now.
			s.failedPorts.Hurry(now)
			s.failedFrontends.Hurry(now)
			s.failedIPs.Hurry(now)
			s.failedCIDRs.Hurry(now)
		}
		s.again(now)
		s.cfg.Tables.SetSlotsUsed(s.space.used)
	}
	tell := s.news()
	s.mu.Unlock()
	tell()
	return err
}

// news returns what is to be called without the lock for what happened since it was asked last; the lock is held.
func (s *Proxy) news() func() {
	silenced, checked := s.silenced && s.open, s.checked
	s.silenced, s.checked = s.silenced && !silenced, false
	return func() {
		if silenced && s.cfg.OnBackendsGone != nil {
			s.cfg.OnBackendsGone()
		}
		if checked && s.cfg.OnHealthChecks != nil {
			s.cfg.OnHealthChecks()
		}
	}
}

// again tries what failed and is due; the lock is held.
func (s *Proxy) again(now time.Time) {
	var ports []*port
	for _, sig := range s.failedPorts.Due(now) {
		if p := s.ports[sig]; p != nil && p.want != nil {
			ports = append(ports, p)
		} else {
			s.failedPorts.Forget(sig)
		}
	}
	slices.SortFunc(ports, func(a, b *port) int { return slices.Compare(a.sig[:], b.sig[:]) })
	keys := s.failedFrontends.Due(now)
	slices.SortFunc(keys, compareFrontends)
	addrs := s.failedIPs.Due(now)
	slices.SortFunc(addrs, netip.Addr.Compare)
	s.writeCIDRs(s.failedCIDRs.Due(now), now)
	if len(ports)+len(keys)+len(addrs) == 0 && len(s.leftover) == 0 {
		return
	}
	w := newWork()
	for _, p := range ports {
		w.port(p)
		w.record(p.record)
	}
	for _, k := range keys {
		w.frontend(k)
	}
	for _, a := range addrs {
		w.ip(a)
	}
	s.write(w)
}
