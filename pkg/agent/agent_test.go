// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/query"
	"github.com/fairlead/fairlead/pkg/testnet"
)

// Two agents on two machines: pods get addresses by the CNI binary and reach each other, the nodes and a Service; an agent that is killed
// or stopped is missed by nobody.
func TestTwoNodes(t *testing.T) {
	n := machines(t, 2)
	a, b := n.Nodes[0], n.Nodes[1]
	start(t, a)
	start(t, b)
	ready(t, a)
	ready(t, b)
	web := map[string]string{"app": "web"}
	x, y, z := pod(t, a, "x", nil), pod(t, a, "y", web), pod(t, b, "z", web)
	serve(t, x.Scope, y.Scope, z.Scope, b.Scope)
	inX := client(x.Scope)
	webIP4, webIP6 := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::10")

	t.Run("every way", func(t *testing.T) {
		overlay := []netip.Addr{a.PodCIDRs[0].Addr(), a.PodCIDRs[1].Addr()}
		for _, way := range []struct {
			name    string
			from    testnet.Scope
			to      []netip.Addr
			answers string
			source  []netip.Addr
		}{
			{"pod to pod on a node", x.Scope, y.IPs, "y", x.IPs},
			{"pod to pod on another node", x.Scope, z.IPs, "z", x.IPs},
			{"and back", z.Scope, x.IPs, "x", z.IPs},
			{"node to its pod", a.Scope, x.IPs, "x", a.IPs},
			{"node to a pod on another node", a.Scope, z.IPs, "z", overlay},
			{"pod to another node", x.Scope, b.IPs, b.Name, a.IPs},
			{"pod to its own address", y.Scope, y.IPs, "y", y.IPs},
		} {
			if len(way.to) != 2 {
				t.Errorf("%s: %v is not one address of each family", way.name, way.to)
			}
			for i, to := range way.to {
				name, from := ask(t, client(way.from), at(to, 8080))
				if name != way.answers || from != way.source[i].String() {
					t.Errorf("%s, %s: answered by %q who saw %q, want %q and %s", way.name, to, name, from, way.answers, way.source[i])
				}
			}
		}
	})

	t.Run("Service", func(t *testing.T) {
		err := n.PutService(testnet.Service{
			Name: "web", ClusterIPs: []netip.Addr{webIP4, webIP6}, Selector: web, Ports: []testnet.ServicePort{{Port: 80, TargetPort: 8080}},
		})
		if err != nil {
			t.Fatal(err)
		}
		two := func(s query.Status) bool { return s.Services == 2 && s.Backends == 4 }
		status(t, a, "Service", two)
		status(t, b, "Service", two)
		for _, ip := range []netip.Addr{webIP4, webIP6} {
			source := x.IP(ip.Is6()).String()
			inPackets, atCall := map[string]int{}, map[string]int{}
			for range 30 {
				name, from := ask(t, inX, at(ip, 80))
				inPackets[name]++
				if from != source {
					t.Errorf("%s, in packets: %s saw %s, want %s", ip, name, from, source)
				}
				if name, from = askAtCall(t, x.Scope, at(ip, 80)); from != source {
					t.Errorf("%s, at the call: %s saw %s, want %s", ip, name, from, source)
				}
				atCall[name]++
			}
			for path, counts := range map[string]map[string]int{"in packets": inPackets, "at the call": atCall} {
				if counts["y"] == 0 || counts["z"] == 0 || counts["y"]+counts["z"] != 30 {
					t.Errorf("%s, %s: answered by %v, want y and z", ip, path, counts)
				}
			}
			if name, _ := askAtCall(t, a.Scope, at(ip, 80)); name != "y" && name != "z" {
				t.Errorf("%s from the node: answered by %q", ip, name)
			}
		}
	})

	t.Run("kill -9", func(t *testing.T) {
		direct := lasting(x.Scope)
		if name, _ := ask(t, direct, at(z.IPs[0], 8080)); name != "z" {
			t.Fatalf("answered by %q", name)
		}
		a.Kill()
		if name, _ := ask(t, direct, at(z.IPs[0], 8080)); name != "z" {
			t.Errorf("open connection without an agent: answered by %q", name)
		}
		if name, _ := ask(t, inX, at(webIP4, 80)); name == "" {
			t.Error("no new connection without an agent")
		}
		// The next agent knows the address of y, which is on this node, only by what ADD told the one before: y must stay a backend all the time.
		over, asked := make(chan struct{}), make(chan map[string]int)
		go func() {
			counts := map[string]int{}
			for {
				select {
				case <-over:
					asked <- counts
					return
				default:
					name, _ := ask(t, inX, at(webIP6, 80))
					counts[name]++
				}
			}
		}()
		for range 3 {
			start(t, a)
			ready(t, a)
			a.Kill()
		}
		start(t, a)
		s := ready(t, a)
		close(over)
		if counts := <-asked; counts["y"] == 0 || counts["z"] == 0 || len(counts) != 2 {
			t.Errorf("during restarts answered by %v, want y and z", counts)
		}
		if s.Endpoints != 2 || s.Services != 2 || s.Backends != 4 || s.Peers != 1 || len(s.Conditions) > 0 {
			t.Errorf("after the restarts: %+v", s)
		}
		if name, _ := ask(t, direct, at(z.IPs[0], 8080)); name != "z" {
			t.Errorf("open connection after the restarts: answered by %q", name)
		}
	})

	t.Run("socket path off", func(t *testing.T) {
		a.Kill()
		start(t, a, "--socket-lb=false")
		ready(t, a)
		before := counter(t, a, "sock-translated")
		for _, ip := range []netip.Addr{webIP4, webIP6} {
			if name, _ := askAtCall(t, x.Scope, at(ip, 80)); name != "y" && name != "z" {
				t.Errorf("%s: answered by %q", ip, name)
			}
		}
		if after := counter(t, a, "sock-translated"); after != before {
			t.Errorf("%d sockets translated", after-before)
		}
		a.Kill()
		start(t, a)
		ready(t, a)
		askAtCall(t, x.Scope, at(webIP4, 80))
		if after := counter(t, a, "sock-translated"); after != before+1 {
			t.Errorf("on again: %d sockets translated, want 1", after-before)
		}
	})

	t.Run("DEL without agent", func(t *testing.T) {
		stop(t, a)
		if err := y.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		start(t, a)
		ready(t, a)
		status(t, a, "y is gone", func(s query.Status) bool { return s.Endpoints == 1 && s.Backends <= 2 })
		for range 5 {
			if name, _ := ask(t, inX, at(webIP4, 80)); name != "z" {
				t.Errorf("answered by %q, want z", name)
			}
		}
	})
}

// own replaces the manifest of a machine's Node: its own pod CIDRs, or others.
func own(t *testing.T, n *testnet.Net, node *testnet.Node, cidrs string) {
	t.Helper()
	err := n.WriteManifest("node-"+node.Name, fmt.Sprintf(`
apiVersion: v1
kind: Node
metadata: {name: %s}
spec: {podCIDRs: [%s]}
status: {addresses: [{type: InternalIP, address: %s}, {type: InternalIP, address: "%s"}]}
`, node.Name, cidrs, node.IPs[0], node.IPs[1]))
	if err != nil {
		t.Fatal(err)
	}
}

// An own Node that cannot be used is waited for, by name of what it lacks.
func TestWaitsForPodCIDR(t *testing.T) {
	n := machines(t, 1)
	a := n.Nodes[0]
	own(t, n, a, "")
	start(t, a, "--service-cidr=10.96.0.0/16")
	condition := func(text string) func(query.Status) bool {
		return func(s query.Status) bool {
			return slices.ContainsFunc(s.Conditions, func(c query.Condition) bool { return strings.Contains(c.Message, text) })
		}
	}
	inside := client(a.Scope)
	s := status(t, a, "no podCIDR", condition("node node-0: spec.podCIDRs: empty"))
	if s.Ready {
		t.Error("ready without a pod CIDR")
	}
	code, body, err := get(inside, "http://127.0.0.1:10256/readyz")
	if err != nil || code != http.StatusServiceUnavailable || !strings.Contains(body, "own Node") {
		t.Errorf("readyz: %d %q, %v", code, body, err)
	}
	if code, _, err := get(inside, "http://127.0.0.1:10256/livez"); err != nil || code != http.StatusOK {
		t.Errorf("livez: %d, %v", code, err)
	}
	own(t, n, a, "10.96.0.0/24")
	status(t, a, "overlap", condition("10.96.0.0/24: overlaps --service-cidr 10.96.0.0/16"))
	if _, err := os.Stat(conf(a)); err == nil {
		t.Error("the runtime was told of a network that is not there")
	}
	own(t, n, a, `10.244.1.0/24, "fd00:10:244:1::/64"`)
	if s := ready(t, a); len(s.Conditions) > 0 {
		t.Errorf("ready with %+v", s.Conditions)
	}
	if code, body, err := get(inside, "http://127.0.0.1:10256/readyz"); err != nil || code != http.StatusOK {
		t.Errorf("readyz: %d %q, %v", code, body, err)
	}
	code, body, err = get(inside, "http://127.0.0.1:10249/metrics")
	if err != nil || code != http.StatusOK || !strings.Contains(body, "\nfairlead_ready 1\n") {
		t.Errorf("metrics: %d %q, %v", code, body, err)
	}
}

// The device that --devices names is the one whose MTU counts; one that is not there is waited for, by its name.
func TestNamedDevice(t *testing.T) {
	a := machines(t, 1).Nodes[0]
	nl := handle(t, a.Scope)
	start(t, a, "--devices=uplink1,uplink2")
	status(t, a, "no device", func(s query.Status) bool {
		return slices.ContainsFunc(s.Conditions, func(c query.Condition) bool {
			return c.Message == "node node-0: --devices uplink1, uplink2: no such device on this host"
		})
	})
	if err := link.Wire(nl, link.End{Name: "uplink2", MTU: 1400}, nl, link.End{Name: "uplink0"}); err != nil {
		t.Fatal(err)
	}
	s := status(t, a, "device", func(s query.Status) bool { return s.Ready && s.Node.MTU == 1350 })
	if len(s.Conditions) > 0 {
		t.Errorf("conditions %+v", s.Conditions)
	}
}

// A fact that programs and pods are made with changes: the agent starts again in place, and nobody's connection ends.
func TestOwnNodeChanges(t *testing.T) {
	n := machines(t, 2)
	a, b := n.Nodes[0], n.Nodes[1]
	start(t, a)
	start(t, b)
	if s := ready(t, a); s.Node.MTU != 1450 {
		t.Errorf("MTU %d on a device of 1500 bytes", s.Node.MTU)
	}
	ready(t, b)
	x, z := pod(t, a, "x", nil), pod(t, b, "z", nil)
	serve(t, z.Scope)
	open := lasting(x.Scope)
	if name, _ := ask(t, open, at(z.IPs[0], 8080)); name != "z" {
		t.Fatalf("answered by %q", name)
	}
	nl, pid := handle(t, a.Scope), a.Agent().PID()
	if err := nl.SetMTU("eth0", 1400); err != nil {
		t.Fatal(err)
	}
	s := status(t, a, "new MTU", func(s query.Status) bool { return s.Node.MTU == 1350 && s.Ready })
	if s.Agent.PID != pid || s.Endpoints != 1 || s.Peers != 1 {
		t.Errorf("after the change: %+v", s)
	}
	if name, _ := ask(t, open, at(z.IPs[0], 8080)); name != "z" {
		t.Errorf("open connection: answered by %q", name)
	}
	// Whoever asks meanwhile reads memory that the agent shares with the kernel: it must not go under them.
	over, asked := make(chan struct{}), make(chan int)
	go func() {
		asker, scraper, answers := a.Query(), client(a.Scope), 0
		for {
			select {
			case <-over:
				asked <- answers
				return
			default:
				if _, err := asker.Status(t.Context()); err == nil {
					answers++
				}
				_, _, _ = get(scraper, "http://127.0.0.1:10249/metrics") // the answer is not looked at
			}
		}
	}()
	for _, mtu := range []int{1500, 1400, 1500} {
		if err := nl.SetMTU("eth0", mtu); err != nil {
			t.Fatal(err)
		}
		status(t, a, "next MTU", func(s query.Status) bool { return s.Node.MTU == mtu-50 && s.Ready && s.Agent.PID == pid })
	}
	close(over)
	if <-asked == 0 {
		t.Error("nobody was answered")
	}
	if y := pod(t, a, "y", nil); y.IPs[0] != netip.MustParseAddr("10.244.0.3") {
		t.Errorf("next pod has %s", y.IPs[0])
	}
}

// What an agent cannot work with ends it with the name of the thing.
func TestRefusals(t *testing.T) {
	a := machines(t, 1).Nodes[0]
	elsewhere := t.TempDir()
	long := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(long, []byte("mtu: 1400\nno-such-key: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ flag, want string }{
		{"--bpffs-dir=" + elsewhere, elsewhere + " is not on a bpffs: mount one"},
		{"--cgroup-root=" + elsewhere, "--cgroup-root " + elsewhere + ": not on a cgroup v2 hierarchy"},
		{"--healthz-bind-address=198.51.100.1:10256", "--healthz-bind-address 198.51.100.1:10256"},
		{"--map-capacity=no_such_map=5", "no_such_map"},
		{"--config=" + long, `unknown key "no-such-key"`},
	} {
		if code, said := daemon(t, a, test.flag); code != 1 || !strings.Contains(said, test.want) {
			t.Errorf("%s: exit code %d, and does not say %q:\n%s", test.flag, code, test.want, said)
		}
	}
	start(t, a)
	ready(t, a)
	if code, said := daemon(t, a); code != 1 || !strings.Contains(said, fmt.Sprintf("another fairleadd (pid %d) uses --run-dir", a.Agent().PID())) {
		t.Errorf("second agent: exit code %d:\n%s", code, said)
	}
}
