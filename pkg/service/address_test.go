// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
)

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// balanced is a Service with a load balancer, of one port.
func balanced(name, ip string, ranges ...string) cluster.Change {
	key := cluster.Key{Namespace: "ns", Name: name}
	return cluster.Change{Kind: cluster.ServiceKind, Key: key, Value: &cluster.Service{
		Namespace: "ns", Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0." + ip)},
		LoadBalancerIPs: []netip.Addr{netip.MustParseAddr("203.0.113." + ip)}, SourceRanges: prefixes(ranges...),
		Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}},
	}}
}

// clock lets a proxy's time pass.
type clock struct{ now time.Time }

func (c *clock) settle(t *testing.T, p *Proxy) {
	t.Helper()
	for range 50 {
		if _, busy := p.next(); !busy {
			return
		}
		c.now = c.now.Add(time.Minute)
		if err := p.tend(); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("not settled: %+v", p.Conditions())
}

func (c *clock) start(t *testing.T, m *model, config Config, b cluster.Batch) *Proxy {
	t.Helper()
	config.Node, config.Tables, config.IDs, config.Now = "here", m, m, func() time.Time { return c.now }
	p, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	p.Apply(b)
	return p
}

func (m *model) at80(addr string) string {
	f, ok := m.frontends[bpf.FrontendKey{Addr: netip.MustParseAddr(addr), Port: 80, Protocol: uint8(cluster.TCP)}]
	if !ok {
		return "absent"
	}
	return m.clients(m.services[f.Service].SourceRange)
}

// A set that somebody changed is as it should be after the next start; what nobody has is removed, whether it has an id or not.
func TestSourceRangesAreRepaired(t *testing.T) {
	c, m := &clock{time.Unix(1000, 0)}, newModel()
	world := cluster.Batch{Changes: []cluster.Change{balanced("a", "1", "10.0.0.0/8", "192.0.2.0/24")}, Synced: everything}
	p := c.start(t, m, Config{}, world)
	c.settle(t, p)
	if got := m.at80("203.0.113.1"); got != "10.0.0.0/8 192.0.2.0/24" {
		t.Fatalf("clients are %s", got)
	}
	if got := p.Services()[0].SourceRanges; !slices.Equal(got, prefixes("10.0.0.0/8", "192.0.2.0/24")) {
		t.Errorf("view says %v", got)
	}

	m.broken = func(string) {} // what is in disorder may be written while it is in use
	for set := range m.ranges {
		m.ranges[set] = map[netip.Prefix]bool{netip.MustParsePrefix("0.0.0.0/0"): true, netip.MustParsePrefix("10.0.0.0/8"): true}
	}
	id, err := m.Acquire(bpf.IDSourceRange, "of nobody")
	if err != nil {
		t.Fatal(err)
	}
	m.ranges[id.ID] = map[netip.Prefix]bool{netip.MustParsePrefix("1.2.3.0/24"): true}
	m.ranges[77] = map[netip.Prefix]bool{netip.MustParsePrefix("4.5.6.0/24"): true}
	c.settle(t, c.start(t, m, Config{}, world))
	if got := m.at80("203.0.113.1"); got != "10.0.0.0/8 192.0.2.0/24" {
		t.Errorf("clients are %s", got)
	}
	if len(m.ranges) != 1 || len(m.ids[bpf.IDSourceRange]) != 1 {
		t.Errorf("left are %v, %v", m.ranges, m.ids[bpf.IDSourceRange])
	}
}

// A Service that loses its load balancer together with the ranges is at no moment open to everybody there.
func TestSourceRangesGoAfterTheAddress(t *testing.T) {
	c, m := &clock{time.Unix(1000, 0)}, newModel()
	p := c.start(t, m, Config{}, cluster.Batch{Changes: []cluster.Change{balanced("a", "1", "10.0.0.0/8")}, Synced: everything})
	plain := balanced("a", "1")
	plain.Value.(*cluster.Service).LoadBalancerIPs = nil
	m.after = func(what string) {
		if got := m.at80("203.0.113.1"); got != "10.0.0.0/8" && got != "absent" {
			t.Errorf("after %s: %s", what, got)
		}
	}
	p.Apply(cluster.Batch{Changes: []cluster.Change{plain}})
	c.settle(t, p)
	if got := m.at80("203.0.113.1"); got != "absent" || len(m.ranges) > 0 {
		t.Errorf("%s, %v", got, m.ranges)
	}
}

func TestExternalIPsAreSwitchedOff(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		c, m := &clock{time.Unix(1000, 0)}, newModel()
		b := cluster.Batch{Changes: []cluster.Change{balanced("a", "1")}, Synced: everything}
		b.Changes[0].Value.(*cluster.Service).ExternalIPs = []netip.Addr{netip.MustParseAddr("8.8.8.8")}
		p := c.start(t, m, Config{IgnoreExternalIPs: ignore}, b)
		want, conditions := "everybody", 0
		if ignore {
			want, conditions = "absent", 1
		}
		view := p.Services()[0].Conditions
		if got := m.at80("8.8.8.8"); got != want || len(p.Conditions()) != conditions || len(view) != conditions {
			t.Errorf("ignore %t: %s, conditions %v, view %v", ignore, got, p.Conditions(), view)
		}
		if got := m.at80("203.0.113.1"); got != "everybody" {
			t.Errorf("ignore %t: load balancer address is for %s", ignore, got)
		}
	}
}

// Service CIDRs come after the addresses of Services, and only at the gate; what fails is a condition and tried again.
func TestServiceCIDRs(t *testing.T) {
	c, m := &clock{time.Unix(1000, 0)}, newModel()
	m.cidrs[netip.MustParsePrefix("10.97.0.0/16")] = true
	m.cidrs[netip.MustParsePrefix("fd96::/112")] = true
	var failing error
	m.fault = func(what string) error {
		if what == "put service CIDR" {
			if len(m.frontends) == 0 {
				t.Error("service CIDR before the frontends")
			}
			return failing
		}
		return nil
	}
	failing = errFault
	config := Config{ServiceCIDRs: prefixes("10.96.0.0/16", "fd96::/112")}
	p := c.start(t, m, config, cluster.Batch{Changes: []cluster.Change{balanced("a", "1")}})
	is := func() string { return fmt.Sprint(slices.SortedFunc(maps.Keys(m.cidrs), comparePrefixes)) }
	if got := is(); got != "[10.97.0.0/16 fd96::/112]" {
		t.Errorf("before the gate: %s", got)
	}
	p.Apply(cluster.Batch{Synced: everything})
	if got := is(); got != "[fd96::/112]" {
		t.Errorf("with a failure: %s", got)
	}
	if got := p.Conditions(); len(got) != 1 || got[0].Object != "service CIDR 10.96.0.0/16" {
		t.Errorf("conditions %+v", got)
	}
	failing = nil
	c.settle(t, p)
	if got := is(); got != "[10.96.0.0/16 fd96::/112]" || len(p.Conditions()) != 0 {
		t.Errorf("at the end: %s, %+v", got, p.Conditions())
	}
}

func TestHealthChecks(t *testing.T) {
	addr := netip.MustParseAddr
	here := func(a string, change ...func(*cluster.Endpoint)) cluster.Endpoint {
		e := cluster.Endpoint{Addr: addr(a), Ready: true, Serving: true, Node: "here"}
		for _, f := range change {
			f(&e)
		}
		return e
	}
	unready := func(e *cluster.Endpoint) { e.Ready, e.Serving = false, false }
	draining := func(e *cluster.Endpoint) { e.Ready, e.Terminating = false, true }
	elsewhere := func(e *cluster.Endpoint) { e.Node = "there" }
	http, https := cluster.SlicePort{Name: "http", Protocol: cluster.TCP, Port: 8080}, cluster.SlicePort{Name: "https", Protocol: cluster.TCP, Port: 8443}
	slice := func(name string, v6 bool, ports []cluster.SlicePort, all ...cluster.Endpoint) *cluster.Slice {
		return &cluster.Slice{Namespace: "ns", Name: name, Service: "a", IPv6: v6, Ports: ports, Endpoints: all}
	}
	both := []cluster.SlicePort{http, https}
	for _, test := range []struct {
		name   string
		slices []*cluster.Slice
		want   int
	}{
		{"none", nil, 0},
		{"two ports of a pod are one endpoint", []*cluster.Slice{slice("x", false, both, here("10.1.0.1"), here("10.1.0.2"))}, 2},
		{"two slices of a pod are one endpoint", []*cluster.Slice{
			slice("x", false, both[:1], here("10.1.0.1")), slice("y", false, both[1:], here("10.1.0.1"), here("10.1.0.2", unready))}, 1},
		{"terminating ones count nothing", []*cluster.Slice{slice("x", false, both, here("10.1.0.1", draining))}, 0},
		{"elsewhere", []*cluster.Slice{slice("x", false, both, here("10.1.0.1", elsewhere))}, 0},
		{"both families of a pod are one endpoint", []*cluster.Slice{
			slice("x", false, both, here("10.1.0.1")), slice("y", true, both, here("fd00::1"), here("fd00::2"))}, 2},
		{"without ports", []*cluster.Slice{slice("x", false, nil, here("10.1.0.1"))}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, m := &clock{time.Unix(1000, 0)}, newModel()
			told := 0
			p := c.start(t, m, Config{OnHealthChecks: func() { told++ }}, cluster.Batch{})
			a := balanced("a", "1")
			svc := a.Value.(*cluster.Service)
			svc.HealthCheckPort, svc.ExternalLocal, svc.ClusterIPs = 30001, true, append(svc.ClusterIPs, addr("fd96::1"))
			b := cluster.Batch{Changes: []cluster.Change{a, balanced("b", "2")}}
			for _, s := range test.slices {
				b.Changes = append(b.Changes, cluster.Change{Kind: cluster.SliceKind, Key: cluster.Key{Namespace: "ns", Name: s.Name}, Value: s})
			}
			p.Apply(b)
			if got := p.HealthChecks(); len(got) > 0 || told > 0 {
				t.Errorf("before the gate: %v, told %d times", got, told)
			}
			p.Apply(cluster.Batch{Synced: everything})
			if diff := cmp.Diff([]HealthCheck{{"ns", "a", 30001, test.want}}, p.HealthChecks()); diff != "" || told != 1 {
				t.Errorf("told %d times, (-want +got):\n%s", told, diff)
			}
			p.Apply(cluster.Batch{Changes: []cluster.Change{balanced("b", "2", "10.0.0.0/8")}})
			if told != 1 {
				t.Error("told of a change that is none")
			}
			p.Apply(cluster.Batch{Changes: []cluster.Change{{Kind: cluster.ServiceKind, Key: a.Key}}})
			if got := p.HealthChecks(); len(got) > 0 || told != 2 {
				t.Errorf("after the Service: %v, told %d times", got, told)
			}
		})
	}
}
