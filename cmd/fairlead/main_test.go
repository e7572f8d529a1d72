// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/query"
)

// agent answers at DIR/query.sock until the test ends.
func agent(t *testing.T) (runDir string, status query.Status) {
	t.Helper()
	status = query.Status{
		Agent:     query.Agent{Version: "v1", PID: 7, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Source: "manifests /m"},
		Node:      query.Node{Name: "a", IPs: []string{"192.0.2.1"}, PodCIDRs: []string{"10.0.0.0/24", "fd00::/64"}, MTU: 1450, RoutingMode: "overlay"},
		Gates:     []query.Gate{{Name: "service", Waiting: []string{"Services", "own Node"}}, {Name: "peers", Open: true}},
		Endpoints: 1, Peers: 2, Services: 3, Backends: 4,
		Pools:      []query.Pool{{CIDR: "10.0.0.0/24", Size: 253, Used: 17}},
		Maps:       []query.Map{{Name: "frontends", Capacity: 8, Used: 2, Failed: 1}},
		Conditions: []query.Condition{{Component: "node", Object: "Node b", Message: "podCIDR 10.0.0.0/24 overlaps Node a"}},
		Errors:     []query.Error{{Level: "WARN", Message: "sync late"}},
	}
	runDir = t.TempDir()
	l, err := query.Listen(filepath.Join(runDir, "query.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- query.Serve(ctx, l, query.Handler(query.Answers{
			Status: func() (query.Status, error) { return status, nil },
			Drops: func() (query.Drops, error) {
				return query.Drops{
					Drops:    []query.Drop{{Reason: "too-big", Count: 1}, {Reason: "never", Count: 0}, {Reason: "spoofed-mac", Count: 5}},
					Counters: []query.Counter{{Name: "to-stack", Count: 2}},
				}, nil
			},
			Services: func() (query.Services, error) {
				return query.Services{Services: []query.Service{
					{Namespace: "n", Name: "s", Port: "http", Protocol: "TCP", ID: 1, Local: []string{"x"},
						Frontends: []query.Frontend{{Class: "cluster-ip", Address: "10.96.0.1:80"}},
						Cluster:   []string{"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080", "10.0.0.5:8080"}},
					{Namespace: "n", Name: "empty", Protocol: "UDP", ID: 2},
				}}, nil
			},
			Endpoints: func() (query.Endpoints, error) {
				return query.Endpoints{Endpoints: []query.Endpoint{{ID: 1, Namespace: "n", Pod: "p", IPs: []string{"10.0.0.2", "fd00::2"},
					Link: "fl012345678901", Interface: "eth0", State: "live", Container: "c"}}}, nil
			},
			Peers: func() (query.Peers, error) {
				return query.Peers{Peers: []query.Peer{{ID: 3, Name: "b", IP: "192.0.2.2", PodCIDRs: []string{"10.0.1.0/24"}, Mode: "overlay"}}}, nil
			},
		}))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return runDir, status
}

func TestTables(t *testing.T) {
	runDir, _ := agent(t)
	for command, want := range map[string]string{
		"drops": `
REASON       COUNT
spoofed-mac  5
too-big      1

EVENT     COUNT
to-stack  2
`,
		"services": `
NAMESPACE  NAME   PORT  PROTO  ID  FRONTENDS                BACKENDS                                               LOCAL
n          s      http  TCP    1   cluster-ip 10.96.0.1:80  10.0.0.1:8080, 10.0.0.2:8080, 10.0.0.3:8080 and 2 more  1
n          empty  -     UDP    2   -                        -                                                      0
`,
		"endpoints": `
ID  NAMESPACE  POD  IPS               LINK            INTERFACE  STATE  CONTAINER
1   n          p    10.0.0.2,fd00::2  fl012345678901  eth0       live   c
`,
		"peers": `
ID  NODE  IP         POD CIDRS    MODE     MTU
3   b     192.0.2.2  10.0.1.0/24  overlay  own
`,
	} {
		t.Run(command, func(t *testing.T) {
			var out, errors bytes.Buffer
			if err := run(t.Context(), []string{"--run-dir", runDir, command}, &out, &errors); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Fields(want), strings.Fields(out.String())); diff != "" {
				t.Errorf("-want +got:\n%s\n%s", diff, out.String())
			}
		})
	}
}

func TestStatusShowsEverythingThatIsWrong(t *testing.T) {
	runDir, _ := agent(t)
	var out, errors bytes.Buffer
	if err := run(t.Context(), []string{"--run-dir", runDir, "status"}, &out, &errors); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"not ready", "closed, waiting for Services, own Node", "25.0%", "overlaps Node a", "sync late", "MTU 1450", "10.0.0.0/24  17"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("status does not say %q:\n%s", want, out.String())
		}
	}
}

func TestJSONIsTheWholeAnswer(t *testing.T) {
	runDir, want := agent(t)
	var out, errors bytes.Buffer
	if err := run(t.Context(), []string{"status", "--run-dir", runDir, "-o", "json"}, &out, &errors); err != nil {
		t.Fatal(err)
	}
	var got query.Status
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-asked +printed:\n%s", diff)
	}
}

func TestWrongUse(t *testing.T) {
	nowhere := t.TempDir()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"status", "--run-dir", nowhere}, "no agent listens at " + nowhere + "/query.sock"},
		{[]string{"status", "-o", "xml"}, `--output "xml": not one of text, json`},
		{[]string{"stauts"}, `unknown command "stauts"`},
		{[]string{"status", "more"}, `unknown command "more"`},
	} {
		var out, errors bytes.Buffer
		err := run(t.Context(), test.args, &out, &errors)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("fairlead %v: error %v does not say %q", test.args, err, test.want)
		}
	}
}
