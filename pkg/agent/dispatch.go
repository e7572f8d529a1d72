// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/endpoint"
	"github.com/fairlead/fairlead/pkg/health"
	"github.com/fairlead/fairlead/pkg/metrics"
	"github.com/fairlead/fairlead/pkg/node"
	"github.com/fairlead/fairlead/pkg/service"
)

// dispatcher gives every batch to the domains, one batch after the other, and measures.
type dispatcher struct {
	agent   *agent
	state   *state
	health  *health.Health
	metrics *metrics.Metrics
	nodes   *node.Node
	proxy   *service.Proxy
	gates   []*gate
}

// serviceLoop is the name of the loop that health watches here.
const serviceLoop = "service"

func (d *dispatcher) apply(b cluster.Batch) {
	d.state.learn(b)
	services, endpoints := 0, 0
	for _, c := range b.Changes {
		switch c.Kind {
		case cluster.ServiceKind:
			services++
		case cluster.SliceKind:
			endpoints++
		case cluster.NodeKind:
			if c.Key.Name == d.agent.config.NodeName {
				own, _ := c.Value.(*cluster.Node)
				d.health.SetEligible(own != nil && !own.Deleting && !own.Excluded)
			}
		}
	}
	d.nodes.Apply(b)

	began := time.Now()
	d.metrics.Pending(services, endpoints, began)
	d.health.Queued(serviceLoop)
	d.proxy.Apply(b)
	d.health.Done(serviceLoop)
	now := time.Now()
	if d.proxy.Synced() {
		d.metrics.Synced(now.Sub(began), now)
		d.measure(b, now)
	}
	for _, k := range b.Synced {
		for _, g := range d.gates {
			g.have(k.String())
		}
	}
}

// measure tells how long changes of endpoints took from their cause to the dataplane. Those from before the agent's start waited for the
// agent, not for its work, and are left out, as kube-proxy does (endpointschangetracker.go).
func (d *dispatcher) measure(b cluster.Batch, now time.Time) {
	for _, c := range b.Changes {
		if v, ok := c.Value.(*cluster.Slice); ok && v.LastChange.After(d.agent.started) {
			d.metrics.Programmed(v.IPv6, now.Sub(v.LastChange))
		}
	}
}

// endpointLoop is the name of the second loop that health watches.
const endpointLoop = "endpoint"

// How often it is looked whether ADD could run, and how long that may take.
const (
	aliveEvery = 10 * time.Second
	aliveWait  = 5 * time.Second
)

// watchEndpoints tells health whether ADD makes progress, until the context ends.
func watchEndpoints(ctx context.Context, h *health.Health, endpoints *endpoint.Table) error {
	for {
		h.Queued(endpointLoop)
		look, cancel := context.WithTimeout(ctx, aliveWait)
		if endpoints.Alive(look) == nil {
			h.Done(endpointLoop)
		}
		cancel()
		if !pause(ctx, aliveEvery) {
			return context.Cause(ctx)
		}
	}
}

// waitFor calls then, which may be nil, once the channel is closed.
func waitFor(ctx context.Context, closed <-chan struct{}, then func()) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-closed:
	}
	if then != nil {
		then()
	}
	return nil
}

// poll is how often a fact is looked at that nobody announces.
const poll = 50 * time.Millisecond

// waitUntil calls then once the fact is true.
func waitUntil(ctx context.Context, fact func() bool, then func()) error {
	for !fact() {
		if !pause(ctx, poll) {
			return context.Cause(ctx)
		}
	}
	then()
	return nil
}
