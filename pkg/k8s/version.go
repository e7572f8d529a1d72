// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// olderGrace is how long an older view is not believed. Servers that lag catch up in seconds; a store that was restored from a backup never does, and
// then it is the truth.
const olderGrace = 5 * time.Minute

// versions knows the newest resourceVersion seen of each kind, over restarts of the agent. Versions of one resource are comparable numbers
// (KEP-5504); one that is not a number is never older.
type versions struct {
	node  string // own node's name
	uid   string // its UID when the versions were written; empty: unknown
	log   *slog.Logger
	grace time.Duration

	mu    sync.Mutex
	seen  map[string]string
	since map[cluster.Kind]time.Time // when a kind's older view was first seen
}

func newVersions(node string, s cluster.Snapshot, log *slog.Logger) *versions {
	v := &versions{node: node, log: log, grace: olderGrace, seen: map[string]string{}, since: map[cluster.Kind]time.Time{}}
	if s.Node != nil && s.Node.Name == node {
		v.uid = s.Node.UID
		maps.Copy(v.seen, s.Versions)
	}
	return v
}

// older says that a list at this version must not delete anything.
func (v *versions) older(kind cluster.Kind, version string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !before(version, v.seen[kind.String()]) {
		return false
	}
	first, ok := v.since[kind]
	if !ok {
		first = time.Now()
		v.since[kind] = first
	}
	return time.Since(first) < v.grace
}

// accept records that a kind is complete at this version, older or not.
func (v *versions) accept(kind cluster.Kind, version string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.seen[kind.String()]; before(version, old) {
		v.log.Warn("take an older view of the cluster for the truth", "kind", kind, "version", version, "old", old, "after", v.grace)
	}
	v.seen[kind.String()] = version
	delete(v.since, kind)
}

// raise records a version that a stream reached.
func (v *versions) raise(kind cluster.Kind, version string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if before(v.seen[kind.String()], version) {
		v.seen[kind.String()] = version
	}
}

// checkCluster forgets all versions when the own Node is not the one they were written for: the node has joined another cluster, whose versions
// say nothing about the old one's.
func (v *versions) checkCluster(nodes map[cluster.Key]any) {
	own, ok := nodes[cluster.Key{Name: v.node}].(*cluster.Node)
	if !ok {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.uid != "" && v.uid != own.UID {
		v.log.Info("node is another one than in the snapshot", "node", v.node, "uid", own.UID, "old", v.uid)
		clear(v.seen)
		clear(v.since)
	}
	v.uid = own.UID
}

// all returns a copy for the snapshot.
func (v *versions) all() map[string]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.seen)
}

// before says that both are numbers and a is the smaller one; an empty a is smaller than any number.
func before(a, b string) bool {
	y, err := strconv.ParseUint(b, 10, 64)
	if err != nil {
		return false
	}
	if a == "" {
		return true
	}
	x, err := strconv.ParseUint(a, 10, 64)
	return err == nil && x < y
}
