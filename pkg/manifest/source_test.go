// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead/fairlead/pkg/cluster"
)

// consumer keeps what a source said.
type consumer struct {
	t      *testing.T
	source *Source
	stop   func()

	mu      sync.Mutex
	state   map[object]any
	batches []cluster.Batch
	moved   chan struct{}
}

// start runs a source until stop or the test's end.
func start(t *testing.T, o Options) *consumer {
	t.Helper()
	o.NodeName = "n1"
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	c := &consumer{t: t, source: s, state: map[object]any{}, moved: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, c.emit) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(c.stop)
	return c
}

func (c *consumer) emit(b cluster.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range b.Changes {
		if x.Value == nil {
			delete(c.state, object{x.Kind, x.Key})
		} else {
			c.state[object{x.Kind, x.Key}] = x.Value
		}
	}
	c.batches = append(c.batches, b)
	close(c.moved)
	c.moved = make(chan struct{})
}

func (c *consumer) names() []string {
	list := []string{}
	for id := range c.state {
		list = append(list, id.String())
	}
	slices.Sort(list)
	return list
}

// want waits until exactly these objects are in force.
func (c *consumer) want(names ...string) {
	c.t.Helper()
	slices.Sort(names)
	c.wait(fmt.Sprint(names), func() bool { return len(c.batches) > 0 && slices.Equal(c.names(), append([]string{}, names...)) })
}

func (c *consumer) wait(what string, is func() bool) {
	c.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		c.mu.Lock()
		ok, moved := is(), c.moved
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-moved:
		case <-deadline:
			c.mu.Lock()
			defer c.mu.Unlock()
			c.t.Fatalf("wait for %s: have %v in %d batches; conditions %+v", what, c.names(), len(c.batches), c.source.Conditions())
		}
	}
}

// condition polls for the condition of a file; an empty reason: there is none.
func (c *consumer) condition(file, reason, text string) {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var got cluster.Condition
		for _, x := range c.source.Conditions() {
			if x.Name == conditionName && x.Object == file {
				got = x
			}
		}
		if got.Reason == reason && strings.Contains(got.Message, text) {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("condition of %q is %+v, want %s with %q", file, got, reason, text)
		}
	}
}

func (c *consumer) get(kind cluster.Kind, namespace, name string) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state[object{kind, cluster.Key{Namespace: namespace, Name: name}}]
}

// put replaces a file as documented: aside, and then by its name.
func put(t *testing.T, dir, name, text string) {
	t.Helper()
	temp := filepath.Join(dir, "."+name)
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func node(name, cidr string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Node, metadata: {name: %s}, spec: {podCIDR: %s}}\n", name, cidr)
}

func namespace(name string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Namespace, metadata: {name: %s}}\n", name)
}

func TestFilesComeChangeAndGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, "a.yaml", node("n1", "10.0.1.0/24")+node("n2", "10.0.2.0/24"))
	put(t, dir, "ignored.txt", "not: [read")
	c := start(t, Options{Dir: dir})
	c.want("Node n1", "Node n2")
	c.mu.Lock()
	if len(c.batches) != 1 || len(c.batches[0].Synced) != int(cluster.Kinds) {
		t.Errorf("first batches %+v, want one with all kinds synced", c.batches)
	}
	c.mu.Unlock()

	put(t, dir, "b.yml", namespace("x"))
	c.want("Namespace x", "Node n1", "Node n2")
	put(t, dir, "a.yaml", node("n1", "10.0.9.0/24")) // n2 goes, n1 changes
	c.want("Namespace x", "Node n1")
	c.wait("new CIDR", func() bool {
		return c.state[object{cluster.NodeKind, cluster.Key{Name: "n1"}}].(*cluster.Node).PodCIDRs[0] == netip.MustParsePrefix("10.0.9.0/24")
	})
	remove(t, dir, "b.yml")
	c.want("Node n1")

	// Written anew as it was: no news. The file made after it tells that it was seen.
	c.mu.Lock()
	before := len(c.batches)
	c.mu.Unlock()
	put(t, dir, "a.yaml", "# the same\n"+node("n1", "10.0.9.0/24"))
	put(t, dir, "c.json", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"y"}}`)
	c.want("Namespace y", "Node n1")
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.batches[before:] {
		for _, x := range b.Changes {
			if x.Kind == cluster.NodeKind {
				t.Errorf("a node that is as it was was told again: %+v", x)
			}
		}
	}
}

func TestBrokenFileKeepsItsObjects(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, "a.yaml", node("n1", "10.0.1.0/24")+node("n2", "10.0.2.0/24")+node("n3", "10.0.3.0/24"))
	c := start(t, Options{Dir: dir})
	c.want("Node n1", "Node n2", "Node n3")

	// n1 is broken, n2 is good and new, n3 is not there: as long as something is wrong nothing is removed.
	put(t, dir, "a.yaml", node("n1", "10.0.1.0/240")+node("n2", "10.0.22.0/24")+namespace("x"))
	c.want("Namespace x", "Node n1", "Node n2", "Node n3")
	c.condition("a.yaml", "malformed", `a.yaml:2: Node n1: spec.podCIDR: "10.0.1.0/240": not an address/length`)
	for name, want := range map[string]string{"n1": "10.0.1.0/24", "n2": "10.0.22.0/24", "n3": "10.0.3.0/24"} {
		if got := c.get(cluster.NodeKind, "", name).(*cluster.Node).PodCIDRs[0].String(); got != want {
			t.Errorf("node %s has %s in force, want %s", name, got, want)
		}
	}

	// Truncated in place, as some editors write: nothing is lost either.
	if err := os.Truncate(filepath.Join(dir, "a.yaml"), 0); err != nil {
		t.Fatal(err)
	}
	c.condition("a.yaml", "malformed", "no objects")
	c.want("Namespace x", "Node n1", "Node n2", "Node n3")

	put(t, dir, "a.yaml", node("n1", "10.0.1.0/24"))
	c.want("Node n1")
	c.condition("a.yaml", "", "")
}

func TestDirectoryVanishes(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir := filepath.Join(base, "manifests")
	c := start(t, Options{Dir: dir}) // not there yet
	c.condition("", "no-manifests", dir)
	c.mu.Lock()
	if len(c.batches) != 0 {
		t.Errorf("without a directory %+v was told", c.batches)
	}
	c.mu.Unlock()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "a.yaml", node("n1", "10.0.1.0/24"))
	put(t, dir, "b.yaml", namespace("x"))
	c.want("Namespace x", "Node n1")
	c.condition("", "", "")

	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	c.condition("", "no-manifests", dir)
	c.want("Namespace x", "Node n1")
	if err := os.Mkdir(dir, 0o700); err != nil { // another one, and empty
		t.Fatal(err)
	}
	c.condition("", "no-manifests", "has no *.yaml")
	c.want("Namespace x", "Node n1")

	put(t, dir, "b.yaml", namespace("y")) // the new directory counts as soon as it has something
	c.want("Namespace y")
	c.condition("", "", "")
}

func TestRestartKeepsLastGood(t *testing.T) {
	t.Parallel()
	dir, saved := t.TempDir(), filepath.Join(t.TempDir(), "saved")
	o := Options{Dir: dir, SavedDir: saved}
	put(t, dir, "a.yaml", node("n1", "10.0.1.0/24")+node("n2", "10.0.2.0/24"))
	put(t, dir, "b.yaml", namespace("x"))
	put(t, dir, "c.yaml", namespace("y"))
	c := start(t, o)
	c.want("Namespace x", "Namespace y", "Node n1", "Node n2")
	put(t, dir, "a.yaml", node("n1", "broken")+node("n2", "10.0.22.0/24"))
	c.condition("a.yaml", "malformed", "broken")
	c.stop()

	// While it was away one file broke completely and one went.
	put(t, dir, "b.yaml", "{")
	remove(t, dir, "c.yaml")
	c = start(t, o)
	c.want("Namespace x", "Node n1", "Node n2")
	if got := c.get(cluster.NodeKind, "", "n2").(*cluster.Node).PodCIDRs[0].String(); got != "10.0.22.0/24" {
		t.Errorf("node n2 has %s in force, want what the partly broken file said last", got)
	}
	c.condition("a.yaml", "malformed", "broken")
	c.condition("b.yaml", "malformed", "b.yaml:1")
	c.stop()

	// Without its directory all of it is still in force, and complete.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	c = start(t, o)
	c.want("Namespace x", "Node n1", "Node n2")
	c.condition("", "no-manifests", dir)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.batches[0].Synced) != int(cluster.Kinds) {
		t.Errorf("synced %v, want all: the last good state is in force", c.batches[0].Synced)
	}
}

func TestOneObjectInTwoFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, "a.yaml", node("n1", "10.0.1.0/24"))
	put(t, dir, "b.yaml", node("n1", "10.0.2.0/24")+namespace("x"))
	c := start(t, Options{Dir: dir})
	c.want("Namespace x", "Node n1")
	c.condition("b.yaml", "malformed", "b.yaml:2: Node n1: also in a.yaml, which counts")
	if got := c.get(cluster.NodeKind, "", "n1").(*cluster.Node).PodCIDRs[0].String(); got != "10.0.1.0/24" {
		t.Errorf("n1 has %s, want the first file's", got)
	}
	put(t, dir, "a.yaml", namespace("y"))
	c.want("Namespace x", "Namespace y", "Node n1")
	c.wait("the other file's", func() bool {
		return c.state[object{cluster.NodeKind, cluster.Key{Name: "n1"}}].(*cluster.Node).PodCIDRs[0].String() == "10.0.2.0/24"
	})
	c.condition("b.yaml", "", "")
}

// given is what ADD gave.
type given struct {
	mu      sync.Mutex
	pods    map[string][]netip.Addr
	changed chan struct{}
}

func (g *given) PodAddresses(namespace, name string) []netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pods[namespace+"/"+name]
}

func (g *given) Changed() <-chan struct{} { return g.changed }

func (g *given) set(pod string, addresses ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.pods, pod)
	for _, a := range addresses {
		g.pods[pod] = append(g.pods[pod], netip.MustParseAddr(a))
	}
	g.changed <- struct{}{}
}

func pod(name, labels, rest string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {%s}}, %s}\n", name, labels, rest)
}

func TestSelectorsMakeSlices(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	g := &given{pods: map[string][]netip.Addr{}, changed: make(chan struct{}, 1)}
	put(t, dir, "service.yaml", `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00:96::1"]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: web}, {name: dns, protocol: UDP, port: 53}]
`+node("n2", "10.0.2.0/24")+`---
apiVersion: v1
kind: Node
metadata: {name: n3}
status: {addresses: [{type: InternalIP, address: 192.0.2.3}]}
`)
	named := func(port int) string {
		return fmt.Sprintf("containers: [{name: c, ports: [{name: web, containerPort: %d}]}]", port)
	}
	put(t, dir, "pods.yaml", pod("own", "app: web", "spec: {nodeName: n1, "+named(8080)+"}")+
		pod("far", "app: web", "spec: {nodeName: n2, "+named(8080)+"}, status: {podIPs: [{ip: 10.0.2.2}, {ip: \"fd00::2\"}]}")+
		pod("other-port", "app: web", "spec: {nodeName: n2, "+named(9090)+"}, status: {podIPs: [{ip: 10.0.2.3}]}")+
		pod("no-port", "app: web", "spec: {nodeName: n2}, status: {podIPs: [{ip: 10.0.2.4}]}")+
		pod("host", "app: web", "spec: {nodeName: n3, hostNetwork: true, "+named(8080)+"}")+
		pod("unready", "app: web", "spec: {nodeName: n2, "+named(8080)+"}, status: {podIP: 10.0.2.5, conditions: [{type: Ready, status: \"False\"}]}")+
		pod("done", "app: web", "spec: {nodeName: n2, "+named(8080)+"}, status: {podIP: 10.0.2.6, phase: Succeeded}")+
		pod("another", "app: db", "spec: {nodeName: n2, "+named(8080)+"}, status: {podIP: 10.0.2.7}"))
	c := start(t, Options{Dir: dir, Addresses: g})
	slices4, slices6 := "web/ipv4/http=8080/dns=53", "web/ipv6/http=8080/dns=53"
	c.wait("slices", func() bool {
		return c.state[object{cluster.SliceKind, cluster.Key{Namespace: "default", Name: slices4}}] != nil
	})

	endpoint := func(addr, node string, ready bool) cluster.Endpoint {
		return cluster.Endpoint{Addr: netip.MustParseAddr(addr), Node: node, Ready: ready, Serving: ready}
	}
	expect := func(name string, want ...cluster.Endpoint) {
		t.Helper()
		var got []cluster.Endpoint
		if v, ok := c.get(cluster.SliceKind, "default", name).(*cluster.Slice); ok {
			got = v.Endpoints
			if v.Service != "web" || v.IPv6 != strings.Contains(name, "ipv6") {
				t.Errorf("slice %s is of Service %q, IPv6 %v", name, v.Service, v.IPv6)
			}
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	host, far, unready := endpoint("192.0.2.3", "n3", true), endpoint("10.0.2.2", "n2", true), endpoint("10.0.2.5", "n2", false)
	expect(slices4, far, host, unready)
	expect(slices6, endpoint("fd00::2", "n2", true))
	expect("web/ipv4/http=9090/dns=53", endpoint("10.0.2.3", "n2", true))
	expect("web/ipv4/dns=53", endpoint("10.0.2.4", "n2", true))

	// The own pod counts with what ADD gave it, and only so long.
	g.set("default/own", "10.0.1.2", "fd00::1")
	c.wait("own pod", func() bool {
		return len(c.state[object{cluster.SliceKind, cluster.Key{Namespace: "default", Name: slices6}}].(*cluster.Slice).Endpoints) == 2
	})
	expect(slices4, far, host, endpoint("10.0.1.2", "n1", true), unready)
	g.set("default/own")
	c.wait("own pod gone", func() bool {
		return len(c.state[object{cluster.SliceKind, cluster.Key{Namespace: "default", Name: slices6}}].(*cluster.Slice).Endpoints) == 1
	})

	put(t, dir, "pods.yaml", pod("far", "app: web", "spec: {nodeName: n2, "+named(8080)+"}, status: {podIPs: [{ip: 10.0.2.2}]}"))
	c.wait("fewer slices", func() bool {
		return c.state[object{cluster.SliceKind, cluster.Key{Namespace: "default", Name: slices6}}] == nil
	})
	expect(slices4, far)
	expect("web/ipv4/http=9090/dns=53")
	remove(t, dir, "service.yaml")
	c.want("Pod default/far")
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{NodeName: "n1"}, "--manifests"},
		{Options{Dir: "/x"}, "--node-name"},
	} {
		if _, err := New(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New(%+v): %v, want %q", c.o, err, c.want)
		}
	}
}
