// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/k8s"
	"github.com/fairlead/fairlead/pkg/manifest"
	"github.com/fairlead/fairlead/pkg/metrics"
	"github.com/fairlead/fairlead/pkg/service"
)

// source is where the cluster's objects come from.
type source interface {
	cluster.Source
	Conditions() []cluster.Condition
}

// newSource returns the API server, or the directory of manifests. addresses, which may be nil, says what ADD gave to pods that manifests
// describe.
func (a *agent) newSource(addresses manifest.Addresses) (source, error) {
	if a.config.Manifests == "" {
		return k8s.New(k8s.Options{
			NodeName: a.config.NodeName, Kubeconfig: a.config.Kubeconfig, APIServers: a.config.APIServers,
			SnapshotPath: filepath.Join(a.config.StateDir, "snapshot.json"), Log: a.log.With("component", "k8s"),
		})
	}
	return manifest.New(manifest.Options{
		Dir: a.config.Manifests, NodeName: a.config.NodeName, SavedDir: filepath.Join(a.config.StateDir, "manifests"),
		Addresses: addresses, Log: a.log.With("component", "manifest"),
	})
}

// follow runs a source until the context or end ends it, and feeds what it says.
func follow(ctx context.Context, group *errgroup.Group, from source, to *feed) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	group.Go(func() error {
		defer close(ended)
		return from.Run(ctx, func(b cluster.Batch) { to.put(ctx, b) })
	})
	return func() {
		cancel()
		<-ended
	}
}

// sourceName says it in a word.
func (a *agent) sourceName() string {
	if a.config.Manifests != "" {
		return "manifests in " + a.config.Manifests
	}
	return "API server"
}

// noLocal counts what kube-proxy counts in sync_proxy_rules_no_local_endpoints_total: Services with traffic policy Local and endpoints,
// none of which is here.
func noLocal(services []service.View) []metrics.NoLocal {
	counts := map[metrics.NoLocal]int{}
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, policy := range []string{"internal", "external"} {
			counts[metrics.NoLocal{Family: family, Policy: policy}] = 0
		}
	}
	for _, v := range services {
		if v.Local > 0 || len(v.Backends) == 0 {
			continue
		}
		if v.InternalPolicy == "Local" {
			counts[metrics.NoLocal{Family: v.Family, Policy: "internal"}]++
		}
		if v.ExternalPolicy == "Local" {
			counts[metrics.NoLocal{Family: v.Family, Policy: "external"}]++
		}
	}
	var all []metrics.NoLocal
	for n, count := range counts {
		n.Count = count
		all = append(all, n)
	}
	return all
}
