// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// recorder is a consumer that keeps everything a source said.
type recorder struct {
	mu      sync.Mutex
	state   map[object]any
	changes []cluster.Change
	synced  []cluster.Kind
	moved   chan struct{} // closed and replaced at each batch
}

func newRecorder() *recorder {
	return &recorder{state: map[object]any{}, moved: make(chan struct{})}
}

func (r *recorder) emit(b cluster.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range b.Changes {
		if c.Value == nil {
			delete(r.state, object{c.Kind, c.Key})
		} else {
			r.state[object{c.Kind, c.Key}] = c.Value
		}
	}
	r.changes = append(r.changes, b.Changes...)
	r.synced = append(r.synced, b.Synced...)
	close(r.moved)
	r.moved = make(chan struct{})
}

// wait returns when is is true of what was said, and fails the test when that takes more than 20 s.
func (r *recorder) wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		ok, moved := is(), r.moved
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			t.Fatalf("%s: did not happen; have %v, synced %v", what, r.keys(), r.synced)
		}
	}
}

// waitSynced returns when each of the kinds was complete n times.
func (r *recorder) waitSynced(t *testing.T, n int, kinds ...cluster.Kind) {
	t.Helper()
	r.wait(t, "sync", func() bool {
		for _, k := range kinds {
			count := 0
			for _, s := range r.synced {
				if s == k {
					count++
				}
			}
			if count < n {
				return false
			}
		}
		return true
	})
}

// keys lists everything there is, as kind/namespace/name, without what the API server makes by itself.
func (r *recorder) keys() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []string{}
	for o := range r.state {
		if o.key.Namespace != "default" || o.key.Name != "kubernetes" {
			list = append(list, o.kind.String()+"/"+o.key.String())
		}
	}
	slices.Sort(list)
	return list
}

func (r *recorder) get(kind cluster.Kind, namespace, name string) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state[object{kind, cluster.Key{Namespace: namespace, Name: name}}]
}

// count returns how many changes of an object were told.
func (r *recorder) count(kind cluster.Kind, namespace, name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, c := range r.changes {
		if c.Kind == kind && c.Key == (cluster.Key{Namespace: namespace, Name: name}) {
			n++
		}
	}
	return n
}

// run starts a source and returns its consumer, and a function that stops it, which also happens at the end of the test.
func run(t *testing.T, o Options) (*Source, *recorder, func()) {
	t.Helper()
	if o.Log == nil {
		o.Log = newLog(t)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r := newRecorder()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r.emit) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, r, stop
}

func newLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// condition returns the one with this name and object, or a zero one.
func condition(s *Source, name, object string) cluster.Condition {
	for _, c := range s.Conditions() {
		if c.Name == name && c.Object == object {
			return c
		}
	}
	return cluster.Condition{}
}

// waitCondition polls, since a condition is no event.
func waitCondition(t *testing.T, s *Source, name, reason string) cluster.Condition {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if c := condition(s, name, ""); c.Reason == reason {
			return c
		}
	}
	t.Fatalf("condition %s: not %q; have %+v", name, reason, s.Conditions())
	return cluster.Condition{}
}
