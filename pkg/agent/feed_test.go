// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/cluster"
)

func change(kind cluster.Kind, name string, value any) cluster.Change {
	return cluster.Change{Kind: kind, Key: cluster.Key{Name: name}, Value: value}
}

func TestFeedKeepsEverythingUntilTheOwnNodeIsSetUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := newFeed()
	first, second := &cluster.Node{Name: "me", MTU: 1}, &cluster.Node{Name: "me", MTU: 2}
	service := &cluster.Service{Name: "s"}
	go func() {
		f.put(ctx, cluster.Batch{Changes: []cluster.Change{
			change(cluster.NodeKind, "other", &cluster.Node{Name: "other"}), change(cluster.ServiceKind, "s", service),
			change(cluster.ServiceKind, "gone", &cluster.Service{Name: "gone"}),
		}, Synced: []cluster.Kind{cluster.ServiceKind}})
		f.put(ctx, cluster.Batch{Synced: []cluster.Kind{cluster.NodeKind}})
		f.put(ctx, cluster.Batch{Changes: []cluster.Change{change(cluster.NodeKind, "me", first), change(cluster.NodeKind, "other", nil)}})
		f.put(ctx, cluster.Batch{Changes: []cluster.Change{change(cluster.ServiceKind, "gone", nil)}})
		f.put(ctx, cluster.Batch{Changes: []cluster.Change{change(cluster.NodeKind, "me", second)}, Synced: []cluster.Kind{cluster.NodeKind}})
		f.put(ctx, cluster.Batch{Changes: []cluster.Change{change(cluster.PodKind, "later", &cluster.Pod{Name: "later"})}})
	}()
	var tried []int
	var logs bytes.Buffer
	err := f.untilOwn(ctx, "me", func(n *cluster.Node) error {
		tried = append(tried, n.MTU)
		if n == first {
			return errors.New("spec.podCIDRs: empty")
		}
		return nil
	}, slog.New(slog.NewTextHandler(&logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{1, 2}, tried); diff != "" {
		t.Errorf("set up with (-want +got):\n%s", diff)
	}
	for _, want := range []string{"own Node does not exist yet", "spec.podCIDRs: empty"} {
		if strings.Count(logs.String(), want) != 1 {
			t.Errorf("log does not say %q once:\n%s", want, logs.String())
		}
	}

	batches := make(chan cluster.Batch, 2)
	done := make(chan error, 1)
	go func() { done <- f.run(ctx, func(b cluster.Batch) { batches <- b }) }()
	kept, later := <-batches, <-batches
	got := map[object]any{}
	for _, c := range kept.Changes {
		got[object{c.Kind, c.Key}] = c.Value
	}
	want := map[object]any{
		{cluster.NodeKind, cluster.Key{Name: "me"}}:   second,
		{cluster.ServiceKind, cluster.Key{Name: "s"}}: service,
	}
	if len(got) != len(want) {
		t.Errorf("kept %v, want %v", got, want)
	}
	for o, v := range want {
		if got[o] != v {
			t.Errorf("kept %v for %v, want %v", got[o], o, v)
		}
	}
	if diff := cmp.Diff([]cluster.Kind{cluster.ServiceKind, cluster.NodeKind}, kept.Synced); diff != "" {
		t.Errorf("synced (-want +got):\n%s", diff)
	}
	if len(later.Changes) != 1 || later.Changes[0].Key.Name != "later" {
		t.Errorf("what came later arrives as %v", later)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("run ends with %v", err)
	}
}
