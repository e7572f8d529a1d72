// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fairlead/fairlead/"

// doors: a library that one package wraps is imported by that package alone, so that replacing it, or reading all that is done with
// it, is one package's matter.
var doors = []struct {
	library string // import path or a prefix of it
	allowed []string
	because string
}{
	{"github.com/cilium/ebpf", []string{"pkg/bpf"},
		"pkg/bpf is the only door to BPF: what is loaded, pinned and adopted must be decided in one place"},
	{"github.com/vishvananda/netlink", []string{"pkg/link"},
		"pkg/link is the only door to netlink: it knows which links and routes are ours"},
	{"github.com/vishvananda/netns", []string{"pkg/link"},
		"entering a namespace needs a thread that is thrown away when the way back fails: pkg/link does that once"},
	{"github.com/google/nftables", []string{"pkg/nft"},
		"pkg/nft is the only door to nftables: it never touches a table that is not ours"},
	{"k8s.io/client-go", []string{"pkg/k8s"},
		"only pkg/k8s may talk to the API server: no pod's start may depend on it"},
	{"k8s.io/api", []string{"pkg/k8s", "pkg/manifest", "pkg/cluster"},
		"API structs end in pkg/cluster's conversion: kept ones would cost three times the memory"},
	{"k8s.io/apimachinery", []string{"pkg/k8s", "pkg/manifest", "pkg/cluster"},
		"API structs end in pkg/cluster's conversion: kept ones would cost three times the memory"},
	{"k8s.io/kubernetes", nil,
		"it has no stable API and would bring hundreds of modules"},
	{"github.com/prometheus/client_golang", []string{"pkg/metrics"},
		"every metric name is in pkg/metrics: the others return numbers"},
	{"github.com/spf13/cobra", []string{"cmd/fairleadd", "cmd/fairlead"},
		"commands are the edge: below cmd nothing knows how it was started"},
	{"github.com/containernetworking", []string{"pkg/cni", "pkg/testnet", "plugins/fairlead-cni"},
		"the CNI library serves the plugin binary and its callers; the agent speaks pkg/cni's protocol"},
	{"github.com/stretchr/testify", nil,
		"tests use testing and go-cmp: a failure shows the difference, not the assertion"},
	{"log", nil,
		"log/slog is passed in: there is no global logger"},
	{"unsafe", []string{"pkg/bpf", "pkg/link", "pkg/testnet"},
		"memory is shared with the kernel in pkg/bpf, and system calls without a wrapper are in pkg/link and in the helpers of tests: nowhere else"},
}

// layer is what a package may import of this module. Everything else is forbidden, because.
type layer struct {
	allowed []string
	because string
}

const (
	entry     = "an entry point turns flags into a call and nothing else: logic in it cannot be used or tested from outside"
	edge      = "an edge is wired in agent and knows its neighbours by small interfaces only"
	domain    = "domain packages do not know each other: what one needs of another is an interface that it declares and that agent wires"
	mechanism = "a mechanism knows no domain: it must be usable by each of them"
	kernel    = "a door to the kernel knows what the kernel knows, and nothing of Kubernetes"
	helper    = "a helper for tests and benchmarks stands beside the product, not in it"
)

var layers = map[string]layer{
	"cmd/fairleadd":        {[]string{"pkg/agent", "pkg/cni"}, entry},
	"cmd/fairlead":         {[]string{"pkg/query", "pkg/packet"}, "the CLI asks the agent and cannot change a node: " + entry},
	"plugins/fairlead-cni": {[]string{"pkg/cni"}, "the CNI binary is small, static and started for every pod: " + entry},
	"pkg/agent": {[]string{
		"pkg/bpf", "pkg/cluster", "pkg/cni", "pkg/endpoint", "pkg/flow", "pkg/health", "pkg/ipam", "pkg/k8s", "pkg/link", "pkg/manifest",
		"pkg/masquerade", "pkg/metrics", "pkg/nft", "pkg/node", "pkg/policy", "pkg/query", "pkg/reconcile", "pkg/service",
	}, "agent wires the product; helpers of tests are not part of it"},
	"pkg/k8s":        {[]string{"pkg/cluster"}, edge},
	"pkg/manifest":   {[]string{"pkg/cluster"}, edge},
	"pkg/health":     {nil, edge},
	"pkg/metrics":    {[]string{"pkg/bpf"}, edge},
	"pkg/query":      {nil, "the CLI imports it and must stay small: " + edge},
	"pkg/endpoint":   {[]string{"pkg/bpf", "pkg/cluster", "pkg/cni", "pkg/ipam", "pkg/link", "pkg/reconcile"}, domain},
	"pkg/ipam":       {nil, domain},
	"pkg/node":       {[]string{"pkg/bpf", "pkg/cluster", "pkg/link", "pkg/reconcile"}, domain},
	"pkg/service":    {[]string{"pkg/bpf", "pkg/cluster", "pkg/reconcile"}, domain},
	"pkg/policy":     {[]string{"pkg/bpf", "pkg/cluster", "pkg/reconcile"}, domain},
	"pkg/masquerade": {[]string{"pkg/cluster", "pkg/nft", "pkg/reconcile"}, domain},
	"pkg/flow":       {[]string{"pkg/bpf", "pkg/link"}, domain},
	"pkg/cluster":    {nil, "values know nobody: every package may use them"},
	"pkg/reconcile":  {nil, mechanism},
	"pkg/cni":        {nil, "the CNI binary imports it and must stay small: " + mechanism},
	"pkg/bpf":        {nil, kernel},
	"pkg/link":       {nil, kernel},
	"pkg/nft":        {nil, kernel},
	"pkg/packet":     {nil, helper},
	"pkg/testnet":    {[]string{"pkg/bpf", "pkg/cluster", "pkg/link", "pkg/packet", "pkg/query"}, helper},
}

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath string
	Name       string
	Imports    []string
	Error      *struct{ Err string }
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Name,Imports,Error", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%s: %v", cmd, err)
		}
		if p.Error != nil {
			t.Errorf("%s: %s", p.ImportPath, p.Error.Err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatalf("%s: no packages", cmd)
	}
	return all
}

// of returns the part of path that names a layer: "pkg/testnet/helper" belongs to "pkg/testnet".
func of(path string) string {
	for name := strings.TrimPrefix(path, module); name != "."; {
		if _, ok := layers[name]; ok {
			return name
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			break
		}
		name = name[:i]
	}
	return ""
}

func within(path, library string) bool {
	return path == library || strings.HasPrefix(path, library+"/")
}

func TestImportsPointDownwards(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		// Benchmarks and what they start may use everything: nothing imports them.
		if within(name, "bench") || within(name, "daemonset") {
			continue
		}
		from := of(p.ImportPath)
		if from == "" {
			t.Errorf("%s has no layer: say in layers what it may import, and why not more", name)
			continue
		}
		for _, path := range p.Imports {
			if strings.HasPrefix(path, module) {
				to := of(path)
				if to != from && !slices.Contains(layers[from].allowed, to) {
					t.Errorf("%s imports %s: %s", name, strings.TrimPrefix(path, module), layers[from].because)
				}
				continue
			}
			for _, d := range doors {
				hit := within(path, d.library)
				if d.library == "log" { // log/slog is another matter
					hit = path == "log"
				}
				if hit && !slices.Contains(d.allowed, from) {
					t.Errorf("%s imports %s: %s", name, path, d.because)
				}
			}
		}
	}
}

// A rule that names what does not exist protects nothing.
func TestRulesNameLayers(t *testing.T) {
	for from, l := range layers {
		for _, to := range l.allowed {
			if _, ok := layers[to]; !ok {
				t.Errorf("%s may import %s, which has no layer", from, to)
			}
		}
	}
	for _, d := range doors {
		for _, name := range d.allowed {
			if _, ok := layers[name]; !ok {
				t.Errorf("%s may be imported by %s, which has no layer", d.library, name)
			}
		}
	}
}
