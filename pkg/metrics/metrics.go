// SPDX-License-Identifier: Apache-2.0

// Package metrics shows the agent's state to Prometheus. What the kernel counts is read from the maps when it is asked for: nothing
// polls. It serves kube-proxy's paths, /metrics and /proxyMode.
package metrics

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Mode is the answer to /proxyMode.
const Mode = "ebpf"

// State is what the agent holds at one moment.
type State struct {
	Ready      bool
	Gates      map[string]bool // by domain: open
	Conditions map[string]int  // by component
	Endpoints  int
	Peers      int
	Services   int
	Backends   int
	NoLocal    []NoLocal
	Logged     map[string]uint64 // messages by level
	Repaired   map[string]uint64 // by component
	Verbs      []Verb
	Pools      []Pool
}

// Verb is what the container runtime asked for.
type Verb struct {
	Name          string
	Calls, Failed uint64
	Total         time.Duration // in all calls together
}

// Pool is the use of a pod CIDR of this node, in addresses.
type Pool struct {
	CIDR       string
	Size, Used int
}

// NoLocal counts the services of a family that have a traffic policy Local and no local endpoint.
type NoLocal struct {
	Family string // IPv4 or IPv6
	Policy string // internal or external
	Count  int
}

// Map is the use of a BPF map in entries.
type Map struct {
	Name                   string
	Capacity, Used, Failed uint64
}

// Sources are read at every scrape. One that fails costs its own metrics only, and fairlead_scrape_failed says so.
type Sources struct {
	Version string
	State   func() State
	Maps    func() ([]Map, error)
	Drops   func() (map[string]uint64, error)
	Events  func() (map[string]uint64, error)
	Flows   func() (map[string]uint64, error) // by state
}

// Metrics is the registry of one agent.
type Metrics struct {
	registry *prometheus.Registry

	programming, sync    *prometheus.HistogramVec
	syncLast, syncQueued *prometheus.GaugeVec
	healthz, livez       *prometheus.CounterVec
	changes              changes
	sockets              prometheus.Counter
}

// changes counts Service and EndpointSlice events, as kube-proxy does.
type changes struct {
	endpoints, services               prometheus.Counter
	endpointsPending, servicesPending prometheus.Gauge
}

// New returns metrics without sources: what is counted here is served from the start.
func New() *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		programming: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: nameProgramming, Help: "Time from the change of an endpoint to the dataplane.", Buckets: programmingBuckets(),
		}, []string{"ip_family"}),
		sync: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: nameSync, Help: "Time to bring one batch of changes into the dataplane.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"ip_family"}),
		syncLast: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: nameSyncLast, Help: "When changes last reached the dataplane, in seconds since 1970.",
		}, []string{"ip_family"}),
		syncQueued: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: nameSyncQueued, Help: "When changes last arrived, in seconds since 1970.",
		}, []string{"ip_family"}),
		changes: changes{
			endpoints:        counter(nameEndpointsTotal, "EndpointSlice changes seen."),
			services:         counter(nameServicesTotal, "Service changes seen."),
			endpointsPending: gauge(nameEndpointsPending, "EndpointSlice changes that have not reached the dataplane."),
			servicesPending:  gauge(nameServicesPending, "Service changes that have not reached the dataplane."),
		},
		healthz: prometheus.NewCounterVec(prometheus.CounterOpts{Name: nameHealthz, Help: "Answers to /healthz by code."}, []string{"code"}),
		livez:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: nameLivez, Help: "Answers to /livez by code."}, []string{"code"}),
		sockets: counter(nameSocketsEnded, "Sockets destroyed because their backend is gone."),
	}
	m.registry.MustRegister(m.programming, m.sync, m.syncLast, m.syncQueued, m.changes.endpoints, m.changes.services,
		m.changes.endpointsPending, m.changes.servicesPending, m.healthz, m.livez, m.sockets,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// programmingBuckets are kube-proxy's.
func programmingBuckets() []float64 {
	var b []float64
	b = append(b, prometheus.LinearBuckets(0.25, 0.25, 2)...)
	b = append(b, prometheus.LinearBuckets(1, 1, 59)...)
	b = append(b, prometheus.LinearBuckets(60, 5, 12)...)
	return append(b, prometheus.LinearBuckets(120, 30, 7)...)
}

// Read adds what is read from the sources at every scrape.
func (m *Metrics) Read(s Sources) error {
	if err := m.registry.Register(&collector{Sources: s, descriptions: describe()}); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	return nil
}

// Pending says that changes of so many Services and EndpointSlices have arrived.
func (m *Metrics) Pending(services, endpoints int, now time.Time) {
	m.changes.services.Add(float64(services))
	m.changes.endpoints.Add(float64(endpoints))
	m.changes.servicesPending.Add(float64(services))
	m.changes.endpointsPending.Add(float64(endpoints))
	for _, family := range []string{"IPv4", "IPv6"} {
		m.syncQueued.WithLabelValues(family).Set(seconds(now))
	}
}

// Synced says that everything pending has reached the dataplane, or was refused with a condition, after so long.
func (m *Metrics) Synced(took time.Duration, now time.Time) {
	m.changes.servicesPending.Set(0)
	m.changes.endpointsPending.Set(0)
	for _, family := range []string{"IPv4", "IPv6"} {
		m.sync.WithLabelValues(family).Observe(took.Seconds())
		m.syncLast.WithLabelValues(family).Set(seconds(now))
	}
}

// Programmed says that an EndpointSlice of the family reached the dataplane so long after the change that caused it.
func (m *Metrics) Programmed(ipv6 bool, after time.Duration) {
	family := "IPv4"
	if ipv6 {
		family = "IPv6"
	}
	m.programming.WithLabelValues(family).Observe(after.Seconds())
}

// SocketsDestroyed adds to the sockets that were destroyed because their backend is gone.
func (m *Metrics) SocketsDestroyed(n int) { m.sockets.Add(float64(n)) }

// Health counts one answer to healthz or livez.
func (m *Metrics) Health(path string, code int) {
	counter := m.livez
	if path == "healthz" {
		counter = m.healthz
	}
	counter.WithLabelValues(strconv.Itoa(code)).Inc()
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// Handler serves /metrics and /proxyMode.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		fmt.Fprint(w, Mode)
	})
	return mux
}
