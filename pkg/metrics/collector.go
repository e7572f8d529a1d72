// SPDX-License-Identifier: Apache-2.0

package metrics

import "github.com/prometheus/client_golang/prometheus"

// collector turns what the sources say at the moment of a scrape into metrics.
type collector struct {
	Sources
	descriptions
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) { send(out, d, prometheus.GaugeValue, v, labels) }
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		send(out, d, prometheus.CounterValue, v, labels)
	}
	source := func(name string, err error) {
		gauge(c.scrapeFailed, truth(err != nil), name)
	}

	gauge(c.build, 1, c.Version)
	s := c.State()
	gauge(c.ready, truth(s.Ready))
	for name, open := range s.Gates {
		gauge(c.gate, truth(open), name)
	}
	for component, n := range s.Conditions {
		gauge(c.condition, float64(n), component)
	}
	gauge(c.endpoints, float64(s.Endpoints))
	gauge(c.peers, float64(s.Peers))
	gauge(c.services, float64(s.Services))
	gauge(c.backends, float64(s.Backends))
	for _, n := range s.NoLocal {
		gauge(c.noLocal, float64(n.Count), n.Family, n.Policy)
	}
	for component, n := range s.Repaired {
		counter(c.repaired, float64(n), component)
	}
	for _, v := range s.Verbs {
		counter(c.calls, float64(v.Calls), v.Name)
		counter(c.callsFailed, float64(v.Failed), v.Name)
		counter(c.callSeconds, v.Total.Seconds(), v.Name)
	}
	for _, p := range s.Pools {
		gauge(c.poolSize, float64(p.Size), p.CIDR)
		gauge(c.poolUsed, float64(p.Used), p.CIDR)
	}
	for level, n := range s.Logged {
		counter(c.logged, float64(n), level)
	}

	maps, err := c.Maps()
	source("maps", err)
	for _, m := range maps {
		gauge(c.mapCapacity, float64(m.Capacity), m.Name)
		gauge(c.mapUsed, float64(m.Used), m.Name)
		counter(c.mapFailed, float64(m.Failed), m.Name)
	}
	drops, err := c.Drops()
	source("drops", err)
	for reason, n := range drops {
		counter(c.drops, float64(n), reason)
	}
	events, err := c.Events()
	source("events", err)
	for event, n := range events {
		counter(c.events, float64(n), event)
	}
	flows, err := c.Flows()
	source("flows", err)
	for state, n := range flows {
		gauge(c.flows, float64(n), state)
	}
}

func send(out chan<- prometheus.Metric, d *prometheus.Desc, t prometheus.ValueType, v float64, labels []string) {
	m, err := prometheus.NewConstMetric(d, t, v, labels...)
	if err != nil {
		m = prometheus.NewInvalidMetric(d, err)
	}
	out <- m
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
