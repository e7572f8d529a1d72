// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
)

// maps gives a pod host ports, as the runtime writes them.
func (p *pod) maps(ports ...map[string]any) *pod {
	p.CapabilityArgs = map[string]any{"portMappings": ports}
	return p
}

// exposes fails unless these are all host ports of the node, and lead to the pod; with no pod, unless there are none.
func (n *node) exposes(p *pod, want ...string) {
	n.t.Helper()
	all, err := n.objects.HostPorts().List()
	if err != nil {
		n.t.Fatal(err)
	}
	var got []string
	for _, h := range all {
		got = append(got, fmt.Sprintf("%s to %d", h.FrontendKey, h.To))
		if e, ok := n.table.get(p.link()); !ok || h.Endpoint != e.ID || h.Incarnation != e.Incarnation {
			n.t.Errorf("host port %+v is not that of %+v", h, e)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		n.t.Error(d)
	}
}

func TestHostPortsOfAPod(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	for name, c := range map[string]struct {
		ports []map[string]any
		want  []string
	}{
		"any address": {[]map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "TCP"}}, []string{"0.0.0.0:8080/tcp to 80", "[::]:8080/tcp to 80"}},
		"families apart": {[]map[string]any{{"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "0.0.0.0"}, {"hostPort": 54, "containerPort": 5353, "protocol": "udp", "hostIP": "::"}},
			[]string{"0.0.0.0:53/udp to 5353", "[::]:54/udp to 5353"}},
		"own addresses": {[]map[string]any{{"hostPort": 80, "containerPort": 80, "hostIP": "192.0.2.1"}, {"hostPort": 80, "containerPort": 81, "hostIP": "2001:db8::1"}, {"hostPort": 80, "containerPort": 82, "protocol": "sctp"}},
			[]string{"192.0.2.1:80/tcp to 80", "[2001:db8::1]:80/tcp to 81", "0.0.0.0:80/sctp to 82", "[::]:80/sctp to 82"}},
		"one address apart from all": {[]map[string]any{{"hostPort": 80, "containerPort": 80, "hostIP": "192.0.2.1"}, {"hostPort": 80, "containerPort": 81, "hostIP": "0.0.0.0"}},
			[]string{"192.0.2.1:80/tcp to 80", "0.0.0.0:80/tcp to 81"}},
		"twice the same": {[]map[string]any{{"hostPort": 80, "containerPort": 80, "hostIP": "0.0.0.0"}, {"hostPort": 80, "containerPort": 80}}, []string{"0.0.0.0:80/tcp to 80", "[::]:80/tcp to 80"}},
		"none":           {[]map[string]any{{"containerPort": 80}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := n.pod().maps(c.ports...)
			first := n.mustAdd(p)
			n.exposes(p, c.want...)
			if err := n.check(p); err != nil {
				t.Error(err)
			}
			if d := cmp.Diff(first, n.mustAdd(p)); d != "" { // again
				t.Error(d)
			}
			n.mustDel(p)
			n.exposes(p)
		})
	}
	p := n.pod().maps(map[string]any{"hostPort": 8080, "containerPort": 80})
	n.mustAdd(p)
	p.maps(map[string]any{"hostPort": 8080, "containerPort": 81})
	_, err := n.add(p)
	want(t, err, 100, "other host ports")
	want(t, n.check(p), 101, "0.0.0.0:8080/tcp to 81")
	n.mustDel(p)
	eventually(t, n.clean)
}

func TestHostPortOfAFamilyThatThePodLacks(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *Config) { c.Pools = c.Pools[:1] })
	p := n.pod().maps(map[string]any{"hostPort": 80, "containerPort": 80}, map[string]any{"hostPort": 81, "containerPort": 80, "hostIP": "::"},
		map[string]any{"hostPort": 82, "containerPort": 80, "hostIP": "2001:db8::1"})
	n.mustAdd(p)
	n.exposes(p, "0.0.0.0:80/tcp to 80")
	if err := n.check(p); err != nil {
		t.Error(err)
	}
	n.mustDel(p)
	eventually(t, n.clean)
}

func TestHostPortIsOnePodsAlone(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	for name, c := range map[string]struct {
		first, second map[string]any
		free          bool
		words         string // of the refusal
	}{
		"the same":          {map[string]any{"hostPort": 80}, map[string]any{"hostPort": 80}, false, "hostPort 80, protocol tcp"},
		"all and one":       {map[string]any{"hostPort": 80}, map[string]any{"hostPort": 80, "hostIP": "192.0.2.1"}, false, "0.0.0.0"},
		"one and all":       {map[string]any{"hostPort": 80, "hostIP": "2001:db8::1"}, map[string]any{"hostPort": 80}, false, "2001:db8::1"},
		"one twice":         {map[string]any{"hostPort": 80, "hostIP": "192.0.2.1"}, map[string]any{"hostPort": 80, "hostIP": "192.0.2.1"}, false, "192.0.2.1"},
		"mapped":            {map[string]any{"hostPort": 80, "hostIP": "192.0.2.1"}, map[string]any{"hostPort": 80, "hostIP": "::ffff:192.0.2.1"}, false, "192.0.2.1"},
		"both and one":      {map[string]any{"hostPort": 80}, map[string]any{"hostPort": 80, "hostIP": "::"}, false, "::"},
		"another protocol":  {map[string]any{"hostPort": 80}, map[string]any{"hostPort": 80, "protocol": "UDP"}, true, ""},
		"another port":      {map[string]any{"hostPort": 80}, map[string]any{"hostPort": 81}, true, ""},
		"another address":   {map[string]any{"hostPort": 80, "hostIP": "192.0.2.1"}, map[string]any{"hostPort": 80, "hostIP": "127.0.0.1"}, true, ""},
		"the other family":  {map[string]any{"hostPort": 80, "hostIP": "0.0.0.0"}, map[string]any{"hostPort": 80, "hostIP": "::"}, true, ""},
		"address in family": {map[string]any{"hostPort": 80, "hostIP": "0.0.0.0"}, map[string]any{"hostPort": 80, "hostIP": "2001:db8::1"}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.first["containerPort"], c.second["containerPort"] = 8000, 8001
			// The second one has a port that is free too: it must not keep it when it is refused.
			a, b := n.pod().maps(c.first), n.pod().maps(map[string]any{"hostPort": 9000, "containerPort": 9000}, c.second)
			n.mustAdd(a)
			before, err := n.objects.HostPorts().List()
			if err != nil {
				t.Fatal(err)
			}
			_, err = n.add(b)
			if c.free {
				if err != nil {
					t.Error(err)
				}
			} else {
				want(t, err, 100, c.words, "pod default/"+a.ContainerID)
				after, err := n.objects.HostPorts().List()
				if d := cmp.Diff(before, after, cmpopts.SortSlices(func(a, b bpf.HostPort) bool { return a.String() < b.String() }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" || err != nil {
					t.Errorf("%v: %s", err, d)
				}
				if v := n.table.Status(); v.Endpoints != 1 || v.Pools[0].Used != 1 || v.Pools[1].Used != 1 {
					t.Errorf("the refused pod left something: %+v", v)
				}
				n.mustDel(a)
				n.mustAdd(b) // it is free now
			}
			for _, p := range []*pod{a, b} {
				if err := n.del(p); err != nil {
					t.Error(err)
				}
			}
			n.exposes(a)
		})
	}
	eventually(t, n.clean)
}

// failingHostPorts fails to enter the second host port.
type failingHostPorts struct {
	HostPorts
	puts int
}

func (f *failingHostPorts) Put(p bpf.HostPort) error {
	if f.puts++; f.puts == 2 {
		return errors.New("map host_ports is full")
	}
	return f.HostPorts.Put(p)
}

func TestFailedHostPortTakesTheAddBack(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *Config) { c.HostPorts = &failingHostPorts{HostPorts: c.HostPorts} })
	p := n.pod().maps(map[string]any{"hostPort": 80, "containerPort": 80})
	_, err := n.add(p)
	want(t, err, uint(cni.CodeUnavailable), "map host_ports is full")
	if err := n.clean(); err != nil {
		t.Error(err)
	}
	n.mustAdd(p)
	n.exposes(p, "0.0.0.0:80/tcp to 80", "[::]:80/tcp to 80")
	n.mustDel(p)
	eventually(t, n.clean)
}

func TestHostPortsComeBack(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.pod().maps(map[string]any{"hostPort": 80, "containerPort": 8000})
	n.mustAdd(p)
	whole := []string{"0.0.0.0:80/tcp to 8000", "[::]:80/tcp to 8000"}
	e, _ := n.table.get(p.link())
	spoil := func() {
		t.Helper()
		any4 := bpf.FrontendKey{Addr: netip.IPv4Unspecified(), Port: 80, Protocol: 6}
		other := bpf.FrontendKey{Addr: netip.IPv6Unspecified(), Port: 80, Protocol: 6}
		foreign := bpf.FrontendKey{Addr: netip.IPv4Unspecified(), Port: 81, Protocol: 6}
		h := n.objects.HostPorts()
		if err := errors.Join(h.Delete(any4), h.Put(bpf.HostPort{FrontendKey: other, Endpoint: e.ID, Incarnation: e.Incarnation + 1, To: 1}),
			h.Put(bpf.HostPort{FrontendKey: foreign, Endpoint: e.ID, Incarnation: e.Incarnation + 1, To: 1})); err != nil {
			t.Fatal(err)
		}
	}
	spoil()
	want(t, n.check(p), 101, "host port", "programs' table")
	n.table.verify(t.Context())
	n.exposes(p, whole...)
	if err := n.check(p); err != nil {
		t.Error(err)
	}
	if v := n.table.Status(); v.Repaired != 2 {
		t.Errorf("repaired %d", v.Repaired)
	}
	spoil()
	n.restart()
	n.exposes(p, whole...)
	if err := n.check(p); err != nil {
		t.Error(err)
	}
	_, err := n.add(n.pod().maps(map[string]any{"hostPort": 80, "containerPort": 80})) // the record knows what it has
	want(t, err, 100, "hostPort 80", p.ContainerID)

	// Without the journal the programs' table says what the pod has.
	n.stop()
	if err := os.RemoveAll(n.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.exposes(p, whole...)
	if err := n.check(p); err != nil {
		t.Error(err)
	}
	_, err = n.add(n.pod().maps(map[string]any{"hostPort": 80, "containerPort": 80}))
	want(t, err, 100, "hostPort 80")

	// A DEL without an agent is made up for.
	n.stop()
	n.mustDel(p)
	n.start()
	n.exposes(p)
	eventually(t, n.clean)
}

// A pod whose link went without DEL gives its host ports back.
func TestGCFreesHostPorts(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.pod().maps(map[string]any{"hostPort": 80, "containerPort": 8000})
	n.mustAdd(p)
	sh(t, p.ns, "ip link del eth0")
	n.table.mu.Lock()
	n.table.endpoints[p.link()].Created -= 2 * youth
	n.table.mu.Unlock()
	if err := n.table.GC(t.Context(), &cni.Request{Verb: cni.GC, Valid: &[]cni.Attachment{}}); err != nil {
		t.Fatal(err)
	}
	n.exposes(p)
	q := n.pod().maps(map[string]any{"hostPort": 80, "containerPort": 8000})
	n.mustAdd(q)
	n.exposes(q, "0.0.0.0:80/tcp to 8000", "[::]:80/tcp to 8000")
	n.mustDel(q)
	eventually(t, n.clean)
}

// beforeHostPorts is an agent of a release that does not know them.
type beforeHostPorts struct{ *Table }

func (b beforeHostPorts) Add(ctx context.Context, req *cni.Request, netns *os.File) (*cni.Result, error) {
	old := *req
	old.HostPorts = nil
	return b.Table.Add(ctx, &old, netns)
}

func TestAgentWithoutHostPortsIsNoticed(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.down()
	in(t, n.ns, func() (err error) {
		n.table, err = Open(n.cfg)
		return err
	})
	l, err := cni.Listen(n.cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- cni.Serve(ctx, l, beforeHostPorts{n.table}, n.cfg.Log) }()
	n.down = func() {
		cancel()
		if err := errors.Join(<-ended, n.table.Close()); err != nil {
			t.Error(err)
		}
	}
	_, err = n.add(n.pod().maps(map[string]any{"hostPort": 80, "containerPort": 80}))
	want(t, err, 11, "portMappings", "older release")
	n.mustAdd(n.pod())
}
