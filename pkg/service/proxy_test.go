// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
)

// dns is a Service of one UDP port with endpoints.
func dns(addrs ...string) cluster.Batch {
	slice := &cluster.Slice{Namespace: "ns", Name: "dns-1", Service: "dns", Ports: []cluster.SlicePort{{Protocol: cluster.UDP, Port: 53}}}
	for _, a := range addrs {
		slice.Endpoints = append(slice.Endpoints, cluster.Endpoint{Addr: netip.MustParseAddr(a), Ready: true, Serving: true})
	}
	return cluster.Batch{Changes: []cluster.Change{
		{Kind: cluster.ServiceKind, Key: cluster.Key{Namespace: "ns", Name: "dns"}, Value: &cluster.Service{
			Namespace: "ns", Name: "dns", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			Ports: []cluster.ServicePort{{Protocol: cluster.UDP, Port: 53}},
		}},
		{Kind: cluster.SliceKind, Key: cluster.Key{Namespace: "ns", Name: "dns-1"}, Value: slice},
	}}
}

var everything = []cluster.Kind{cluster.NodeKind, cluster.ServiceKind, cluster.SliceKind}

func (m *model) at(addr string) (bpf.Backend, bool) {
	for _, b := range m.backends {
		if b.Addr.String() == addr {
			return b, true
		}
	}
	return bpf.Backend{}, false
}

// A pod that is away for less than a second keeps its id and incarnation, so sockets and flows that have it go on; one that stays away
// does not, and whoever comes to its address later is another backend.
func TestBackendThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		var mu sync.Mutex
		gone := 0
		p, err := New(Config{Node: "here", Tables: m, IDs: m, OnBackendsGone: func() { mu.Lock(); gone++; mu.Unlock() }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		want := func(when string, n int) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if gone != n {
				t.Errorf("%s: OnBackendsGone was called %d times, want %d", when, gone, n)
			}
		}

		b := dns("10.1.0.1", "10.1.0.2")
		b.Synced = everything
		p.Apply(b)
		before, _ := m.at("10.1.0.1")
		want("start", 0)

		p.Apply(dns("10.1.0.2"))
		want("away", 1)
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if is, ok := m.at("10.1.0.1"); !ok || is.Flags&departed != 0 {
			t.Errorf("half a second after it left: %+v, want live, in no set, not serving", is)
		}
		p.Apply(dns("10.1.0.1", "10.1.0.2"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if is, _ := m.at("10.1.0.1"); is != before {
			t.Errorf("came back as %+v, was %+v", is, before)
		}
		want("back", 1)

		p.Apply(dns("10.1.0.2"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if is, ok := m.at("10.1.0.1"); ok {
			t.Errorf("ten seconds after it left: %+v", is)
		}
		want("gone", 2)
		p.Apply(dns("10.1.0.1", "10.1.0.2"))
		if is, _ := m.at("10.1.0.1"); is.Incarnation == before.Incarnation {
			t.Errorf("came back after its end as the one it was: %+v", is)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Nothing is read or written before everything is listed, whatever comes first.
func TestGate(t *testing.T) {
	m := newModel()
	m.fault = func(what string) error { t.Errorf("%s before the gate", what); return nil }
	p, err := New(Config{Node: "here", Tables: m, IDs: m})
	if err != nil {
		t.Fatal(err)
	}
	p.Apply(dns("10.1.0.1"))
	for _, step := range []struct {
		kind cluster.Kind
		wait string
	}{{cluster.SliceKind, "Services"}, {cluster.ServiceKind, "own Node"}} {
		p.Apply(cluster.Batch{Synced: []cluster.Kind{step.kind}})
		if got := p.Stats().GateWaitsOn; got != step.wait || p.Synced() {
			t.Errorf("gate waits on %q, synced %v; want %q", got, p.Synced(), step.wait)
		}
	}
	m.fault = func(string) error { return nil }
	p.Apply(cluster.Batch{Changes: []cluster.Change{{Kind: cluster.NodeKind, Key: cluster.Key{Name: "here"}, Value: &cluster.Node{Name: "here"}}}})
	if !p.Synced() || len(m.frontends) != 1 {
		t.Errorf("synced %v with %d frontends after the own Node came", p.Synced(), len(m.frontends))
	}
}

// One endpoint more costs the same writes however many Services there are.
func TestWritesPerChange(t *testing.T) {
	cost := func(services int) int {
		m := newModel()
		p, err := New(Config{Node: "here", Tables: m, IDs: m})
		if err != nil {
			t.Fatal(err)
		}
		b := dns("10.1.0.1")
		b.Synced = everything
		for i := range services {
			k := cluster.Key{Namespace: "other", Name: string(rune('a' + i))}
			b.Changes = append(b.Changes, cluster.Change{Kind: cluster.ServiceKind, Key: k, Value: &cluster.Service{
				Namespace: k.Namespace, Name: k.Name, ClusterIPs: []netip.Addr{addr4(97, 0, byte(i))}, Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}},
			}})
		}
		p.Apply(b)
		before := m.writes
		p.Apply(dns("10.1.0.1", "10.1.0.2"))
		return m.writes - before
	}
	if few, many := cost(1), cost(50); few != many || few == 0 {
		t.Errorf("%d writes among 1 Service, %d among 50", few, many)
	}
}

// What people see is what is in force.
func TestView(t *testing.T) {
	m := newModel()
	p, err := New(Config{Node: "here", Tables: m, IDs: m})
	if err != nil {
		t.Fatal(err)
	}
	b := dns("10.1.0.1")
	b.Synced = everything
	p.Apply(b)
	m.slotCap, m.backendCap = 1, 1
	p.Apply(dns("10.1.0.1", "10.1.0.2"))
	v := p.Services()
	if len(v) != 1 || len(v[0].Backends) != 1 || v[0].Cluster != 1 || len(v[0].Conditions) != 1 || !v[0].Frontends[0].InForce {
		t.Fatalf("views: %+v", v)
	}
	if got, want := p.Conditions()[0].Message, "acquire id: map is full"; got != want {
		t.Errorf("condition %q, want %q", got, want)
	}
	if st := p.Stats(); st.Services != 1 || st.Ports != 1 || st.Frontends != 1 || st.Retrying != 1 || st.Failures == 0 {
		t.Errorf("stats: %+v", st)
	}
}
