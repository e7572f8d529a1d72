// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/metrics"
)

// sources is an agent with a few of everything.
func sources() metrics.Sources {
	return metrics.Sources{
		Version: "v1",
		State: func() metrics.State {
			return metrics.State{
				Ready: true, Gates: map[string]bool{"service": true, "node": false}, Conditions: map[string]int{"node": 2},
				Endpoints: 3, Peers: 4, Services: 5, Backends: 6,
				NoLocal: []metrics.NoLocal{{Family: "IPv6", Policy: "external", Count: 7}}, Logged: map[string]uint64{"WARN": 8},
				Repaired: map[string]uint64{"node": 9}, Pools: []metrics.Pool{{CIDR: "10.0.0.0/24", Size: 253, Used: 3}},
				Verbs: []metrics.Verb{{Name: "ADD", Calls: 5, Failed: 1, Total: 1500 * time.Millisecond}},
			}
		},
		Maps: func() ([]metrics.Map, error) {
			return []metrics.Map{{Name: "frontends", Capacity: 100, Used: 9, Failed: 1}}, nil
		},
		Drops:  func() (map[string]uint64, error) { return map[string]uint64{"too-big": 10}, nil },
		Events: func() (map[string]uint64, error) { return map[string]uint64{"to-stack": 11}, nil },
		Flows:  func() (map[string]uint64, error) { return map[string]uint64{"tcp-open": 12}, nil },
	}
}

// scrape returns the lines of /metrics that carry a value and belong to kube-proxy or Fairlead.
func scrape(t *testing.T, m *metrics.Metrics) []string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("/metrics answers %d: %s", w.Code, w.Body)
	}
	var lines []string
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "kubeproxy_") || strings.HasPrefix(line, "fairlead_") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func TestSourcesAreReadAtScrape(t *testing.T) {
	m := metrics.New()
	s := sources()
	drops := uint64(1)
	s.Drops = func() (map[string]uint64, error) { return map[string]uint64{"too-big": drops}, nil }
	if err := m.Read(s); err != nil {
		t.Fatal(err)
	}
	drops = 42
	want := []string{
		`fairlead_backends 6`, `fairlead_build_info{version="v1"} 1`, `fairlead_cni_calls_total{verb="ADD"} 5`,
		`fairlead_cni_failures_total{verb="ADD"} 1`, `fairlead_cni_seconds_total{verb="ADD"} 1.5`, `fairlead_conditions{component="node"} 2`,
		`fairlead_drops_total{reason="too-big"} 42`, `fairlead_endpoints 3`, `fairlead_events_total{event="to-stack"} 11`,
		`fairlead_flows{state="tcp-open"} 12`, `fairlead_gate_open{gate="node"} 0`, `fairlead_gate_open{gate="service"} 1`,
		`fairlead_log_messages_total{level="WARN"} 8`, `fairlead_map_capacity{map="frontends"} 100`,
		`fairlead_map_insert_failures_total{map="frontends"} 1`, `fairlead_map_used{map="frontends"} 9`, `fairlead_peers 4`,
		`fairlead_pool_size{cidr="10.0.0.0/24"} 253`, `fairlead_pool_used{cidr="10.0.0.0/24"} 3`, `fairlead_ready 1`,
		`fairlead_repairs_total{component="node"} 9`, `fairlead_scrape_failed{source="drops"} 0`, `fairlead_scrape_failed{source="events"} 0`,
		`fairlead_scrape_failed{source="flows"} 0`, `fairlead_scrape_failed{source="maps"} 0`, `fairlead_services 5`,
		`fairlead_sockets_destroyed_total 0`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_pending 0`, `kubeproxy_sync_proxy_rules_endpoint_changes_total 0`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 7`,
		`kubeproxy_sync_proxy_rules_service_changes_pending 0`, `kubeproxy_sync_proxy_rules_service_changes_total 0`,
	}
	if diff := cmp.Diff(want, scrape(t, m)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestOneBrokenSourceCostsItsOwnMetricsOnly(t *testing.T) {
	m := metrics.New()
	s := sources()
	s.Maps = func() ([]metrics.Map, error) { return nil, errors.New("read map: broken") }
	if err := m.Read(s); err != nil {
		t.Fatal(err)
	}
	lines := scrape(t, m)
	for _, want := range []string{`fairlead_scrape_failed{source="maps"} 1`, `fairlead_drops_total{reason="too-big"} 10`} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %s in\n%s", want, strings.Join(lines, "\n"))
		}
	}
}

// What kube-proxy's dashboards and clusterloader2 look for, by name and label.
func TestKubeProxyNames(t *testing.T) {
	m := metrics.New()
	now := time.Unix(1000, 0)
	m.Pending(2, 3, now)
	before := scrape(t, m)
	m.Synced(3*time.Millisecond, now.Add(time.Second))
	m.Programmed(true, 700*time.Millisecond)
	m.Health("healthz", 503)
	m.Health("livez", 200)
	after := scrape(t, m)
	for _, line := range []struct {
		in   []string
		want string
	}{
		{before, `kubeproxy_sync_proxy_rules_service_changes_pending 2`},
		{before, `kubeproxy_sync_proxy_rules_endpoint_changes_pending 3`},
		{before, `kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"} 1000`},
		{after, `kubeproxy_sync_proxy_rules_service_changes_pending 0`},
		{after, `kubeproxy_sync_proxy_rules_service_changes_total 2`},
		{after, `kubeproxy_sync_proxy_rules_endpoint_changes_total 3`},
		{after, `kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"} 1001`},
		{after, `kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.002"} 0`},
		{after, `kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.004"} 1`},
		{after, `kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6",le="0.5"} 0`},
		{after, `kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6",le="1"} 1`},
		{after, `kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6",le="300"} 1`},
		{after, `kubeproxy_proxy_healthz_total{code="503"} 1`},
		{after, `kubeproxy_proxy_livez_total{code="200"} 1`},
	} {
		if !slices.Contains(line.in, line.want) {
			t.Errorf("no line %s in\n%s", line.want, strings.Join(line.in, "\n"))
		}
	}
}

func TestProxyMode(t *testing.T) {
	w := httptest.NewRecorder()
	metrics.New().Handler().ServeHTTP(w, httptest.NewRequest("GET", "/proxyMode", nil))
	if w.Code != 200 || w.Body.String() != metrics.Mode {
		t.Errorf("/proxyMode answers %d %q", w.Code, w.Body)
	}
}
