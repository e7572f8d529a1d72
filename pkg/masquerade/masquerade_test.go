// SPDX-License-Identifier: Apache-2.0

package masquerade

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/nft"
	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

// site is a node between a pod, another pod and the outside, each a namespace of its own.
type site struct {
	t                       *testing.T
	node, pod, other, outer *sandbox.Namespace
	nodeNL, podNL, otherNL  *link.Handle
	outerNL                 *link.Handle
	conn                    *nft.Conn
}

func prefixes(s ...string) (list []netip.Prefix) {
	for _, p := range s {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t}
	open := func(ns **sandbox.Namespace, nl **link.Handle) {
		*ns = sandbox.NewNamespace(t)
		h, err := link.OpenAt((*ns).FD())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		*nl = h
	}
	open(&s.node, &s.nodeNL)
	open(&s.pod, &s.podNL)
	open(&s.other, &s.otherNL)
	open(&s.outer, &s.outerNL)
	s.conn = nft.New(s.node.FD())
	join := func(name string, onNode []netip.Prefix, to *link.Handle, there []netip.Prefix, gateway4, gateway6 string) {
		if err := link.Wire(s.nodeNL, link.End{Name: name, Addresses: onNode}, to, link.End{Name: "eth0", Addresses: there}); err != nil {
			t.Fatal(err)
		}
		d, _, err := to.Device("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for dst, gateway := range map[string]string{"0.0.0.0/0": gateway4, "::/0": gateway6} {
			if err := to.SetRoute(link.Route{Dst: netip.MustParsePrefix(dst), Link: d.Index, Gateway: netip.MustParseAddr(gateway)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	join("flpod", prefixes("10.244.1.1/29", "fd00:1::1/80"), s.podNL, prefixes("10.244.1.2/29", "fd00:1::2/80"), "10.244.1.1", "fd00:1::1")
	join("flother", prefixes("10.244.1.9/29", "fd00:1:0:0:1::1/80"), s.otherNL, prefixes("10.244.1.10/29", "fd00:1:0:0:1::2/80"), "10.244.1.9", "fd00:1:0:0:1::1")
	join("eth0", prefixes("192.0.2.1/24", "2001:db8::1/64"), s.outerNL, prefixes("192.0.2.9/24", "2001:db8::9/64", "10.244.2.9/24", "fd00:2::9/64"), "192.0.2.1", "2001:db8::1")
	for _, name := range [][]string{{"ipv4", "ip_forward"}, {"ipv6", "conf", "all", "forwarding"}} {
		if _, err := s.nodeNL.SetSysctl("1", name...); err != nil {
			t.Fatal(err)
		}
	}
	d, _, err := s.nodeNL.Device("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, dst := range []string{"10.244.2.0/24", "fd00:2::/64"} { // pods of another node, directly routed
		if err := s.nodeNL.SetRoute(link.Route{Dst: netip.MustParsePrefix(dst), Link: d.Index}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// source returns the address that a server in one namespace sees when a client in another connects.
func (s *site) source(from, to *sandbox.Namespace, addr string) string {
	s.t.Helper()
	l := to.Listen(s.t, "tcp", net.JoinHostPort(addr, "0"))
	defer l.Close()
	type peer struct {
		addr string
		err  error
	}
	seen := make(chan peer, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			seen <- peer{err: err}
			return
		}
		defer conn.Close()
		seen <- peer{addr: conn.RemoteAddr().(*net.TCPAddr).IP.String()}
	}()
	from.Do(s.t, func() error {
		conn, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
	p := <-seen
	if p.err != nil {
		s.t.Fatal(p.err)
	}
	return p.addr
}

var testConfig = Config{Overlay: "fairlead0", PodDevices: "fl*", Own: prefixes("10.244.1.0/24", "fd00:1::/64"), Log: slog.New(slog.DiscardHandler)}

func TestOnlyPodsToOutsideAreMasqueraded(t *testing.T) {
	s := newSite(t)
	m := New(testConfig, s.conn)
	m.Change(prefixes("10.244.1.0/24", "10.244.2.0/24", "fd00:1::/64", "fd00:2::/64"), nil, true)
	if err := m.Setup(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what     string
		from, to *sandbox.Namespace
		addr     string
		want     string
	}{
		{"pod to outside", s.pod, s.outer, "192.0.2.9", "192.0.2.1"},
		{"pod to outside", s.pod, s.outer, "2001:db8::9", "2001:db8::1"},
		{"pod to pod of another node", s.pod, s.outer, "10.244.2.9", "10.244.1.2"},
		{"pod to pod of another node", s.pod, s.outer, "fd00:2::9", "fd00:1::2"},
		{"pod to pod", s.pod, s.other, "10.244.1.10", "10.244.1.2"},
		{"pod to pod", s.pod, s.other, "fd00:1:0:0:1::2", "fd00:1::2"},
		{"pod to own node", s.pod, s.node, "192.0.2.1", "10.244.1.2"},
		{"pod to own node", s.pod, s.node, "2001:db8::1", "fd00:1::2"},
		{"node to outside", s.node, s.outer, "192.0.2.9", "192.0.2.1"},
		{"node to pod", s.node, s.pod, "10.244.1.2", "10.244.1.1"},
		{"outside to pod", s.outer, s.pod, "10.244.1.2", "192.0.2.9"},
		{"outside to pod", s.outer, s.pod, "fd00:1::2", "fd00:2::9"}, // the nearest of its addresses
	} {
		if got := s.source(c.from, c.to, c.addr); got != c.want {
			t.Errorf("%s, %s: source %s, want %s", c.what, c.addr, got, c.want)
		}
	}
}

// What leaves by the overlay keeps its source, wherever it goes.
func TestOverlayIsNotMasqueraded(t *testing.T) {
	s := newSite(t)
	cfg := testConfig
	cfg.Overlay = "eth0"
	if err := New(cfg, s.conn).Setup(); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{"192.0.2.9": "10.244.1.2", "2001:db8::9": "fd00:1::2"} {
		if got := s.source(s.pod, s.outer, to); got != want {
			t.Errorf("to %s: source %s, want %s", to, got, want)
		}
	}
}

// A new agent that does not know the other nodes yet leaves their CIDRs in force.
func TestRestartKeepsPodCIDRsUntilSynced(t *testing.T) {
	s := newSite(t)
	old := New(testConfig, s.conn)
	old.Change(prefixes("10.244.1.0/24", "10.244.2.0/24"), nil, true)
	if err := old.Setup(); err != nil {
		t.Fatal(err)
	}
	m := New(testConfig, s.conn)
	if err := m.Setup(); err != nil {
		t.Fatal(err)
	}
	if got := s.source(s.pod, s.outer, "10.244.2.9"); got != "10.244.1.2" {
		t.Errorf("before the gate: source %s, want the pod's own", got)
	}
	m.Change(prefixes("10.244.1.0/24"), nil, true)
	if err := m.Setup(); err != nil {
		t.Fatal(err)
	}
	if got := s.source(s.pod, s.outer, "10.244.2.9"); got != "192.0.2.1" {
		t.Errorf("after the node is gone: source %s, want the node's", got)
	}
	if err := Remove(s.conn); err != nil {
		t.Fatal(err)
	}
	if got := s.source(s.pod, s.outer, "192.0.2.9"); got != "10.244.1.2" {
		t.Errorf("after Remove: source %s, want the pod's own", got)
	}
}

func TestRunWritesChangesAndRepairs(t *testing.T) {
	ns := sandbox.NewNamespace(t)
	conn := nft.New(ns.FD())
	m := New(testConfig, conn)
	if err := m.Setup(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	until := func(want ...string) {
		t.Helper()
		slices.Sort(want)
		var got []string
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			got = nil
			for _, s := range []nft.Set{pods4, pods6} {
				list, _, err := conn.Elements(Table, s)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range list {
					got = append(got, p.String())
				}
			}
			slices.Sort(got)
			if slices.Equal(got, want) {
				return
			}
		}
		t.Fatalf("pod CIDRs %v, want %v", got, want)
	}
	m.Change(prefixes("10.244.1.0/24"), nil, false)
	m.Change(prefixes("10.244.2.0/24", "fd00:2::/64"), nil, true)
	until("10.244.1.0/24", "10.244.2.0/24", "fd00:2::/64")
	m.Change(prefixes("10.244.3.0/24"), prefixes("10.244.2.0/24"), true)
	until("10.244.1.0/24", "10.244.3.0/24", "fd00:2::/64")

	// Somebody emptied the set: the next change does not fit, and all is put right.
	if err := conn.Update(Table, pods4, nil, prefixes("10.244.1.0/24", "10.244.3.0/24")); err != nil {
		t.Fatal(err)
	}
	m.Change(nil, prefixes("10.244.3.0/24"), true)
	until("10.244.1.0/24", "fd00:2::/64")
	m.SetOwn(prefixes("10.244.7.0/24"))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		list, _, err := conn.Elements(Table, own4)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("own pod CIDRs %v, %v", list, err)
		}
		if slices.Equal(list, prefixes("10.244.7.0/24")) {
			break
		}
	}
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Error(err)
	}
	until("10.244.1.0/24", "fd00:2::/64") // stays
}

func TestClusterCIDRReplacesNodes(t *testing.T) {
	ns := sandbox.NewNamespace(t)
	conn := nft.New(ns.FD())
	cfg := testConfig
	cfg.Cluster = prefixes("10.244.0.0/16")
	m := New(cfg, conn)
	m.Change(prefixes("10.244.1.0/24"), nil, true)
	if err := m.Setup(); err != nil {
		t.Fatal(err)
	}
	list, _, err := conn.Elements(Table, pods4)
	if err != nil || !slices.Equal(list, cfg.Cluster) {
		t.Errorf("pod CIDRs %v, %v, want %v", list, err, cfg.Cluster)
	}
	cfg.Cluster = prefixes("10.244.0.0/16", "10.244.3.0/24")
	if err := cfg.Check(); err == nil || err.Error() != "--cluster-cidr 10.244.3.0/24: overlaps 10.244.0.0/16" {
		t.Errorf("error %v", err)
	}
}
