// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
)

const kernelPrefix = "/sys/fs/bpf/fairlead-service-test-"

// The same histories as in the model, in the kernel's maps: after each restart and at the end they hold what the oracle says.
func TestKernelMaps(t *testing.T) {
	old, _ := filepath.Glob(kernelPrefix + "*")
	for _, dir := range old {
		if pid, err := strconv.Atoi(strings.TrimPrefix(dir, kernelPrefix)); err == nil && syscall.Kill(pid, 0) != nil {
			_ = bpf.Remove(dir)
		}
	}
	dir := kernelPrefix + fmt.Sprint(os.Getpid())
	t.Cleanup(func() {
		if err := bpf.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	small := map[string]uint32{"backends": 4096, "slots": 4096, "services": 1024, "frontends": 1024, "affinities": 1024, "cluster_ips": 1024, "ids": 8192}
	open := func() *bpf.Objects {
		o, err := bpf.Open(bpf.Options{Dir: dir, Capacity: small})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	now := time.Unix(1000, 0)
	start := func(o *bpf.Objects, w *world) *Proxy {
		p, err := New(Config{Node: "here", Tables: o.Services(), IDs: o.IDs(), Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		p.Apply(w.all())
		return p
	}
	r := &trial{t: t, rand: rand.New(rand.NewPCG(1, 4)), w: newWorld("here")}
	objects := open()
	p := start(objects, r.w)
	check := func() {
		t.Helper()
		for range 20 {
			now = now.Add(time.Minute)
			if err := p.tend(); err != nil {
				t.Fatal(err)
			}
			if _, busy := p.next(); !busy {
				break
			}
		}
		r.m = copyOf(t, objects)
		r.target = r.w.oracle()
		r.proxy = p
		r.compareAll()
		if backends := len(r.m.backends); backends != p.Stats().Backends || backends != len(r.m.ids[bpf.IDBackend]) {
			t.Fatalf("%d backends, %d ids, the agent knows %d", backends, len(r.m.ids[bpf.IDBackend]), p.Stats().Backends)
		}
	}
	for i := range 150 {
		b := cluster.Batch{Changes: []cluster.Change{r.change(), r.change()}}
		r.w.apply(b)
		p.Apply(b)
		if i%10 == 9 {
			// The next agent opens the maps while this one still has them.
			next := open()
			if err := objects.Close(); err != nil {
				t.Fatal(err)
			}
			objects = next
			p = start(objects, r.w)
			check()
		}
	}
	check()
	if err := objects.Close(); err != nil {
		t.Fatal(err)
	}
}

// copyOf reads the kernel's maps into a model.
func copyOf(t *testing.T, o *bpf.Objects) *model {
	t.Helper()
	m := newModel()
	s := o.Services()
	frontends, err := s.Frontends()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frontends {
		m.frontends[f.FrontendKey] = f
	}
	services, err := s.Services()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range services {
		m.services[w.ID] = w
	}
	backends, err := s.Backends()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backends {
		m.backends[b.ID] = b
	}
	if m.slots, err = s.Slots(0, s.SlotCapacity()); err != nil {
		t.Fatal(err)
	}
	ips, err := s.ClusterIPs()
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(m.ips, ips)
	ranges, err := s.SourceRanges()
	if err != nil {
		t.Fatal(err)
	}
	for set, all := range ranges {
		m.ranges[set] = map[netip.Prefix]bool{}
		for _, p := range all {
			m.ranges[set][p] = true
		}
	}
	for kind := range m.ids {
		all, err := o.IDs().List(kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range all {
			m.ids[kind][in.Signature] = in.ID
		}
	}
	return m
}
