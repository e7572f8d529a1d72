// SPDX-License-Identifier: Apache-2.0

// Package k8s watches a Kubernetes API server and yields what it says as cluster values. It is the only importer of client-go.
//
// Each kind is listed completely, by a consistent read, and then followed by one stream. API objects are converted one by one as they are
// decoded, and only the compact values stay in memory. Changes that do not touch a value are not passed on.
package k8s

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/pkg/cluster"
)

const (
	// snapshotAfter is how long the source waits for the API server before it yields the own Node from the snapshot.
	snapshotAfter = 5 * time.Second
	// snapshotEvery is how often versions alone are written; the Node and the API servers are written when they change.
	snapshotEvery = time.Minute
)

// Options configure a Source.
type Options struct {
	NodeName     string   // own node
	Kubeconfig   string   // file; empty: the credentials of the pod that we run in
	APIServers   []string // HOST:PORT, tried in order instead of the configured address; TLS expects kubernetes.default.svc
	SnapshotPath string   // file to read at start and keep up to date; empty: none
	Log          *slog.Logger
}

// Source yields Nodes, the own node's Pods, Services and EndpointSlices of an API server. It satisfies cluster.Source.
type Source struct {
	options    Options
	log        *slog.Logger
	client     *client
	conditions cluster.Conditions
	versions   *versions

	// All below belongs to the goroutine of Run.
	saved    cluster.Snapshot // as it should be on disk
	written  cluster.Snapshot // as it is
	fromDisk bool             // the own Node was yielded from the snapshot
	own      bool             // the own Node was yielded from the API server
	servers  map[cluster.Key][]string
}

// New reads the configuration and the snapshot, and does not connect. A snapshot that cannot be read is reported and left.
func New(o Options) (*Source, error) {
	if o.NodeName == "" {
		return nil, errors.New("watch API server: own node has no name: give --node-name")
	}
	c, err := newClient(o)
	if err != nil {
		return nil, err
	}
	s := &Source{options: o, log: o.Log, client: c, servers: map[cluster.Key][]string{}}
	if o.SnapshotPath != "" {
		s.saved, err = cluster.ReadSnapshot(o.SnapshotPath)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("start without the snapshot", "error", err)
		}
	}
	if s.saved.Node != nil && s.saved.Node.Name != o.NodeName {
		s.log.Warn("start without the snapshot, it is of another node", "node", o.NodeName, "old", s.saved.Node.Name)
		s.saved = cluster.Snapshot{}
	}
	s.client.dialer.learn(s.saved.APIServers)
	s.versions = newVersions(o.NodeName, s.saved, s.log)
	return s, nil
}

// Conditions returns what keeps the source from knowing all it should.
func (s *Source) Conditions() []cluster.Condition { return s.conditions.List() }

// Run yields until the context ends, and then returns nil. It may be called once.
func (s *Source) Run(ctx context.Context, emit func(cluster.Batch)) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(s.log.Handler()))
	q := newQueue()
	var wg sync.WaitGroup
	for _, r := range resources(s.client, s.options.NodeName) {
		w := s.watcher(r, q)
		wg.Go(func() { w.run(ctx) })
	}
	late, every := time.NewTimer(snapshotAfter), time.NewTicker(snapshotEvery)
	defer late.Stop()
	defer every.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-q.filled:
			b := q.take()
			changed := s.observe(&b)
			emit(b)
			if changed {
				s.save()
			}
		case <-late.C:
			if !s.own && s.saved.Node != nil {
				s.fromDisk = true
				s.log.Warn("no answer of an API server, take the own node from the snapshot", "node", s.options.NodeName)
				emit(cluster.Batch{Changes: []cluster.Change{{Kind: cluster.NodeKind, Key: s.ownKey(), Value: s.saved.Node}}})
			}
		case <-every.C:
			s.save()
		}
	}
	wg.Wait()
	s.save()
	s.client.http.CloseIdleConnections()
	return nil
}

// watcher returns one that knows nothing yet.
func (s *Source) watcher(r resource, q *queue) *watcher {
	return &watcher{
		resource: r, client: s.client, out: q, versions: s.versions, log: s.log, intern: cluster.NewInterner(), known: map[cluster.Key]any{},
		report: &reporter{
			name: "k8s/" + r.kind.String(), resource: r.name, conditions: &s.conditions, log: s.log, bad: map[cluster.Key]error{},
		},
	}
}

func (s *Source) ownKey() cluster.Key { return cluster.Key{Name: s.options.NodeName} }

// observe takes from a batch what the snapshot keeps, and says whether that changed. It adds the deletion of an own Node that came from the snapshot and
// that the cluster does not have.
func (s *Source) observe(b *cluster.Batch) bool {
	changed := false
	for _, c := range b.Changes {
		switch {
		case c.Kind == cluster.NodeKind && c.Key == s.ownKey():
			n, ok := c.Value.(*cluster.Node)
			s.own = ok
			if ok {
				s.saved.Node, changed = n, true
			}
		case c.Kind == cluster.SliceKind && c.Key.Namespace == "default":
			changed = s.learn(c) || changed
		}
	}
	if s.fromDisk && slices.Contains(b.Synced, cluster.NodeKind) {
		if !s.own {
			b.Changes = append(b.Changes, cluster.Change{Kind: cluster.NodeKind, Key: s.ownKey()})
		}
		s.fromDisk = false
	}
	return changed
}

// learn takes the API servers' addresses from the slices of the Service default/kubernetes. None at all is not believed: the last ones seen are all
// that is left to reach the cluster by.
func (s *Source) learn(c cluster.Change) bool {
	slice, ok := c.Value.(*cluster.Slice)
	if ok && slice.Service == "kubernetes" {
		s.servers[c.Key] = addresses(slice)
	} else if _, ok := s.servers[c.Key]; ok {
		delete(s.servers, c.Key)
	} else {
		return false
	}
	var all []string
	for _, list := range s.servers {
		all = append(all, list...)
	}
	slices.Sort(all)
	if len(all) == 0 || slices.Equal(all, s.saved.APIServers) {
		return false
	}
	s.log.Info("API servers", "addresses", all)
	s.saved.APIServers = all
	s.client.dialer.learn(all)
	return true
}

// addresses returns HOST:PORT of a slice's ready endpoints.
func addresses(v *cluster.Slice) []string {
	var list []string
	for _, p := range v.Ports {
		for _, e := range v.Endpoints {
			if p.Name == "https" && p.Protocol == cluster.TCP && e.Ready {
				list = append(list, netip.AddrPortFrom(e.Addr, p.Port).String())
			}
		}
	}
	return list
}

// save writes the snapshot; not being able to is a condition, since the agent works without it.
func (s *Source) save() {
	if s.options.SnapshotPath == "" {
		return
	}
	s.saved.Versions = s.versions.all()
	if reflect.DeepEqual(s.saved, s.written) {
		return
	}
	if err := s.saved.Write(s.options.SnapshotPath); err != nil {
		c := cluster.Condition{Name: "k8s/snapshot", Reason: "not-written", Message: err.Error()}
		if s.conditions.Set(c) {
			s.log.Error("snapshot is not kept", "condition", c)
		}
		return
	}
	s.written = s.saved
	s.conditions.Clear("k8s/snapshot", "")
}
