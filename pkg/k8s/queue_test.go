// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/cluster"
)

func TestQueueCoalesces(t *testing.T) {
	q := newQueue()
	key := cluster.Key{Name: "a"}
	q.put([]cluster.Change{{Kind: cluster.NodeKind, Key: key, Value: 1}, {Kind: cluster.PodKind, Key: key, Value: 2}})
	q.put([]cluster.Change{{Kind: cluster.NodeKind, Key: key}}, cluster.NodeKind)
	<-q.filled
	want := cluster.Batch{Changes: []cluster.Change{{Kind: cluster.NodeKind, Key: key}, {Kind: cluster.PodKind, Key: key, Value: 2}},
		Synced: []cluster.Kind{cluster.NodeKind}}
	if diff := cmp.Diff(want, q.take()); diff != "" {
		t.Errorf("batch (-want +got):\n%s", diff)
	}
	if b := q.take(); len(b.Changes)+len(b.Synced) != 0 {
		t.Errorf("an empty queue gave %+v", b)
	}
}

// A server that does not stream lists is read in pages, whatever it answers.
func TestWithoutWatchList(t *testing.T) {
	t.Parallel()
	api := startAPIServer(t, "--feature-gates=WatchList=false")
	api.create(core+"/nodes", node("n1", 1))
	s, r, _ := run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, adminToken)})
	r.waitSynced(t, 1, all...)
	if r.get(cluster.NodeKind, "", "n1") == nil {
		t.Error("node n1 is not there")
	}
	api.create(core+"/nodes", node("n2", 2))
	r.wait(t, "stream after the pages", func() bool { return r.state[object{cluster.NodeKind, cluster.Key{Name: "n2"}}] != nil })
	if c := s.Conditions(); len(c) != 0 {
		t.Errorf("conditions %+v, want none", c)
	}
}
