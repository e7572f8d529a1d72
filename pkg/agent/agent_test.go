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

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/masquerade"
	"github.com/fairlead/fairlead/pkg/nft"
	"github.com/fairlead/fairlead/pkg/query"
	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

const (
	cidrs1 = `10.244.1.0/24, "fd00:10:244:1::/64"`
	cidrs2 = `10.244.2.0/24, "fd00:10:244:2::/64"`
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// podManifest is a pod of a Service; addresses are given for those of other nodes.
func podManifest(node string, p *pod, name string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: web}}\nspec: {nodeName: %s}\nstatus: {podIPs: [{ip: %s}, {ip: \"%s\"}]}\n",
		name, node, p.v4, p.v6)
}

const webService = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  ports: [{port: 80, targetPort: 8080}]
`

// Two agents on two machines: pods get addresses by the CNI binary and reach each other, the nodes and a Service; an agent that is killed
// or stopped is missed by nobody.
func TestTwoNodes(t *testing.T) {
	a, b := newMachines(t)
	a.apply("nodes.yaml", nodeManifest(1, cidrs1)+"---"+nodeManifest(2, cidrs2))
	a.start()
	b.start()
	a.ready()
	b.ready()
	x, y, z := a.add("x"), a.add("y"), b.add("z")
	serve(t, y.ns, "y")
	serve(t, z.ns, "z")
	serve(t, x.ns, "x")
	serve(t, b.ns, "n2")
	webIP4, webIP6 := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::10")

	t.Run("every way", func(t *testing.T) {
		node1 := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
		node2 := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
		overlay1 := []netip.Addr{netip.MustParseAddr("10.244.1.0"), netip.MustParseAddr("fd00:10:244:1::")}
		of := func(p *pod) []netip.Addr { return []netip.Addr{p.v4, p.v6} }
		for _, way := range []struct {
			name    string
			from    *sandbox.Namespace
			to      []netip.Addr
			answers string
			source  []netip.Addr
		}{
			{"pod to pod on a node", x.ns, of(y), "y", of(x)},
			{"pod to pod on another node", x.ns, of(z), "z", of(x)},
			{"and back", z.ns, of(x), "x", of(z)},
			{"node to its pod", a.ns, of(x), "x", node1},
			{"node to a pod on another node", a.ns, of(z), "z", overlay1},
			{"pod to another node", x.ns, node2, "n2", node1},
			{"pod to its own address", y.ns, of(y), "y", of(y)},
		} {
			for i, to := range way.to {
				name, client := ask(t, way.from, at(to, 8080))
				if name != way.answers || client != way.source[i].String() {
					t.Errorf("%s, %s: answered by %q who saw %q, want %q and %s", way.name, to, name, client, way.answers, way.source[i])
				}
			}
		}
	})

	t.Run("Service", func(t *testing.T) {
		a.apply("web.yaml", webService+podManifest("n1", y, "y")+podManifest("n2", z, "z"))
		two := func(s query.Status) bool { return s.Services == 2 && s.Backends == 4 }
		a.status("Service", two)
		b.status("Service", two)
		for _, ip := range []netip.Addr{webIP4, webIP6} {
			source := x.v4.String()
			if ip.Is6() {
				source = x.v6.String()
			}
			inPackets, atCall := map[string]int{}, map[string]int{}
			for range 30 {
				name, client := ask(t, x.ns, at(ip, 80))
				inPackets[name]++
				if client != source {
					t.Errorf("%s, in packets: %s saw %s, want %s", ip, name, client, source)
				}
				if name, client = askAtCall(t, a, x.ns, at(ip, 80)); client != source {
					t.Errorf("%s, at the call: %s saw %s, want %s", ip, name, client, source)
				}
				atCall[name]++
			}
			for path, counts := range map[string]map[string]int{"in packets": inPackets, "at the call": atCall} {
				if counts["y"] == 0 || counts["z"] == 0 || counts["y"]+counts["z"] != 30 {
					t.Errorf("%s, %s: answered by %v, want y and z", ip, path, counts)
				}
			}
			if name, _ := askAtCall(t, a, a.ns, at(ip, 80)); name != "y" && name != "z" {
				t.Errorf("%s from the node: answered by %q", ip, name)
			}
		}
	})

	t.Run("kill -9", func(t *testing.T) {
		direct, err := dial(t, x.ns, at(z.v4, 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer direct.Close()
		greeting(t, direct)
		a.process.kill(t)
		if err := echo(direct, "without agent"); err != nil {
			t.Errorf("open connection without an agent: %v", err)
		}
		if name, _ := ask(t, x.ns, at(webIP4, 80)); name == "" {
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
					name, _ := ask(t, x.ns, at(webIP6, 80))
					counts[name]++
				}
			}
		}()
		for range 3 {
			a.start()
			a.ready()
			a.process.kill(t)
		}
		a.start()
		s := a.ready()
		close(over)
		if counts := <-asked; counts["y"] == 0 || counts["z"] == 0 || len(counts) != 2 {
			t.Errorf("during restarts answered by %v, want y and z", counts)
		}
		if s.Endpoints != 2 || s.Services != 2 || s.Backends != 4 || s.Peers != 1 || len(s.Conditions) > 0 {
			t.Errorf("after the restarts: %+v", s)
		}
		if err := echo(direct, "with the next agent"); err != nil {
			t.Errorf("open connection after the restarts: %v", err)
		}
	})

	t.Run("socket path off", func(t *testing.T) {
		a.process.kill(t)
		a.start("--socket-lb=false")
		a.ready()
		before := a.counter("sock-translated")
		for _, ip := range []netip.Addr{webIP4, webIP6} {
			if name, _ := askAtCall(t, a, x.ns, at(ip, 80)); name != "y" && name != "z" {
				t.Errorf("%s: answered by %q", ip, name)
			}
		}
		if after := a.counter("sock-translated"); after != before {
			t.Errorf("%d sockets translated", after-before)
		}
		a.process.kill(t)
		a.start()
		a.ready()
		askAtCall(t, a, x.ns, at(webIP4, 80))
		if after := a.counter("sock-translated"); after != before+1 {
			t.Errorf("on again: %d sockets translated, want 1", after-before)
		}
	})

	t.Run("DEL without agent", func(t *testing.T) {
		if code := a.process.stop(t); code != 0 {
			t.Errorf("stopped agent ends with %d:\n%s", code, a.process.log())
		}
		y.del()
		a.start()
		a.ready()
		a.status("y is gone", func(s query.Status) bool { return s.Endpoints == 1 && s.Backends <= 2 })
		for range 5 {
			if name, _ := ask(t, x.ns, at(webIP4, 80)); name != "z" {
				t.Errorf("answered by %q, want z", name)
			}
		}
	})
}

// Uninstall leaves nothing of an agent, and everything of others.
func TestUninstall(t *testing.T) {
	a, _ := newMachines(t)
	a.apply("nodes.yaml", nodeManifest(1, cidrs1)+"---"+nodeManifest(2, cidrs2))
	a.start()
	a.ready()
	a.add("x")
	a.apply("web.yaml", webService)
	if code, said := a.run("uninstall", "--cni-bin-dir="); code != 1 || !strings.Contains(said, "another fairleadd") {
		t.Errorf("with a running agent: exit code %d, %s", code, said)
	}
	a.ready()
	if code := a.process.stop(t); code != 0 {
		t.Errorf("agent ends with %d", code)
	}
	foreign := a.path("conf/10-other.conflist")
	if err := os.WriteFile(foreign, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time finds nothing
		if code, said := a.run("uninstall", "--cni-bin-dir="); code != 0 {
			t.Fatalf("exit code %d:\n%s", code, said)
		}
	}
	for _, path := range []string{a.pins, a.path("run"), a.path("state"), a.path("conf/05-fairlead.conflist")} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
	var left []string
	devices, err := a.nl.Devices()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		left = append(left, d.Name)
	}
	slices.Sort(left)
	if !slices.Equal(left, []string{"eth0", "lo"}) {
		t.Errorf("devices %v are left", left)
	}
	routes, err := a.nl.Routes()
	if err != nil || len(routes) > 0 {
		t.Errorf("routes %v are left, %v", routes, err)
	}
	conn := nft.New(a.ns.FD())
	if _, ok, err := conn.Elements(masquerade.Table, nft.Set{Name: "own4"}); ok || err != nil {
		t.Errorf("masquerade table is left: %v, %v", ok, err)
	}
}

// askAtCall is ask by a socket of the machine's cgroup: the backend is chosen at connect(2).
func askAtCall(t *testing.T, m *machine, ns *sandbox.Namespace, to netip.AddrPort) (name, client string) {
	t.Helper()
	domain := unix.AF_INET
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	s := m.group.Socket(t, ns, domain, unix.SOCK_STREAM, 0)
	defer s.Close()
	if err := s.Connect(to); err != nil {
		t.Errorf("connect: %v", err)
		return "", ""
	}
	answer, _, err := s.Receive()
	if err != nil {
		t.Errorf("receive: %v", err)
	}
	name, client, _ = strings.Cut(strings.TrimSpace(answer), " ")
	return name, client
}

// An own Node that cannot be used is waited for, by name of what it lacks.
func TestWaitsForPodCIDR(t *testing.T) {
	a, _ := newMachines(t)
	a.apply("nodes.yaml", nodeManifest(1, ""))
	a.start("--service-cidr=10.96.0.0/16")
	condition := func(text string) func(query.Status) bool {
		return func(s query.Status) bool {
			return slices.ContainsFunc(s.Conditions, func(c query.Condition) bool { return strings.Contains(c.Message, text) })
		}
	}
	s := a.status("no podCIDR", condition("node n1: spec.podCIDRs: empty"))
	if s.Ready {
		t.Error("ready without a pod CIDR")
	}
	code, body := get(t, a, "http://127.0.0.1:10256/readyz")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "own Node") {
		t.Errorf("readyz: %d %q", code, body)
	}
	if code, _ := get(t, a, "http://127.0.0.1:10256/livez"); code != http.StatusOK {
		t.Errorf("livez: %d", code)
	}
	a.apply("nodes.yaml", nodeManifest(1, "10.96.0.0/24"))
	a.status("overlap", condition("10.96.0.0/24: overlaps --service-cidr 10.96.0.0/16"))
	if _, err := os.Stat(a.path("conf")); err == nil {
		t.Error("the runtime was told of a network that is not there")
	}
	a.apply("nodes.yaml", nodeManifest(1, cidrs1))
	if s := a.ready(); len(s.Conditions) > 0 {
		t.Errorf("ready with %+v", s.Conditions)
	}
	if code, body := get(t, a, "http://127.0.0.1:10256/readyz"); code != http.StatusOK {
		t.Errorf("readyz: %d %q", code, body)
	}
	if code, body := get(t, a, "http://127.0.0.1:10249/metrics"); code != http.StatusOK || !strings.Contains(body, "\nfairlead_ready 1\n") {
		t.Errorf("metrics: %d %q", code, body)
	}
}

// A fact that programs and pods are made with changes: the agent starts again in place, and nobody's connection ends.
func TestOwnNodeChanges(t *testing.T) {
	a, b := newMachines(t)
	a.apply("nodes.yaml", nodeManifest(1, cidrs1)+"---"+nodeManifest(2, cidrs2))
	a.start()
	b.start()
	if s := a.ready(); s.Node.MTU != 1450 {
		t.Errorf("MTU %d on a device of 1500 bytes", s.Node.MTU)
	}
	b.ready()
	x, z := a.add("x"), b.add("z")
	serve(t, z.ns, "z")
	c, err := dial(t, x.ns, at(z.v4, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	greeting(t, c)
	scraper := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialIn(a.ns)}}
	pid := a.process.cmd.Process.Pid
	if err := a.nl.SetMTU("eth0", 1400); err != nil {
		t.Fatal(err)
	}
	s := a.status("new MTU", func(s query.Status) bool { return s.Node.MTU == 1350 && s.Ready })
	if s.Agent.PID != pid || s.Endpoints != 1 || s.Peers != 1 {
		t.Errorf("after the change: %+v", s)
	}
	if err := echo(c, "still here"); err != nil {
		t.Errorf("open connection: %v", err)
	}
	// Whoever asks meanwhile reads memory that the agent shares with the kernel: it must not go under them.
	over, asked := make(chan struct{}), make(chan int)
	go func() {
		client, answers := query.NewClient(a.path("run/query.sock")), 0
		for {
			select {
			case <-over:
				asked <- answers
				return
			default:
				if _, err := client.Status(t.Context()); err == nil {
					answers++
				}
				if r, err := scraper.Get("http://127.0.0.1:10249/metrics"); err == nil {
					_ = r.Body.Close() // the answer is not looked at
				}
			}
		}
	}()
	for _, mtu := range []int{1500, 1400, 1500} {
		if err := a.nl.SetMTU("eth0", mtu); err != nil {
			t.Fatal(err)
		}
		a.status("next MTU", func(s query.Status) bool { return s.Node.MTU == mtu-50 && s.Ready && s.Agent.PID == pid })
	}
	close(over)
	if <-asked == 0 {
		t.Error("nobody was answered")
	}
	if y := a.add("y"); y.v4 != netip.MustParseAddr("10.244.1.3") {
		t.Errorf("next pod has %s", y.v4)
	}
}

// What an agent cannot work with ends it with the name of the thing.
func TestRefusals(t *testing.T) {
	a, _ := newMachines(t)
	a.apply("nodes.yaml", nodeManifest(1, cidrs1))
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
		p := a.start(test.flag)
		if code := p.wait(t); code != 1 || !strings.Contains(p.log(), test.want) {
			t.Errorf("%s: exit code %d, and does not say %q:\n%s", test.flag, code, test.want, p.log())
		}
	}
	a.start()
	a.ready()
	first := a.process
	second := a.start()
	if code := second.wait(t); code != 1 || !strings.Contains(second.log(), "another fairleadd (pid "+fmt.Sprint(first.cmd.Process.Pid)+") uses --run-dir") {
		t.Errorf("second agent: exit code %d:\n%s", code, second.log())
	}
}

// get asks from inside the machine.
func get(t *testing.T, m *machine, url string) (code int, body string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialIn(m.ns)}}
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	return r.StatusCode, readAll(t, r.Body)
}
