// SPDX-License-Identifier: Apache-2.0

package testnet_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/pkg/testnet"
	"github.com/fairlead/fairlead/pkg/testnet/traffic"
)

// programs are built once for all tests.
var programs testnet.Binaries

func TestMain(m *testing.M) {
	if os.Getenv(leaveEnv) != "" {
		leave()
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "fairlead-testnet-")
		if err == nil {
			defer os.RemoveAll(dir)
			programs, err = testnet.Build(context.Background(), dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// start builds a network that ends with the test; when the test failed the agents' logs are shown.
func start(t *testing.T, nodes int) (*testnet.Net, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	n, err := testnet.New(ctx, testnet.Options{Nodes: nodes, Log: t.Output(), Binaries: programs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, node := range n.Nodes {
				b, _ := os.ReadFile(node.Log)
				t.Logf("log of %s:\n%s", node.Name, b)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(n.Dir); len(left) > 0 {
			t.Errorf("%s is still there", n.Dir)
		}
	})
	return n, ctx
}

func url(a netip.Addr, port uint16) string { return "http://" + netip.AddrPortFrom(a, port).String() }

// TestNodesReachEachOther runs without any agent: the machines themselves.
func TestNodesReachEachOther(t *testing.T) {
	n, ctx := start(t, 2)
	if _, err := n.Nodes[1].Serve(ctx, 8080); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Beyond.Serve(ctx, 8080); err != nil {
		t.Fatal(err)
	}
	for want, addrs := range map[string][]netip.Addr{"node-1": n.Nodes[1].IPs, "beyond": n.Outside} {
		for _, a := range addrs {
			out, err := n.Nodes[0].Run(ctx, n.Binaries.Helper, "get", url(a, 8080))
			if err != nil || !strings.HasPrefix(string(out), want+" ") {
				t.Errorf("get %s: %q, %v, want an answer of %s", a, out, err, want)
			}
		}
	}
}

func TestPodsTalkAndAServiceBalances(t *testing.T) {
	n, ctx := start(t, 2)
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var pods []*testnet.Pod
	for i := range 4 {
		p, err := n.Nodes[i%2].AddPod(ctx, testnet.PodSpec{Name: fmt.Sprintf("web-%d", i), Labels: map[string]string{"app": "web"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Serve(ctx, 8080); err != nil {
			t.Fatal(err)
		}
		if err := p.Check(ctx); err != nil {
			t.Error(err)
		}
		pods = append(pods, p)
	}
	if _, err := n.Beyond.Serve(ctx, 8080); err != nil {
		t.Fatal(err)
	}

	// Every pod, every node and the machine outside, by both families.
	for _, v6 := range []bool{false, true} {
		for _, to := range pods {
			for name, from := range map[string]testnet.Scope{"pod web-0": pods[0].Scope, "node-0": n.Nodes[0].Scope} {
				out, err := from.Run(ctx, n.Binaries.Helper, "get", url(to.IP(v6), 8080))
				if err != nil || !strings.HasPrefix(string(out), to.Name+" ") {
					t.Errorf("%s to %s at %s: %q, %v", name, to.Name, to.IP(v6), out, err)
				}
			}
		}
	}
	for _, a := range n.Outside {
		out, err := pods[0].Run(ctx, n.Binaries.Helper, "get", url(a, 8080))
		if err != nil || !strings.HasPrefix(string(out), "beyond ") || strings.Contains(string(out), pods[0].IP(a.Is6()).String()) {
			t.Errorf("pod to %s: %q, %v, want an answer of beyond to the node's address", a, out, err)
		}
	}

	service := testnet.Service{
		Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.80"), netip.MustParseAddr("fd00:96::80")},
		Selector: map[string]string{"app": "web"}, Ports: []testnet.ServicePort{
			{Name: "http", Port: 80, TargetPort: 8080}, {Name: "udp", Protocol: "UDP", Port: 80, TargetPort: 8080}},
	}
	if err := n.PutService(service); err != nil {
		t.Fatal(err)
	}
	for _, node := range n.Nodes {
		if err := node.Backends(ctx, "default", "web", 4); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range service.ClusterIPs {
		load := traffic.Load{URL: url(a, 80), KeepAlive: 8, New: 5 * time.Millisecond, UDP: netip.AddrPortFrom(a, 80).String(), Duration: time.Second}
		r := run(t, ctx, n, pods[0].Scope, load)
		if !r.Clean() || len(r.Backends) != 4 {
			t.Errorf("%s: %s", a, r)
		}
	}

	// The agent of the client's node dies and comes back under traffic.
	load := traffic.Load{
		URL: url(service.ClusterIPs[0], 80), KeepAlive: 8, New: 5 * time.Millisecond,
		UDP: netip.AddrPortFrom(pods[1].IP(false), 8080).String(), Duration: 3 * time.Second,
	}
	done := make(chan traffic.Report)
	go func() { done <- run(t, ctx, n, pods[0].Scope, load) }()
	n.Nodes[0].Kill()
	if err := n.Nodes[0].Start(); err != nil {
		t.Fatal(err)
	}
	if err := n.Nodes[0].Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if r := <-done; !r.Clean() {
		t.Errorf("while the agent was killed and started: %s", r)
	} else {
		t.Logf("while the agent was killed and started: %s", r)
	}

	// A pod goes: its address answers nobody, and the Service does without it.
	if err := pods[3].Remove(ctx); err != nil {
		t.Fatal(err)
	}
	for _, node := range n.Nodes {
		if err := node.Backends(ctx, "default", "web", 3); err != nil {
			t.Fatal(err)
		}
	}
	if r := run(t, ctx, n, pods[0].Scope, traffic.Load{URL: load.URL, New: 2 * time.Millisecond, Duration: time.Second / 2}); !r.Clean() || r.Backends["web-3"] > 0 {
		t.Errorf("after web-3 was removed: %s", r)
	}
	for _, node := range n.Nodes {
		if err := node.Stop(ctx); err != nil {
			t.Error(err)
		}
	}
}

// run runs the load in a scope.
func run(t *testing.T, ctx context.Context, n *testnet.Net, from testnet.Scope, load traffic.Load) (r traffic.Report) {
	t.Helper()
	b, err := json.Marshal(load)
	if err != nil {
		t.Error(err)
		return r
	}
	out, err := from.Run(ctx, n.Binaries.Helper, "load", string(b))
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		t.Errorf("load: %v", err)
	}
	return r
}

// leaveEnv marks the process that builds a network and is killed.
const leaveEnv = "FAIRLEAD_TESTNET_LEAVE"

// leave builds a network with an agent and a pod, tells of it, and waits for its end.
func leave() {
	var b testnet.Binaries
	err := json.Unmarshal([]byte(os.Getenv(leaveEnv)), &b)
	ctx := context.Background()
	var n *testnet.Net
	if err == nil {
		n, err = testnet.New(ctx, testnet.Options{Nodes: 1, Binaries: b})
	}
	if err == nil {
		err = n.Start(ctx)
	}
	if err == nil {
		_, err = n.Nodes[0].AddPod(ctx, testnet.PodSpec{Name: "left"})
	}
	if err == nil && os.Getenv(leaveEnv+"_KEEP") != "" {
		err = n.Keep()
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(n.Dir)
	fmt.Println(n.Nodes[0].Cgroup)
	fmt.Println(n.Nodes[0].BPFFSDir)
	fmt.Println(n.Nodes[0].Agent().PID())
	select {}
}

func TestKilledOwnerLeavesNothing(t *testing.T) {
	env, err := json.Marshal(programs)
	if err != nil {
		t.Fatal(err)
	}
	left := func(keep string) (dirs []string, pid string) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), leaveEnv+"="+string(env), leaveEnv+"_KEEP="+keep)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for len(dirs) < 3 && lines.Scan() {
			dirs = append(dirs, lines.Text())
		}
		if !lines.Scan() {
			t.Fatalf("child says %q", dirs)
		}
		pid = lines.Text()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if !runs(pid) {
			t.Errorf("the killed process left no agent, so nothing is tested")
		}
		for _, dir := range dirs {
			if _, err := os.Stat(dir); err != nil {
				t.Errorf("the killed process left no %s, so nothing is tested: %v", dir, err)
			}
		}
		return dirs, pid
	}
	gone := func(dirs []string, pid string) {
		t.Helper()
		if runs(pid) {
			t.Errorf("agent %s still runs", pid)
		}
		for _, dir := range dirs {
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is still there: %v", dir, err)
			}
		}
		if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dirs[0]+"/") {
			t.Errorf("something is still mounted below %s (%v)", dirs[0], err)
		}
	}

	// The next network removes it.
	dirs, pid := left("")
	n, err := testnet.New(t.Context(), testnet.Options{Nodes: 1, Binaries: programs})
	if err != nil {
		t.Fatal(err)
	}
	gone(dirs, pid)
	if err := errors.Join(n.Close(), n.Close()); err != nil {
		t.Error(err)
	}

	// A kept one stays until it is asked for.
	dirs, pid = left("1")
	if n, err = testnet.New(t.Context(), testnet.Options{Nodes: 1, Binaries: programs}); err != nil {
		t.Fatal(err)
	}
	if !runs(pid) {
		t.Error("the agent of a kept network is gone")
	}
	if err := errors.Join(n.Close(), testnet.Down()); err != nil {
		t.Error(err)
	}
	gone(dirs, pid)
}

// runs says whether a process has not ended. One that has may still be listed, when its parent does not wait for it.
func runs(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	return err == nil && !strings.Contains(string(b), "State:\tZ")
}

func TestNewRefuses(t *testing.T) {
	for _, nodes := range []int{0, 201} {
		if _, err := testnet.New(t.Context(), testnet.Options{Nodes: nodes}); err == nil || !strings.Contains(err.Error(), "want 1 to 200") {
			t.Errorf("%d nodes: %v", nodes, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before, _ := filepath.Glob("/run/fairlead-net-*")
	if _, err := testnet.New(ctx, testnet.Options{Nodes: 1, Binaries: programs}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	if after, _ := filepath.Glob("/run/fairlead-net-*"); len(after) > len(before) {
		t.Errorf("a network that was not built left %q", after)
	}
}
