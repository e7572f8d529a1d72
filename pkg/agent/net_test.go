// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/query"
	"github.com/fairlead/fairlead/pkg/testnet"
)

// programs are built once for all tests.
var programs testnet.Binaries

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "fairlead-agent-test-")
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

// patience is how long the tests wait for what must come.
const patience = 15 * time.Second

// machines builds a network that ends with the test; no agent runs yet. The agents' logs are shown when the test failed.
func machines(t *testing.T, nodes int) *testnet.Net {
	t.Helper()
	n, err := testnet.New(t.Context(), testnet.Options{Nodes: nodes, Binaries: programs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, node := range n.Nodes {
				b, _ := os.ReadFile(node.Log)
				t.Logf("agent on %s:\n%s", node.Name, b)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// start runs agents, with further flags.
func start(t *testing.T, n *testnet.Node, flags ...string) {
	t.Helper()
	if err := n.Start(flags...); err != nil {
		t.Fatal(err)
	}
}

// status waits until the agent's status is as the test wants it.
func status(t *testing.T, n *testnet.Node, what string, ok func(query.Status) bool) query.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); ; { // nothing announces a status
		last, err := n.Query().Status(ctx)
		if err == nil && ok(last) {
			return last
		}
		select {
		case <-n.Agent().Done():
			t.Fatalf("%s: agent on %s ended", what, n.Name)
		case <-ctx.Done():
			t.Fatalf("%s: agent on %s: %v, %+v", what, n.Name, err, last)
		case <-tick.C:
		}
	}
}

// ready waits until the agent has done its first complete pass.
func ready(t *testing.T, n *testnet.Node) query.Status {
	t.Helper()
	return status(t, n, "ready", func(s query.Status) bool { return s.Ready })
}

// stop asks the agent to end, which is no error of its own.
func stop(t *testing.T, n *testnet.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.Stop(ctx); err != nil || n.Agent().ExitCode() != 0 {
		t.Errorf("stopped agent on %s ends with %d, %v", n.Name, n.Agent().ExitCode(), err)
	}
}

// daemon runs the daemon to its end, with further flags or a command, and returns its exit code and what it said.
func daemon(t *testing.T, n *testnet.Node, args ...string) (code int, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := os.CreateTemp(t.TempDir(), "said")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(programs.Agent, append(n.Flags(), args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	p, err := n.Scope.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait(ctx)
	b, readErr := os.ReadFile(out.Name())
	if readErr != nil || ctx.Err() != nil {
		t.Fatalf("fairleadd %v does not end: %v\n%s", args, errors.Join(err, readErr), b)
	}
	return p.ExitCode(), string(b)
}

// counter returns what `fairlead drops` says of an event.
func counter(t *testing.T, n *testnet.Node, name string) uint64 {
	t.Helper()
	drops, err := n.Query().Drops(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range drops.Counters {
		if c.Name == name {
			return c.Count
		}
	}
	t.Fatalf("no counter %s in %v", name, drops.Counters)
	return 0
}

// pod adds a pod.
func pod(t *testing.T, n *testnet.Node, name string, labels map[string]string) *testnet.Pod {
	t.Helper()
	p, err := n.AddPod(t.Context(), testnet.PodSpec{Name: name, Labels: labels})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// handle looks at a machine's links and routes.
func handle(t *testing.T, s testnet.Scope) *link.Handle {
	t.Helper()
	var h *link.Handle
	err := s.Do(func() (err error) {
		h, err = link.Open()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// serve answers HTTP in the scope, with its name and the client's address, at port 8080.
func serve(t *testing.T, scopes ...testnet.Scope) {
	t.Helper()
	for _, s := range scopes {
		if _, err := s.Serve(t.Context(), 8080); err != nil {
			t.Fatal(err)
		}
	}
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// client speaks HTTP in a scope's namespace by sockets of this process, which no socket program sees: a Service is found in packets.
func client(s testnet.Scope) *http.Client {
	dial := func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = s.Do(func() (err error) {
			var d net.Dialer
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	return &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
}

// lasting is a client of one connection: when that breaks there is no other.
func lasting(s testnet.Scope) *http.Client {
	c := client(s)
	transport := c.Transport.(*http.Transport)
	dial, dialled := transport.DialContext, false
	transport.DisableKeepAlives = false
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dialled {
			return nil, errors.New("the connection has broken")
		}
		dialled = true
		return dial(ctx, network, address)
	}
	return c
}

// get returns the answer to an HTTP request.
func get(c *http.Client, url string) (code int, body string, err error) {
	r, err := c.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

// ask returns who answers at an address, and which address that one saw.
func ask(t *testing.T, c *http.Client, to netip.AddrPort) (name, from string) {
	t.Helper()
	_, body, err := get(c, "http://"+to.String())
	if err != nil {
		t.Errorf("ask %s: %v", to, err)
	}
	return greeting(body)
}

// askAtCall is ask by a process of the scope's cgroup: the backend is chosen at connect(2).
func askAtCall(t *testing.T, s testnet.Scope, to netip.AddrPort) (name, from string) {
	t.Helper()
	body, err := s.Run(t.Context(), programs.Helper, "get", "http://"+to.String())
	if err != nil {
		t.Errorf("ask %s at the call: %v", to, err)
	}
	return greeting(string(body))
}

// greeting reads what a server of testnet says: its name, and the client's address and port.
func greeting(body string) (name, from string) {
	name, from, _ = strings.Cut(strings.TrimSpace(body), " ")
	client, _ := netip.ParseAddrPort(from)
	return name, client.Addr().Unmap().String()
}

// conf is what the container runtime is told.
func conf(n *testnet.Node) string { return filepath.Join(n.ConfDir, "05-fairlead.conflist") }
