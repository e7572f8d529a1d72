// SPDX-License-Identifier: Apache-2.0

package service

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/reconcile"
)

var update = flag.Bool("update", false, "write what the maps hold into the scripts in testdata")

// TestScripts runs each script of testdata: one behaviour, told as YAML that is applied and as what the maps hold then.
//
//	apply.yaml    objects that come or change, as one event
//	delete.yaml   objects that go, as one event
//	restart       the agent is replaced; the maps stay
//	full NAME=N   the map may hold N elements from here on: frontends, slots, backends, ranges
//	maps          what the maps hold once everything is settled
//	conditions    what Conditions says
//
// Every script runs once as it is, and ten times with a tenth of all writes failing. The node is called here.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			runScript(t, a, nil)
			if *update {
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for seed := range uint64(10) {
				runScript(t, a, rand.New(rand.NewPCG(seed, 2)))
				if t.Failed() {
					t.Fatalf("with faults of seed %d", seed)
				}
			}
		})
	}
}

// script is one run.
type script struct {
	t     *testing.T
	m     *model
	w     *world
	proxy *Proxy
	now   time.Time
	rand  *rand.Rand
	quiet bool // no faults
}

func runScript(t *testing.T, a *txtar.Archive, faults *rand.Rand) {
	s := &script{t: t, m: newModel(), w: newWorld("here"), now: time.Unix(1000, 0), rand: faults}
	s.m.fault = func(string) error { return s.fault() }
	s.start()
	for i := range a.Files {
		f := &a.Files[i]
		verb, arg, _ := strings.Cut(f.Name, " ")
		switch {
		case verb == "apply.yaml":
			s.apply(s.objects(f, true))
		case verb == "delete.yaml":
			s.apply(s.objects(f, false))
		case verb == "restart":
			s.start()
		case verb == "full":
			s.full(arg)
		case verb == "maps":
			s.settle()
			s.compare(f, s.m.dump())
		case verb == "conditions" && faults == nil:
			s.settle()
			s.compare(f, dumpConditions(s.proxy.Conditions()))
		case verb == "conditions":
		default:
			t.Fatalf("unknown section %q", f.Name)
		}
	}
}

func (s *script) fault() error {
	if s.rand != nil && !s.quiet && s.rand.IntN(10) == 0 {
		return errFault
	}
	return nil
}

func (s *script) start() {
	p, err := New(Config{
		Node: "here", Tables: s.m, IDs: s.m, Now: func() time.Time { return s.now },
		Fault: func(reconcile.Stage, string) error { return s.fault() },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.proxy = p
	p.Apply(s.w.all())
}

func (s *script) apply(b cluster.Batch) {
	s.w.apply(b)
	s.proxy.Apply(b)
}

func (s *script) full(arg string) {
	for _, field := range strings.Fields(arg) {
		var n uint32
		name, number, _ := strings.Cut(field, "=")
		if _, err := fmt.Sscan(number, &n); err != nil {
			s.t.Fatalf("full %s: %v", arg, err)
		}
		switch name {
		case "frontends":
			s.m.frontendCap = n
		case "ranges":
			s.m.rangeCap = int(n)
		case "backends":
			s.m.backendCap = n
		case "slots":
			s.m.slotCap = n
			s.start() // the number of slots is read once
		default:
			s.t.Fatalf("full %s: no such map", arg)
		}
	}
}

// settle lets time pass until nothing changes any more. What finds no room is tried for a minute.
func (s *script) settle() {
	for range 200 {
		if _, busy := s.proxy.next(); !busy {
			return
		}
		s.now = s.now.Add(300 * time.Millisecond)
		_ = s.proxy.tend()
	}
	s.quiet = true
	for range 20 {
		s.now = s.now.Add(10 * time.Second)
		_ = s.proxy.tend()
	}
	s.quiet = false
}

func (s *script) compare(f *txtar.File, got string) {
	s.t.Helper()
	if *update && s.rand == nil {
		f.Data = []byte(got)
		return
	}
	if diff := gocmp.Diff(strings.Split(string(f.Data), "\n"), strings.Split(got, "\n")); diff != "" {
		s.t.Errorf("section %q (-want +got):\n%s", f.Name, diff)
	}
}

// objects reads YAML documents as a source would.
func (s *script) objects(f *txtar.File, exist bool) (b cluster.Batch) {
	add := func(kind cluster.Kind, m metav1.ObjectMeta, v any, none bool, err error) {
		if err != nil {
			s.t.Fatalf("%s: %v", f.Name, err)
		}
		if none || !exist {
			v = nil
		}
		b.Changes = append(b.Changes, cluster.Change{Kind: kind, Key: cluster.Key{Namespace: m.Namespace, Name: m.Name}, Value: v})
	}
	in := cluster.NewInterner()
	for _, doc := range bytes.Split(f.Data, []byte("---\n")) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			s.t.Fatalf("%s: %v", f.Name, err)
		}
		read := func(to any) {
			if err := yaml.UnmarshalStrict(doc, to); err != nil {
				s.t.Fatalf("%s: %v", f.Name, err)
			}
		}
		switch kind.Kind {
		case "Service":
			var o corev1.Service
			read(&o)
			o.Namespace = "default"
			v, err := cluster.FromService(&o, in)
			add(cluster.ServiceKind, o.ObjectMeta, v, v == nil, err)
		case "EndpointSlice":
			var o discoveryv1.EndpointSlice
			read(&o)
			o.Namespace = "default"
			v, err := cluster.FromSlice(&o, in)
			add(cluster.SliceKind, o.ObjectMeta, v, v == nil, err)
		case "Node":
			var o corev1.Node
			read(&o)
			v, err := cluster.FromNode(&o, in)
			add(cluster.NodeKind, o.ObjectMeta, v, v == nil, err)
		default:
			s.t.Fatalf("%s: kind %q", f.Name, kind.Kind)
		}
	}
	return b
}

// dump writes the maps as people read them: without ids, in order.
func (m *model) dump() string {
	var lines []string
	for k, f := range m.frontends {
		w := m.services[f.Service]
		line := fmt.Sprintf("%s %s cluster: %s", k, className(f.Class), m.set(w.Cluster))
		line += " | local: " + m.set(w.Local)
		if w.Flags&bpf.ServiceInternalLocal != 0 {
			line += " | internal Local"
		}
		if w.Flags&bpf.ServiceExternalLocal != 0 {
			line += " | external Local"
		}
		if w.AffinitySeconds != 0 {
			line += fmt.Sprintf(" | affinity %d s", w.AffinitySeconds)
		}
		if w.SourceRange != 0 && f.Class == bpf.FrontendLoadBalancer {
			line += " | clients " + m.clients(w.SourceRange)
		}
		lines = append(lines, line)
	}
	for _, b := range m.backends {
		line := fmt.Sprintf("backend %s/%s", netip.AddrPortFrom(b.Addr, b.Port), protocolName(cluster.Protocol(b.Protocol)))
		for _, f := range []struct {
			flag bpf.BackendFlag
			name string
		}{{bpf.BackendServing, "serving"}, {bpf.BackendCluster, "cluster"}, {bpf.BackendInLocal, "in-local"}, {bpf.BackendLocal, "local"}, {bpf.BackendHost, "host"}} {
			if b.Flags&f.flag != 0 {
				line += " " + f.name
			}
		}
		lines = append(lines, line)
	}
	for a, n := range m.ips {
		lines = append(lines, fmt.Sprintf("cluster IP %s of %d", a, n))
	}
	for p := range m.cidrs {
		lines = append(lines, "service CIDR "+p.String())
	}
	if len(m.ranges) > 0 {
		lines = append(lines, fmt.Sprintf("%d source range sets, %d ids", len(m.ranges), len(m.ids[bpf.IDSourceRange])))
	}
	lines = append(lines, fmt.Sprintf("%d services, %d backends, %d ids, %d slots", len(m.services), len(m.backends),
		len(m.ids[bpf.IDService])+len(m.ids[bpf.IDBackend]), m.used))
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func dumpConditions(all []Condition) string {
	if len(all) == 0 {
		return "none\n"
	}
	var b strings.Builder
	for _, c := range all {
		fmt.Fprintf(&b, "%s: %s\n", c.Object, c.Message)
	}
	return b.String()
}
