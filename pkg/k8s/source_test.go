// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead/fairlead/pkg/cluster"
)

const (
	core      = "/api/v1"
	namespace = core + "/namespaces/default"
	discovery = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	rbac      = "/apis/rbac.authorization.k8s.io/v1"
)

var all = []cluster.Kind{cluster.NodeKind, cluster.PodKind, cluster.ServiceKind, cluster.SliceKind}

func node(name string, i int) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Node, metadata: {name: %s, labels: {topology.kubernetes.io/zone: z%d}},
  spec: {podCIDR: 10.244.%d.0/24, podCIDRs: [10.244.%d.0/24, "fd00:10:244:%d::/64"]}}`, name, i, i, i, i)
}

func service(name, labels, spec string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Service, metadata: {name: %s, labels: {%s}}, spec: {%s, ports: [{name: http, port: 80, targetPort: 8080}]}}`, name, labels, spec)
}

func slice(name, service, address string) string {
	return fmt.Sprintf(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: %s, labels: {kubernetes.io/service-name: %s}},
  addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: ["%s"], nodeName: n2}]}`, name, service, address)
}

func pod(name, node string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: web}},
  spec: {nodeName: %s, containers: [{name: c, image: none, ports: [{name: http, containerPort: 8080}]}]}}`, name, node)
}

func TestAgainstAPIServer(t *testing.T) {
	t.Parallel()
	api := startAPIServer(t)
	for i, n := range []string{"n1", "n2"} {
		api.create(core+"/nodes", node(n, i+1))
	}
	api.patch(core+"/nodes/n1/status", `{status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: n1}]}}`)
	api.create(namespace+"/services", service("web", "", "clusterIP: 10.96.0.100"))
	api.create(namespace+"/services", service("headless", "", "clusterIP: None"))
	api.create(namespace+"/services", service("other", "service.kubernetes.io/service-proxy-name: mesh", "clusterIP: 10.96.0.101"))
	api.create(namespace+"/services", `{apiVersion: v1, kind: Service, metadata: {name: external}, spec: {type: ExternalName, externalName: example.com}}`)
	api.create(discovery, slice("web-1", "web", "10.244.2.2"))
	api.create(namespace+"/pods", pod("p1", "n1"))
	api.create(namespace+"/pods", pod("p2", "n2"))

	t.Run("list and watch", func(t *testing.T) { testListAndWatch(t, api) })
	t.Run("pages", func(t *testing.T) { testPages(t, api) })
	t.Run("forbidden", func(t *testing.T) { testForbidden(t, api) })
	t.Run("failover", func(t *testing.T) { testFailover(t, api) })
	t.Run("snapshot", func(t *testing.T) { testSnapshot(t, api) })
	t.Run("older view", func(t *testing.T) { testOlderView(t, api) })
	t.Run("restart of the API server", func(t *testing.T) { testRestart(t, api) }) // last: it moves the server
}

func testListAndWatch(t *testing.T, api *apiServer) {
	s, r, stop := run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, adminToken)})
	r.waitSynced(t, 1, all...)
	want := []string{"nodes/n1", "nodes/n2", "pods/default/p1", "services/default/web", "slices/default/web-1"}
	if diff := cmp.Diff(want, r.keys()); diff != "" {
		t.Errorf("after the first list (-want +got):\n%s", diff)
	}
	ignore := []cmp.Option{cmpopts.IgnoreFields(cluster.Node{}, "UID", "Created"), cmpopts.IgnoreFields(cluster.Service{}, "UID", "Created"),
		cmpopts.IgnoreFields(cluster.Pod{}, "UID"), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}
	for _, c := range []struct {
		kind cluster.Kind
		key  cluster.Key
		want any
	}{
		{cluster.NodeKind, cluster.Key{Name: "n1"}, &cluster.Node{
			Name: "n1", Zone: "z1", InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}}},
		{cluster.ServiceKind, cluster.Key{Namespace: "default", Name: "web"}, &cluster.Service{
			Namespace: "default", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.100")},
			Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80, TargetPort: "8080"}}}},
		{cluster.SliceKind, cluster.Key{Namespace: "default", Name: "web-1"}, &cluster.Slice{
			Namespace: "default", Name: "web-1", Service: "web", Ports: []cluster.SlicePort{{Name: "http", Protocol: cluster.TCP, Port: 8080}},
			Endpoints: []cluster.Endpoint{{Addr: netip.MustParseAddr("10.244.2.2"), Ready: true, Serving: true, Node: "n2"}}}},
		{cluster.PodKind, cluster.Key{Namespace: "default", Name: "p1"}, &cluster.Pod{
			Namespace: "default", Name: "p1", Node: "n1", Labels: map[string]string{"app": "web", "topology.kubernetes.io/zone": "z1"}, // the server adds the zone
			Ports: []cluster.PodPort{{Name: "http", Protocol: cluster.TCP, Port: 8080}}}},
	} {
		if diff := cmp.Diff(c.want, r.get(c.kind, c.key.Namespace, c.key.Name), ignore...); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", c.kind, c.key, diff)
		}
	}

	// A heartbeat changes nothing that we read and is not passed on. The zone is read; it comes later in the same stream.
	api.patch(core+"/nodes/n1/status", `{status: {conditions: [{type: Ready, status: "True", lastHeartbeatTime: "2026-01-01T00:00:00Z"}]}}`)
	api.patch(core+"/nodes/n1", `{metadata: {labels: {topology.kubernetes.io/zone: z9}}}`)
	r.wait(t, "zone", func() bool {
		return r.state[object{cluster.NodeKind, cluster.Key{Name: "n1"}}].(*cluster.Node).Zone == "z9"
	})
	if n := r.count(cluster.NodeKind, "", "n1"); n != 2 {
		t.Errorf("node n1: %d changes were told, want 2: a heartbeat is none", n)
	}

	// A label that hands the Service to another proxy is its end here; without the label it is back (services.md 1.1).
	web := object{cluster.ServiceKind, cluster.Key{Namespace: "default", Name: "web"}}
	api.patch(namespace+"/services/web", `{metadata: {labels: {service.kubernetes.io/service-proxy-name: mesh}}}`)
	r.wait(t, "label on", func() bool { return r.state[web] == nil })
	api.patch(namespace+"/services/web", `{metadata: {labels: {service.kubernetes.io/service-proxy-name: null}}}`)
	r.wait(t, "label off", func() bool { return r.state[web] != nil })

	api.create(discovery, slice("web-2", "web", "10.244.2.3"))
	two := object{cluster.SliceKind, cluster.Key{Namespace: "default", Name: "web-2"}}
	r.wait(t, "slice made", func() bool { return r.state[two] != nil })
	api.patch(discovery+"/web-2", `{endpoints: [{addresses: ["10.244.2.3"], conditions: {ready: false, serving: false, terminating: true}}]}`)
	r.wait(t, "slice changed", func() bool {
		v := r.state[two].(*cluster.Slice)
		return len(v.Endpoints) == 1 && v.Endpoints[0].Terminating && !v.Endpoints[0].Ready
	})
	api.remove(discovery + "/web-2")
	r.wait(t, "slice removed", func() bool { return r.state[two] == nil })

	if c := s.Conditions(); len(c) != 0 {
		t.Errorf("conditions %+v, want none", c)
	}
	stop()
}

func testPages(t *testing.T, api *apiServer) {
	const slices = 2*pageSize + 17
	for i := range slices {
		api.create(discovery, slice(fmt.Sprintf("many-%d", i), "many", "10.244.2.9"))
	}
	s, err := New(Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, adminToken), Log: newLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	read := func(list func(*watcher) error) map[cluster.Key]any {
		w := s.watcher(resources(s.client, "n1")[3], newQueue())
		if err := list(w); err != nil {
			t.Fatal(err)
		}
		if b := w.out.take(); len(b.Changes) != len(w.known) || len(b.Synced) != 1 || w.version == "" {
			t.Errorf("told %d changes, synced %v at version %q, knows %d", len(b.Changes), b.Synced, w.version, len(w.known))
		}
		return w.known
	}
	streamed := read(func(w *watcher) error {
		stream, err := w.streamList(t.Context())
		if err == nil {
			stream.Stop()
		}
		return err
	})
	paged := read(func(w *watcher) error { return w.pageList(t.Context()) })
	if len(paged) != slices+2 { // and web-1, kubernetes
		t.Errorf("%d slices in pages, want %d", len(paged), slices+2)
	}
	if len(streamed) != len(paged) {
		t.Errorf("%d slices streamed, %d in pages", len(streamed), len(paged))
	}
	if diff := cmp.Diff(streamed, paged, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("pages are not what the stream is (-stream +pages):\n%s", diff)
	}
	api.remove(discovery + "?labelSelector=kubernetes.io/service-name=many")
}

func testForbidden(t *testing.T, api *apiServer) {
	rule := `{apiGroups: ["", discovery.k8s.io], resources: [%s], verbs: [list, watch]}`
	api.create(rbac+"/clusterroles", `{kind: ClusterRole, metadata: {name: agent}, rules: [`+fmt.Sprintf(rule, "nodes, pods, endpointslices")+`]}`)
	api.create(rbac+"/clusterrolebindings", `{kind: ClusterRoleBinding, metadata: {name: agent},
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: agent}, subjects: [{kind: User, name: agent}]}`)
	s, r, stop := run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, agentToken)})
	r.waitSynced(t, 1, cluster.NodeKind, cluster.PodKind, cluster.SliceKind)
	c := waitCondition(t, s, "k8s/services", "forbidden")
	if !strings.Contains(c.Message, "list and watch services") {
		t.Errorf("message %q does not say what to allow", c.Message)
	}
	if r.get(cluster.ServiceKind, "default", "web") != nil {
		t.Error("a Service came through")
	}
	api.patch(rbac+"/clusterroles/agent", `{rules: [`+fmt.Sprintf(rule, "nodes, pods, endpointslices, services")+`]}`)
	r.waitSynced(t, 1, cluster.ServiceKind)
	waitCondition(t, s, "k8s/services", "")

	// Taken away again: what is known stays.
	api.patch(rbac+"/clusterroles/agent", `{rules: [`+fmt.Sprintf(rule, "nodes, pods, endpointslices")+`]}`)
	stop()
	s, r, _ = run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, "wrong-token")})
	waitCondition(t, s, "k8s/nodes", "unauthorized")
	if len(r.keys()) != 0 {
		t.Errorf("without credentials %v came through", r.keys())
	}
}

func testFailover(t *testing.T, api *apiServer) {
	dead := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	a, b := newForward(t, api.port), newForward(t, api.port)
	s, r, _ := run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(1, adminToken), APIServers: []string{dead, a.address(), b.address()}})
	r.waitSynced(t, 1, all...)
	before := len(r.changes)

	a.cut()
	api.create(discovery, slice("moved", "web", "10.244.2.4"))
	moved := object{cluster.SliceKind, cluster.Key{Namespace: "default", Name: "moved"}}
	r.wait(t, "stream by the second server", func() bool { return r.state[moved] != nil })

	b.cut()
	waitCondition(t, s, "k8s/slices", "unreachable")
	api.remove(discovery + "/moved")
	b.open()
	r.wait(t, "what happened meanwhile", func() bool { return r.state[moved] == nil })
	for _, k := range all {
		waitCondition(t, s, "k8s/"+k.String(), "")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := r.changes[before:]; len(got) != 2 {
		t.Errorf("two moves told %d changes, want 2: streams go on where they were: %v", len(got), got)
	}
}

func testSnapshot(t *testing.T, api *apiServer) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	_, r, stop := run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, adminToken), SnapshotPath: path})
	r.waitSynced(t, 1, all...)
	own := r.get(cluster.NodeKind, "", "n1")
	stop()
	saved, err := cluster.ReadSnapshot(path)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(advertised, fmt.Sprint(api.port))
	if diff := cmp.Diff([]string{address}, saved.APIServers); diff != "" {
		t.Errorf("API servers in the snapshot (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(own, saved.Node, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("own node in the snapshot (-want +got):\n%s", diff)
	}
	for _, k := range all {
		if saved.Versions[k.String()] == "" {
			t.Errorf("no version of %s in the snapshot", k)
		}
	}

	// Nobody answers: the own node is known, nothing is complete.
	s, r, stop := run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(freePort(t), adminToken), SnapshotPath: path})
	r.wait(t, "own node from the snapshot", func() bool { return len(r.state) > 0 })
	waitCondition(t, s, "k8s/nodes", "unreachable")
	if diff := cmp.Diff([]string{"nodes/n1"}, r.keys()); diff != "" || len(r.synced) != 0 {
		t.Errorf("without an API server, synced %v (-want +got):\n%s", r.synced, diff)
	}
	stop()

	// The configured address is gone, but one that was seen before serves.
	f := newForward(t, api.port)
	saved.APIServers = []string{f.address()}
	if err := saved.Write(path); err != nil {
		t.Fatal(err)
	}
	_, r, _ = run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(freePort(t), adminToken), SnapshotPath: path})
	r.waitSynced(t, 1, all...)
}

func testOlderView(t *testing.T, api *apiServer) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	_, r, stop := run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, adminToken), SnapshotPath: path})
	r.waitSynced(t, 1, all...)
	stop()
	saved, err := cluster.ReadSnapshot(path)
	if err != nil {
		t.Fatal(err)
	}
	saved.Versions[cluster.ServiceKind.String()] = "999999999999"
	if err := saved.Write(path); err != nil {
		t.Fatal(err)
	}
	s, r, stop := run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, adminToken), SnapshotPath: path})
	r.waitSynced(t, 1, cluster.NodeKind, cluster.PodKind, cluster.SliceKind)
	waitCondition(t, s, "k8s/services", "older-view")
	r.wait(t, "additions", func() bool {
		return r.state[object{cluster.ServiceKind, cluster.Key{Namespace: "default", Name: "web"}}] != nil
	})
	for _, k := range r.synced {
		if k == cluster.ServiceKind {
			t.Error("an older view of the Services counted as complete")
		}
	}
	stop()

	// After the grace it is the truth.
	s, err = New(Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, adminToken), SnapshotPath: path, Log: newLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	s.versions.grace = 0
	w := s.watcher(resources(s.client, "n1")[2], newQueue())
	if _, err := w.streamList(t.Context()); err != nil {
		t.Errorf("after the grace: %v", err)
	}

	// The same versions say nothing about another cluster's node of this name.
	saved.Node.UID = "another"
	if err := saved.Write(path); err != nil {
		t.Fatal(err)
	}
	_, r, _ = run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(api.port, adminToken), SnapshotPath: path})
	r.waitSynced(t, 1, all...)
}

func testRestart(t *testing.T, api *apiServer) {
	f := newForward(t, api.port)
	api.create(discovery, slice("gone", "web", "10.244.2.5"))
	s, r, _ := run(t, Options{NodeName: "n1", Kubeconfig: api.kubeconfig(f.port, adminToken)})
	r.waitSynced(t, 1, all...)
	gone := object{cluster.SliceKind, cluster.Key{Namespace: "default", Name: "gone"}}
	r.wait(t, "slice", func() bool { return r.state[gone] != nil })

	// A server that starts anew knows nothing older than its start: the stream cannot go on and a new list must tell what is gone.
	f.cut()
	api.remove(discovery + "/gone")
	api.create(discovery, slice("new", "web", "10.244.2.6"))
	api.stopServer()
	api.startServer()
	f.open()
	r.wait(t, "difference of the lists", func() bool {
		return r.state[gone] == nil && r.state[object{cluster.SliceKind, cluster.Key{Namespace: "default", Name: "new"}}] != nil
	})
	if n := r.count(cluster.NodeKind, "", "n2"); n != 1 {
		t.Errorf("node n2 did not change and was told %d times", n)
	}
	waitCondition(t, s, "k8s/slices", "")
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	broken := (&apiServer{t: t, dir: dir}).write("broken", "clusters: [}")
	good := (&apiServer{t: t, dir: dir}).write("good", `
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
contexts: [{name: x, context: {cluster: c}}]
current-context: x
`)
	for _, c := range []struct {
		name string
		o    Options
		want []string
	}{
		{"no node name", Options{Kubeconfig: good}, []string{"--node-name"}},
		{"no such file", Options{NodeName: "n1", Kubeconfig: filepath.Join(dir, "absent")}, []string{"read kubeconfig", "absent"}},
		{"not YAML", Options{NodeName: "n1", Kubeconfig: broken}, []string{"read kubeconfig", broken}},
		{"not in a cluster", Options{NodeName: "n1"}, []string{"--kubeconfig", "--manifests"}},
		{"no port", Options{NodeName: "n1", Kubeconfig: good, APIServers: []string{"10.0.0.1"}}, []string{`--api-server "10.0.0.1"`, "HOST:PORT"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Log = newLog(t)
			_, err := New(c.o)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

// An own Node that was yielded from the snapshot and that the cluster does not have must be taken back.
func TestNodeOfTheSnapshotIsTakenBack(t *testing.T) {
	own := cluster.Key{Name: "n1"}
	for _, c := range []struct {
		name    string
		changes []cluster.Change
		want    int
	}{
		{"gone", nil, 1},
		{"there", []cluster.Change{{Kind: cluster.NodeKind, Key: own, Value: &cluster.Node{Name: "n1"}}}, 1},
		{"made and gone", []cluster.Change{{Kind: cluster.NodeKind, Key: own}}, 2},
	} {
		s := &Source{options: Options{NodeName: "n1"}, fromDisk: true}
		b := cluster.Batch{Changes: c.changes, Synced: []cluster.Kind{cluster.PodKind}}
		if s.observe(&b); len(b.Changes) != len(c.changes) {
			t.Errorf("%s: before the Nodes are complete %+v was added", c.name, b.Changes)
		}
		b.Synced = []cluster.Kind{cluster.NodeKind}
		s.observe(&b)
		last := b.Changes[len(b.Changes)-1]
		if len(b.Changes) != c.want || (last.Value == nil) != (c.name != "there") || last.Key != own {
			t.Errorf("%s: changes %+v", c.name, b.Changes)
		}
		if s.fromDisk {
			t.Errorf("%s: would be taken back twice", c.name)
		}
	}
}
