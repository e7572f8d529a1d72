// SPDX-License-Identifier: Apache-2.0

// Package agent is the daemon: it makes every component, gives each what it needs of the others, and starts them in order. Whatever the
// components have to do with each other is visible here; they do not know each other.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/endpoint"
	"github.com/fairlead/fairlead/pkg/flow"
	"github.com/fairlead/fairlead/pkg/health"
	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/masquerade"
	"github.com/fairlead/fairlead/pkg/metrics"
	"github.com/fairlead/fairlead/pkg/nft"
	"github.com/fairlead/fairlead/pkg/node"
	"github.com/fairlead/fairlead/pkg/query"
	"github.com/fairlead/fairlead/pkg/service"
)

// errChanged ends a run because a fact that programs and pods are made with is another one. The next run adopts everything.
var errChanged = errors.New("own node changed")

// agent is what outlives a run.
type agent struct {
	config  Config
	version string
	log     *slog.Logger
	memory  *memory
	started time.Time
}

// Run is the agent, until the context ends: then it returns nil, and the dataplane goes on without it. Any other end is an error. Only one
// agent may run per run directory. Logs go to out.
func Run(ctx context.Context, c Config, version string, out io.Writer) (err error) {
	log, memory := newLog(&c, out)
	log.Info("start", "version", version, "node", c.NodeName, "pid", os.Getpid())
	release, err := lockRunDir(c.RunDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return fmt.Errorf("make --state-dir: %w", err)
	}
	a := &agent{config: c, version: version, log: log, memory: memory, started: time.Now()}
	for {
		err := a.run(ctx)
		if errors.Is(err, errChanged) {
			log.Info("start again, the dataplane goes on meanwhile", "reason", err)
			continue
		}
		if err == nil {
			log.Info("stop, the dataplane goes on without the agent")
		}
		return err
	}
}

// run is the start order: each paragraph makes one component, from what stands above it. It returns when the context ends, with nil, when
// a component fails, or with errChanged.
func (a *agent) run(parent context.Context) (err error) {
	ctx, stop := context.WithCancelCause(parent)
	group, ctx := errgroup.WithContext(ctx)
	peersGate := newGate("peers", "own Node", cluster.NodeKind.String(), "peer map and routes")
	serviceGate := newGate("service", "own Node", cluster.ServiceKind.String(), cluster.SliceKind.String(), "service maps")
	confGate := newGate("cni", confNeed)
	s := newState(a, peersGate, serviceGate, confGate)
	var closers []func() error
	defer func() {
		stop(err)
		err = cmp.Or(err, group.Wait())
		s.close()
		for _, c := range slices.Backward(closers) {
			err = errors.Join(err, c())
		}
		if cause := context.Cause(ctx); errors.Is(cause, errChanged) {
			err = cause
		} else if parent.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil
		}
	}()

	// Questions are answered from the start: an agent that waits says what for.
	m := metrics.New()
	if err := m.Read(s.sources()); err != nil {
		return err
	}
	h := health.New(time.Now, m.Health)
	h.SetWaiting(s.waiting)
	healthListener, err := listen("healthz-bind-address", a.config.HealthAddr)
	if err != nil {
		return err
	}
	group.Go(func() error { return serveHTTP(ctx, healthListener, h.Handler()) })
	metricsListener, err := listen("metrics-bind-address", a.config.MetricsAddr)
	if err != nil {
		return err
	}
	group.Go(func() error { return serveHTTP(ctx, metricsListener, s.guard(m.Handler())) })
	queryListener, err := query.Listen(filepath.Join(a.config.RunDir, querySocket))
	if err != nil {
		return err
	}
	group.Go(func() error { return query.Serve(ctx, queryListener, s.guard(query.Handler(s.answers()))) })

	// The host: what cannot work is refused by its name.
	cgroup, err := checkHost(a.config, a.log)
	if err != nil {
		return err
	}

	// The cluster's objects. They are kept until there is somebody to give them to.
	source, err := a.newSource(nil)
	if err != nil {
		return err
	}
	s.made(func(p *parts) { p.source = source })
	feed := newFeed()
	endSource := follow(ctx, group, source, feed)

	// Addresses for traffic to outside.
	nl, err := link.Open()
	if err != nil {
		return err
	}
	closers = append(closers, func() error { nl.Close(); return nil })
	tables := nft.New(nl.Descriptor())
	egress := masquerade.New(masquerade.Config{
		Overlay: node.Device, PodDevices: cni.LinkPrefix + "*", Cluster: a.config.ClusterCIDRs, Log: a.log.With("component", "masquerade"),
	}, tables)

	// The own Node decides pod CIDRs and addresses; device and routes are made for it.
	changed := func(self node.Self) { stop(fmt.Errorf("%w: %v", errChanged, self.LogValue())) }
	nodes, err := a.newNode(nl, changed, func(c node.CIDRs) { egress.Change(c.Add, c.Remove, c.Synced) })
	if err != nil {
		return err
	}
	if err := feed.untilOwn(ctx, a.config.NodeName, func(own *cluster.Node) error { return s.setUp(nodes, own) }, a.log); err != nil {
		return err
	}
	self := nodes.Self()
	a.log.Info("own node is set up", "self", self)
	s.made(func(p *parts) { p.nodes = nodes })

	// Maps are adopted or made; programs are loaded for this node and take over from those of the agent before.
	veths, err := link.OpenVeths()
	if err != nil {
		return err
	}
	closers = append(closers, veths.Close)
	objects, err := bpf.Open(bpf.Options{
		Dir: a.config.BPFFSDir, Config: programConfig(a.config, self, veths.Cookie()), Capacity: a.config.Capacity, Log: a.log.With("component", "bpf"),
	})
	if err != nil {
		return err
	}
	closers = append(closers, objects.Close)
	s.made(func(p *parts) { p.objects = objects })
	filters, err := podFilters(objects)
	if err != nil {
		return err
	}
	if err := errors.Join(objects.AttachSock(cgroup), attachOverlay(objects, veths, self), objects.ArmSweep()); err != nil {
		return err
	}

	// Addresses that NodePorts and host ports answer on, and the devices by which other machines come to them.
	front, err := a.newFront(nl, nodes, objects, veths)
	if err != nil {
		return err
	}
	s.made(func(p *parts) { p.front = front })
	group.Go(func() error { return front.Run(ctx) })

	// Pods of this node: those of the agent before are taken over, then the container runtime is answered.
	endpoints, err := endpoint.Open(endpoint.Config{
		RunDir: a.config.RunDir, StateDir: a.config.StateDir, Pools: self.PodCIDRs, MTU: self.MTU, GatewayMAC: self.GatewayMAC,
		Sources: podSources(self), Filters: filters, Dataplane: objects.Endpoints(), HostPorts: objects.HostPorts(), IDs: objects.IDs(), Log: a.log,
	})
	if err != nil {
		return err
	}
	closers = append(closers, endpoints.Close)
	s.made(func(p *parts) { p.endpoints = endpoints })
	group.Go(func() error { return endpoints.Run(ctx) })
	group.Go(func() error { return watchEndpoints(ctx, h, endpoints) })
	runtime, err := cni.Listen(a.config.RunDir)
	if err != nil {
		return err
	}
	group.Go(func() error { return cni.Serve(ctx, runtime, endpoints, a.log.With("component", "cni")) })

	// Manifests say which pods belong to a Service; what addresses those of this node have is known only now. So the directory is read
	// again, with them: Services that the maps hold must not lose backends because nobody had asked yet.
	if a.config.Manifests != "" {
		endSource()
		if source, err = a.newSource(endpoints); err != nil {
			return err
		}
		s.made(func(p *parts) { p.source = source })
		feed = newFeed()
		follow(ctx, group, source, feed)
	}

	// Services, and the sockets that lose their backend.
	stale, err := objects.StaleSockets()
	if err != nil {
		return err
	}
	closers = append(closers, stale.Close)
	sockets := newSweeper(flow.NewSockets(stale, endpoints, a.log.With("component", "flow")).Sweep, m.SocketsDestroyed, a.log)
	group.Go(func() error { return sockets.run(ctx) })
	var checks *health.ServicePorts
	proxy, err := service.New(service.Config{
		Node: a.config.NodeName, Tables: objects.Services(), IDs: objects.IDs(), Log: a.log,
		IgnoreExternalIPs: !a.config.ExternalIPs, ServiceCIDRs: a.config.ServiceCIDRs,
		OnBackendsGone: sockets.ask, OnHealthChecks: func() { checks.Wake() },
	})
	if err != nil {
		return err
	}
	checks = health.NewServicePorts(func() []health.ServicePort { return healthPorts(proxy) }, func() bool { return len(h.Stuck()) == 0 },
		a.log.With("component", "health"))
	s.made(func(p *parts) { p.proxy, p.checks = proxy, checks })
	group.Go(func() error { return checks.Run(ctx) })
	group.Go(func() error { return proxy.Run(ctx) })

	// Routes to other nodes, and traffic to outside.
	group.Go(func() error { return nodes.Run(ctx, objects.Peers(), objects.IDs()) })
	if a.config.Masquerade {
		egress.SetOwn(self.PodCIDRs)
		s.made(func(p *parts) { p.masquerade = egress })
		group.Go(func() error { return egress.Run(ctx) })
	} else if err := masquerade.Remove(tables); err != nil {
		return err
	}

	// From here on the domains hear what the source says. Each waits for its gate by itself; the ones here are what people see of it.
	d := &dispatcher{agent: a, state: s, health: h, metrics: m, nodes: nodes, proxy: proxy, gates: []*gate{peersGate, serviceGate}}
	group.Go(func() error { return feed.run(ctx, d.apply) })
	group.Go(func() error { return waitFor(ctx, nodes.Synced(), func() { peersGate.have("peer map and routes") }) })
	group.Go(func() error { return waitUntil(ctx, proxy.Synced, func() { serviceGate.have("service maps") }) })
	serviceGate.have("own Node")
	peersGate.have("own Node")

	// With open gates pods may come: the container runtime learns of the network now, and keeps it when the agent stops.
	group.Go(func() error {
		if err := errors.Join(waitFor(ctx, serviceGate.open, sockets.ask), waitFor(ctx, peersGate.open, nil)); err != nil {
			return err
		}
		return a.keepConf(ctx, s, confGate)
	})
	return group.Wait()
}
