// SPDX-License-Identifier: Apache-2.0

package metrics

import "github.com/prometheus/client_golang/prometheus"

// Every metric of the agent. Names that kube-proxy has keep kube-proxy's name, labels and buckets, so that dashboards and
// clusterloader2 find them; everything else is fairlead_*. Label values are the words of the CLI and the logs.
const (
	nameProgramming      = "kubeproxy_network_programming_duration_seconds"
	nameSync             = "kubeproxy_sync_proxy_rules_duration_seconds"
	nameSyncLast         = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
	nameSyncQueued       = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"
	nameEndpointsPending = "kubeproxy_sync_proxy_rules_endpoint_changes_pending"
	nameEndpointsTotal   = "kubeproxy_sync_proxy_rules_endpoint_changes_total"
	nameServicesPending  = "kubeproxy_sync_proxy_rules_service_changes_pending"
	nameServicesTotal    = "kubeproxy_sync_proxy_rules_service_changes_total"
	nameNoLocal          = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
	nameHealthz          = "kubeproxy_proxy_healthz_total"
	nameLivez            = "kubeproxy_proxy_livez_total"

	nameBuild         = "fairlead_build_info"
	nameReady         = "fairlead_ready"
	nameGate          = "fairlead_gate_open"
	nameCondition     = "fairlead_conditions"
	nameEndpoints     = "fairlead_endpoints"
	namePeers         = "fairlead_peers"
	nameServices      = "fairlead_services"
	nameBackends      = "fairlead_backends"
	nameFlows         = "fairlead_flows"
	nameCalls         = "fairlead_cni_calls_total"
	nameCallsFailed   = "fairlead_cni_failures_total"
	nameCallSeconds   = "fairlead_cni_seconds_total"
	namePoolSize      = "fairlead_pool_size"
	namePoolUsed      = "fairlead_pool_used"
	nameRepaired      = "fairlead_repairs_total"
	nameMapCapacity   = "fairlead_map_capacity"
	nameMapUsed       = "fairlead_map_used"
	nameMapFailed     = "fairlead_map_insert_failures_total"
	nameDrops         = "fairlead_drops_total"
	nameEvents        = "fairlead_events_total"
	nameSocketsEnded  = "fairlead_sockets_destroyed_total"
	nameLogged        = "fairlead_log_messages_total"
	nameScrapeFailure = "fairlead_scrape_failed"
)

// descriptions are those of the metrics that are read at scrape time.
type descriptions struct {
	build, ready, gate, condition, endpoints, peers, services, backends, flows    *prometheus.Desc
	calls, callsFailed, callSeconds, poolSize, poolUsed, repaired                 *prometheus.Desc
	mapCapacity, mapUsed, mapFailed, drops, events, noLocal, logged, scrapeFailed *prometheus.Desc
}

func describe() descriptions {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return descriptions{
		build:        d(nameBuild, "Always 1; the labels say what runs.", "version"),
		ready:        d(nameReady, "1 once the agent has done its first complete pass."),
		gate:         d(nameGate, "1 once the domain may write.", "gate"),
		condition:    d(nameCondition, "Number of things that are wrong now, by component.", "component"),
		endpoints:    d(nameEndpoints, "Pods of this node."),
		peers:        d(namePeers, "Other nodes that are known."),
		services:     d(nameServices, "Service ports, both families together."),
		backends:     d(nameBackends, "Backends of all services."),
		flows:        d(nameFlows, "Recorded flows by state.", "state"),
		calls:        d(nameCalls, "Requests of the container runtime.", "verb"),
		callsFailed:  d(nameCallsFailed, "Requests of the container runtime that ended with an error.", "verb"),
		callSeconds:  d(nameCallSeconds, "Time spent in requests of the container runtime.", "verb"),
		poolSize:     d(namePoolSize, "Addresses of a pod CIDR that pods can have.", "cidr"),
		poolUsed:     d(namePoolUsed, "Addresses of a pod CIDR that pods have.", "cidr"),
		repaired:     d(nameRepaired, "What somebody else changed and the agent put right, by component.", "component"),
		mapCapacity:  d(nameMapCapacity, "Entries that a map can hold.", "map"),
		mapUsed:      d(nameMapUsed, "Entries in use.", "map"),
		mapFailed:    d(nameMapFailed, "Inserts of the agent that found no room.", "map"),
		drops:        d(nameDrops, "Packets and system calls refused, by reason.", "reason"),
		events:       d(nameEvents, "What the programs count and do not refuse.", "event"),
		noLocal:      d(nameNoLocal, "Number of services with traffic policy Local and no local endpoint.", "ip_family", "traffic_policy"),
		logged:       d(nameLogged, "Log messages by level.", "level"),
		scrapeFailed: d(nameScrapeFailure, "1 when a source of metrics could not be read.", "source"),
	}
}
