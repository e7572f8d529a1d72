// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/query"
)

// serve runs the answers at a socket and returns its path.
func serve(t *testing.T, a query.Answers) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "query.sock")
	l, err := query.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- query.Serve(ctx, l, query.Handler(a)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return path
}

func TestEveryAnswerArrivesWhole(t *testing.T) {
	when := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	status := query.Status{
		Agent: query.Agent{Version: "1", PID: 7, Started: when, Source: "manifests"},
		Node:  query.Node{Name: "a", IPs: []string{"192.0.2.1"}, PodCIDRs: []string{"10.0.0.0/24"}, MTU: 1450, RoutingMode: "overlay"},
		Ready: true, Gates: []query.Gate{{Name: "service", Waiting: []string{"Service"}}}, Endpoints: 1, Peers: 2, Services: 3, Backends: 4,
		Pools:      []query.Pool{{CIDR: "10.0.0.0/24", Size: 253, Used: 2, Cooling: 1}},
		Maps:       []query.Map{{Name: "flows", Capacity: 10, Used: 2, Failed: 1}},
		Conditions: []query.Condition{{Component: "node", Object: "Node b", Message: "overlaps", Since: when}},
		Errors:     []query.Error{{Time: when, Level: "WARN", Message: "x"}},
	}
	drops := query.Drops{Drops: []query.Drop{{Reason: "too-big", Count: 9}}, Counters: []query.Counter{{Name: "to-stack", Count: 1}}}
	services := query.Services{Services: []query.Service{{
		Namespace: "n", Name: "s", Port: "http", Protocol: "TCP", ID: 1, Cluster: []string{"10.0.0.2:80"}, Local: []string{},
		Frontends: []query.Frontend{{Class: "cluster-ip", Address: "10.96.0.1:80"}}, Affinity: 3, Conditions: []string{"full"},
	}}}
	endpoints := query.Endpoints{Endpoints: []query.Endpoint{{ID: 1, Pod: "p", IPs: []string{"10.0.0.2"}, State: "live"}}}
	peers := query.Peers{Peers: []query.Peer{{Name: "b", ID: 2, IP: "192.0.2.2", PodCIDRs: []string{"10.0.1.0/24"}, Mode: "overlay"}}}
	client := query.NewClient(serve(t, query.Answers{
		Status:    func() (query.Status, error) { return status, nil },
		Drops:     func() (query.Drops, error) { return drops, nil },
		Services:  func() (query.Services, error) { return services, nil },
		Endpoints: func() (query.Endpoints, error) { return endpoints, nil },
		Peers:     func() (query.Peers, error) { return peers, nil },
	}))
	same := func(what string, want, got any, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-sent +received):\n%s", what, diff)
		}
	}
	ctx := t.Context()
	gotStatus, err := client.Status(ctx)
	same("status", status, gotStatus, err)
	gotDrops, err := client.Drops(ctx)
	same("drops", drops, gotDrops, err)
	gotServices, err := client.Services(ctx)
	same("services", services, gotServices, err)
	gotEndpoints, err := client.Endpoints(ctx)
	same("endpoints", endpoints, gotEndpoints, err)
	gotPeers, err := client.Peers(ctx)
	same("peers", peers, gotPeers, err)
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "query.sock")
	dead := filepath.Join(t.TempDir(), "query.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, test := range []struct {
		name, path, want string
	}{
		{"no socket", nobody, "no agent listens at " + nobody},
		{"socket of a dead agent", dead, "no agent listens at " + dead},
		{"agent is starting", serve(t, query.Answers{}), "agent is starting"},
		{"agent has an error", serve(t, query.Answers{Status: func() (query.Status, error) {
			return query.Status{}, errors.New("read map flows: broken")
		}}), "read map flows: broken"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := query.NewClient(test.path).Status(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v does not say %q", err, test.want)
			}
		})
	}
}

func TestSocketIsForRootAndReplacesADeadOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "query.sock")
	for range 2 {
		l, err := query.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o600 {
			t.Errorf("socket has mode %o, want 600", got)
		}
		l.Close()
	}
}
