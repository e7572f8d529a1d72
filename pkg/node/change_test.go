// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/link"
)

// pair returns two wired hosts of which the first is node a and runs.
func pair(t *testing.T, cfg Config) (a, b *host) {
	t.Helper()
	cfg.Name = "a"
	a, b = newHost(t, cfg), newHost(t, Config{Name: "b"})
	wire(t, 1500, a, []string{"192.0.2.1/24", "2001:db8::1/64"}, b, []string{"192.0.2.2/24", "2001:db8::2/64"})
	a.start(nodeOf("a", "10.244.1.0/24 fd00:1::/64", "192.0.2.1 2001:db8::1"))
	return a, b
}

func (h *host) untilEqual(what string, want []string, got func() []string) {
	h.t.Helper()
	h.until(what, func() bool { return slices.Equal(want, got()) })
}

const fence4, fence6 = "10.244.1.0/24 unreachable", "fd00:1::/64 unreachable"

func overlay4(dst, mtu string) string {
	return dst + " via 169.254.1.1 dev fairlead0 src 10.244.1.0 mtu " + mtu
}

func overlay6(dst, mtu string) string {
	return dst + " via fe80::1 dev fairlead0 src fd00:1:: mtu " + mtu
}

func TestPeersFollowNodes(t *testing.T) {
	a, _ := pair(t, Config{})
	// Nothing before the gate.
	before := nodeOf("b", "10.244.2.0/24 fd00:2::/64", "192.0.2.2 2001:db8::2")
	a.node.Apply(cluster.Batch{Changes: []cluster.Change{{Kind: cluster.NodeKind, Key: cluster.Key{Name: "b"}, Value: before}}})
	select {
	case <-a.node.Synced():
		t.Fatal("synced before the gate")
	default:
	}
	if got := a.peers(); len(got) != 0 {
		t.Errorf("peers before the gate: %v", got)
	}
	a.apply(nil)
	<-a.node.Synced()
	want := []string{"192.0.2.2 [10.244.2.0/24 fd00:2::/64] sources [2001:db8::2] mtu 0 flags 0"}
	if diff := cmp.Diff(want, a.peers()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{fence4, overlay4("10.244.2.0/24", "1450"), fence6, overlay6("fd00:2::/64", "1450")}, a.routes()); diff != "" {
		t.Error(diff)
	}

	// Another address, and a smaller MTU.
	n := nodeOf("b", "10.244.2.0/24 fd00:2::/64", "192.0.2.22")
	n.MTU = 1400
	a.apply(map[string]*cluster.Node{"b": n})
	a.untilEqual("new address", []string{"192.0.2.22 [10.244.2.0/24 fd00:2::/64] sources [] mtu 1400 flags 0"}, a.peers)
	a.untilEqual("MTU of routes", []string{fence4, overlay4("10.244.2.0/24", "1400"), fence6, overlay6("fd00:2::/64", "1400")}, a.routes)

	// Another CIDR.
	a.apply(map[string]*cluster.Node{"b": nodeOf("b", "10.244.3.0/24", "192.0.2.22")})
	a.untilEqual("new CIDR", []string{"192.0.2.22 [10.244.3.0/24] sources [] mtu 0 flags 0"}, a.peers)
	a.untilEqual("routes of the new CIDR", []string{fence4, overlay4("10.244.3.0/24", "1450"), fence6}, a.routes)

	// A node without CIDR is no peer and no error.
	a.apply(map[string]*cluster.Node{"b": nodeOf("b", "", "192.0.2.22")})
	a.untilEqual("no CIDR", []string{}, a.peers)
	a.untilEqual("no route", []string{fence4, fence6}, a.routes)
	if s := a.node.Status(); len(s.Conditions) != 0 || s.Peers != 0 {
		t.Errorf("status %+v", s)
	}
}

// A CIDR goes from a deleted node to a new one, in either order of the two messages; the new one has it, whatever the old one's end does.
func TestPodCIDRIsReused(t *testing.T) {
	for _, together := range []bool{true, false} {
		a, _ := pair(t, Config{})
		a.apply(map[string]*cluster.Node{"old": aged(nodeOf("old", "10.244.2.0/24", "192.0.2.2"), 1)})
		<-a.node.Synced()
		fresh := aged(nodeOf("fresh", "10.244.2.0/24", "192.0.2.3"), 2)
		want := []string{"192.0.2.3 [10.244.2.0/24] sources [] mtu 0 flags 0"}
		if together {
			a.apply(map[string]*cluster.Node{"old": nil, "fresh": fresh})
		} else {
			a.apply(map[string]*cluster.Node{"fresh": fresh})
			a.until("condition", func() bool { return len(a.node.Status().Conditions) == 1 })
			err := a.node.Status().Conditions["fresh"]
			if want := "node fresh: spec.podCIDRs: 10.244.2.0/24: overlaps 10.244.2.0/24 of node old, which keeps it"; err == nil || err.Error() != want {
				t.Errorf("condition %v, want %s", err, want)
			}
			a.untilEqual("old keeps it", []string{"192.0.2.2 [10.244.2.0/24] sources [] mtu 0 flags 0"}, a.peers)
			a.apply(map[string]*cluster.Node{"old": nil})
		}
		a.untilEqual("fresh has it", want, a.peers)
		a.untilEqual("the route stayed", []string{fence4, overlay4("10.244.2.0/24", "1450"), fence6}, a.routes)
		a.until("no condition", func() bool { return len(a.node.Status().Conditions) == 0 })
		ids, err := a.objects.IDs().List(bpf.IDPeer)
		if err != nil || len(ids) != 1 {
			t.Errorf("ids %v, %v, want that of fresh alone", ids, err)
		}
	}
}

func TestNodesThatCannotBeServed(t *testing.T) {
	a, _ := pair(t, Config{})
	a.apply(map[string]*cluster.Node{
		"good":   nodeOf("good", "10.244.2.0/24", "192.0.2.2"),
		"mine":   nodeOf("mine", "10.244.1.128/25 fd00:9::/64", "192.0.2.9"),
		"inside": nodeOf("inside", "192.0.2.0/28", "192.0.2.10"),
		"around": nodeOf("around", "198.51.100.0/24", "198.51.100.7"),
		"twin":   nodeOf("twin", "10.244.4.0/24", "192.0.2.1"),
		"no-v4":  nodeOf("no-v4", "10.244.5.0/24", "2001:db8::5"),
	})
	<-a.node.Synced()
	got := map[string]string{}
	for name, err := range a.node.Status().Conditions {
		got[name] = err.Error()
	}
	want := map[string]string{
		"mine":   "node mine: spec.podCIDRs: 10.244.1.128/25: overlaps 10.244.1.0/24 of node a, which keeps it",
		"inside": "node inside: spec.podCIDRs: 192.0.2.0/28: contains the node address 192.0.2.1",
		"around": "node around: spec.podCIDRs: 198.51.100.0/24: contains the node address 198.51.100.7",
		"twin":   "node twin: status.addresses: InternalIP 192.0.2.1: is this node's own (a)",
		"no-v4":  "node no-v4: status.addresses: no IPv4 InternalIP, and nodes talk over IPv4",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"192.0.2.2 [10.244.2.0/24] sources [] mtu 0 flags 0",
		"192.0.2.9 [fd00:9::/64] sources [] mtu 0 flags 0", // what nobody else has
	}, a.peers()); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}

	// Each is served once it is put right, and conditions of deleted nodes go.
	a.apply(map[string]*cluster.Node{
		"mine": nil, "inside": nil, "twin": nodeOf("twin", "10.244.4.0/24", "192.0.2.4"), "around": nil,
		"no-v4": nodeOf("no-v4", "10.244.5.0/24", "2001:db8::5 192.0.2.5"),
	})
	a.untilEqual("put right", []string{
		"192.0.2.2 [10.244.2.0/24] sources [] mtu 0 flags 0",
		"192.0.2.4 [10.244.4.0/24] sources [] mtu 0 flags 0",
		"192.0.2.5 [10.244.5.0/24] sources [2001:db8::5] mtu 0 flags 0",
	}, a.peers)
	if s := a.node.Status(); len(s.Conditions) != 0 || s.Peers != 3 {
		t.Errorf("status %+v", s)
	}
}

// When a machine is replaced under the same address its old Node object lingers: packets from the address are the younger one's.
func TestAddressBelongsToTheYoungerNode(t *testing.T) {
	a, _ := pair(t, Config{})
	peerOf := func(cidr string) (p bpf.Peer) {
		all, err := a.objects.Peers().List()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			if slices.Contains(p.CIDRs, netip.MustParsePrefix(cidr)) {
				return p
			}
		}
		return bpf.Peer{}
	}
	shared := netip.MustParseAddr("2001:db8::7")
	a.apply(map[string]*cluster.Node{
		"young": aged(nodeOf("young", "10.244.3.0/24", "192.0.2.2 2001:db8::7"), 200),
		"old":   aged(nodeOf("old", "10.244.2.0/24", "192.0.2.2 2001:db8::7"), 100),
	})
	<-a.node.Synced()
	for _, change := range []func(){
		func() {},
		func() {
			a.apply(map[string]*cluster.Node{"old": aged(nodeOf("old", "10.244.4.0/24", "192.0.2.2 2001:db8::7"), 100)})
			a.until("old has its new CIDR", func() bool { return peerOf("10.244.4.0/24").ID != 0 })
		},
	} {
		change()
		a.until("the shared address is the younger's", func() bool { return slices.Contains(peerOf("10.244.3.0/24").Sources, shared) })
	}
	a.apply(map[string]*cluster.Node{"young": nil})
	a.until("the older has it back", func() bool { return slices.Contains(peerOf("10.244.4.0/24").Sources, shared) })
}

func TestRestartAdoptsAndPrunes(t *testing.T) {
	a, _ := pair(t, Config{})
	nodes := map[string]*cluster.Node{
		"b": nodeOf("b", "10.244.2.0/24", "192.0.2.2"),
		"c": nodeOf("c", "10.244.3.0/24", "192.0.2.3"),
		// Of equal age and with one CIDR: who has it keeps it, although the other's UID comes first.
		"z": nodeOf("z", "10.244.4.0/24", "192.0.2.4"),
	}
	a.apply(nodes)
	<-a.node.Synced()
	a.apply(map[string]*cluster.Node{"y": nodeOf("y", "10.244.4.0/24", "192.0.2.5")})
	a.until("y has to wait", func() bool { return a.node.Status().Conditions["y"] != nil })
	peers, routes := a.peers(), a.routes()
	all, err := a.objects.Peers().List()
	if err != nil {
		t.Fatal(err)
	}
	a.stop()

	// What a predecessor forgot, what belongs to a pod, and what is somebody else's.
	d, _, err := a.nl.Device("eth0")
	if err != nil {
		t.Fatal(err)
	}
	leftover := link.Route{Dst: netip.MustParsePrefix("10.244.99.0/24"), Link: a.self.OverlayIndex, Gateway: nextHop4, OnLink: true}
	oldFence := link.Route{Dst: netip.MustParsePrefix("10.244.98.0/24"), Unreachable: true}
	pod := link.Route{Dst: netip.MustParsePrefix("10.244.1.2/32"), Link: d.Index}
	for _, r := range []link.Route{leftover, oldFence, pod} {
		if err := a.nl.SetRoute(r); err != nil {
			t.Fatal(err)
		}
	}

	a.start(nodeOf("a", "10.244.1.0/24 fd00:1::/64", "192.0.2.1 2001:db8::1"))
	if diff := cmp.Diff(peers, a.peers()); diff != "" {
		t.Errorf("peers before the gate (-want +got):\n%s", diff)
	}
	if got := a.routes(); !slices.ContainsFunc(got, func(r string) bool { return strings.HasPrefix(r, "10.244.99.0/24") }) {
		t.Errorf("leftover went before the gate: %v", got)
	}
	delete(nodes, "c")
	nodes["y"] = nodeOf("y", "10.244.4.0/24", "192.0.2.5")
	a.apply(nodes)
	<-a.node.Synced()
	if diff := cmp.Diff(slices.DeleteFunc(peers, func(p string) bool { return strings.HasPrefix(p, "192.0.2.3 ") }), a.peers()); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
	want := append(slices.DeleteFunc(routes, func(r string) bool { return strings.HasPrefix(r, "10.244.3.0/24") }),
		"10.244.1.2/32 via invalid IP dev eth0 src invalid IP mtu 0")
	slices.Sort(want)
	if diff := cmp.Diff(want, a.routes()); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	kept, err := a.objects.Peers().List()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range kept {
		if !slices.ContainsFunc(all, func(o bpf.Peer) bool { return o.ID == p.ID && o.Incarnation == p.Incarnation && o.Node == p.Node }) {
			t.Errorf("peer %+v has another id than before", p)
		}
	}
	if ids, err := a.objects.IDs().List(bpf.IDPeer); err != nil || len(ids) != 2 {
		t.Errorf("ids %v, %v, want those of b and z", ids, err)
	}

	// And away with everything that is this package's.
	a.stop()
	if err := Remove(a.nl); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.244.1.2/32 via invalid IP dev eth0 src invalid IP mtu 0"}, a.routes()); diff != "" {
		t.Errorf("after Remove (-want +got):\n%s", diff)
	}
	if _, ok, err := a.nl.Device(Device); ok || err != nil {
		t.Errorf("device is still there: %t, %v", ok, err)
	}
}

func TestDriftIsRepaired(t *testing.T) {
	a, _ := pair(t, Config{})
	a.apply(map[string]*cluster.Node{"b": nodeOf("b", "10.244.2.0/24 fd00:2::/64", "192.0.2.2")})
	<-a.node.Synced()
	want := a.routes()
	device := func() link.Device {
		d, _, err := a.nl.Device(Device)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := device()
	addrs := func() []string {
		on, err := a.nl.Addresses(device().Index)
		if err != nil {
			t.Fatal(err)
		}
		list := []string{}
		for _, x := range on {
			list = append(list, x.Prefix.String())
		}
		return list
	}
	wantAddrs := addrs()
	intact := func() bool {
		d := device()
		d.Index = first.Index
		return cmp.Equal(first, d) && slices.Equal(want, a.routes()) && slices.Equal(wantAddrs, addrs())
	}
	routes, err := a.nl.Routes()
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []struct {
		what string
		do   func() error
	}{
		{"routes deleted", func() error {
			var errs []error
			for _, r := range routes {
				errs = append(errs, a.nl.DeleteRoute(r))
			}
			return errors.Join(errs...)
		}},
		{"foreign route with our mark", func() error {
			return a.nl.SetRoute(link.Route{Dst: netip.MustParsePrefix("10.244.77.0/24"), Link: first.Index, Gateway: nextHop4, OnLink: true})
		}},
		{"addresses deleted", func() error { return a.nl.SetAddresses(first.Index, nil) }},
		{"foreign address", func() error { return a.nl.AddAddress(Device, netip.MustParsePrefix("203.0.113.1/24")) }},
		{"MTU", func() error { return a.nl.SetMTU(Device, 1280) }},
		{"down", func() error { return a.nl.SetUp(Device, false) }},
		{"down and up", func() error { return errors.Join(a.nl.SetUp(Device, false), a.nl.SetUp(Device, true)) }},
	} {
		if err := damage.do(); err != nil {
			t.Fatal(err)
		}
		if damage.what == "foreign route with our mark" { // the kernel's message of a new route is not asked for; a deleted one is seen
			if err := a.nl.DeleteRoute(routes[0]); err != nil {
				t.Fatal(err)
			}
		}
		a.until(damage.what, intact)
	}
	if len(a.changed) != 0 {
		t.Errorf("own node changed: %+v", <-a.changed)
	}
	if s := a.node.Status(); s.Repaired == 0 {
		t.Error("no repair was counted")
	}

	// A device that is made anew has another index: whoever loaded programs has to know.
	if err := a.nl.DeleteDevice(Device); err != nil {
		t.Fatal(err)
	}
	s := <-a.changed
	if s.OverlayIndex == first.Index || s.OverlayIndex != device().Index {
		t.Errorf("told of device %d, it is %d and was %d", s.OverlayIndex, device().Index, first.Index)
	}
	a.until("device deleted", intact)
}

func TestUplinkAndOwnNodeChanges(t *testing.T) {
	a, _ := pair(t, Config{})
	a.apply(map[string]*cluster.Node{"b": nodeOf("b", "10.244.2.0/24", "192.0.2.2")})
	<-a.node.Synced()
	if err := a.nl.SetMTU("eth0", 1400); err != nil {
		t.Fatal(err)
	}
	if s := <-a.changed; s.MTU != 1350 {
		t.Errorf("MTU %d, want 1350", s.MTU)
	}
	a.untilEqual("MTU of routes", []string{fence4, overlay4("10.244.2.0/24", "1350"), fence6}, a.routes)
	if d, _, err := a.nl.Device(Device); err != nil || d.MTU != 1350 {
		t.Errorf("device %+v, %v", d, err)
	}

	// The uplink gets another address and the kubelet reports it.
	if err := a.nl.AddAddress("eth0", netip.MustParsePrefix("192.0.2.11/24")); err != nil {
		t.Fatal(err)
	}
	own := nodeOf("a", "10.244.1.0/24 fd00:1::/64", "192.0.2.11")
	a.apply(map[string]*cluster.Node{"a": own})
	if s := <-a.changed; s.Node4 != netip.MustParseAddr("192.0.2.11") {
		t.Errorf("own address %s", s.Node4)
	}

	// What cannot be is a condition and changes nothing.
	routes := a.routes()
	a.apply(map[string]*cluster.Node{"a": nodeOf("a", "", "192.0.2.11")})
	a.until("condition", func() bool { return a.node.Status().Conditions["a"] != nil })
	if diff := cmp.Diff(routes, a.routes()); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	a.apply(map[string]*cluster.Node{"a": own})
	a.until("condition gone", func() bool { return a.node.Status().Conditions["a"] == nil })
}

func TestRoutingModes(t *testing.T) {
	nodes := map[string]*cluster.Node{
		"near": nodeOf("near", "10.244.2.0/24 fd00:2::/64", "192.0.2.2 2001:db8::2"),
		"far":  nodeOf("far", "10.244.3.0/24", "198.51.100.3"),
		"half": nodeOf("half", "10.244.4.0/24 fd00:4::/64", "192.0.2.4"), // on the link in one family only
	}
	near4 := func(mtu string) string { return "10.244.2.0/24 via 192.0.2.2 dev eth0 src invalid IP mtu " + mtu }
	near6 := func(mtu string) string { return "fd00:2::/64 via 2001:db8::2 dev eth0 src invalid IP mtu " + mtu }
	for _, c := range []struct {
		mode   Mode
		mtu    int
		flags  map[string]bpf.PeerFlag
		routes []string
	}{
		{Auto, 1450, map[string]bpf.PeerFlag{"192.0.2.2": bpf.PeerDirect, "198.51.100.3": 0, "192.0.2.4": 0}, []string{
			fence4, near4("1450"), overlay4("10.244.3.0/24", "1450"), overlay4("10.244.4.0/24", "1450"), fence6, near6("1450"), overlay6("fd00:4::/64", "1450"),
		}},
		{Direct, 1500, map[string]bpf.PeerFlag{"192.0.2.2": bpf.PeerDirect, "198.51.100.3": bpf.PeerDirect, "192.0.2.4": bpf.PeerDirect}, []string{
			fence4, near4("1500"), "10.244.4.0/24 via 192.0.2.4 dev eth0 src invalid IP mtu 1500", fence6, near6("1500"),
		}},
	} {
		t.Run(c.mode.String(), func(t *testing.T) {
			a, _ := pair(t, Config{Mode: c.mode})
			a.apply(nodes)
			<-a.node.Synced()
			if a.self.MTU != c.mtu || (a.self.OverlayIndex == 0) != (c.mode == Direct) {
				t.Errorf("MTU %d, overlay device %d", a.self.MTU, a.self.OverlayIndex)
			}
			if diff := cmp.Diff(c.routes, a.routes()); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
			all, err := a.objects.Peers().List()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]bpf.PeerFlag{}
			for _, p := range all {
				got[p.Node.String()] = p.Flags
			}
			if diff := cmp.Diff(c.flags, got); diff != "" {
				t.Errorf("flags (-want +got):\n%s", diff)
			}
			if c.mode == Direct {
				return
			}
			// The uplink goes down and up: the kernel drops the direct routes without a word.
			if err := errors.Join(a.nl.SetUp("eth0", false), a.nl.SetUp("eth0", true), a.nl.AddAddress("eth0", netip.MustParsePrefix("2001:db8::1/64"))); err != nil {
				t.Fatal(err)
			}
			a.untilEqual("direct routes are back", c.routes, a.routes)
		})
	}
}

func TestCIDRsAreTold(t *testing.T) {
	a, _ := pair(t, Config{})
	b := nodeOf("b", "10.244.2.0/24", "192.0.2.2")
	a.apply(map[string]*cluster.Node{"b": b, "c": aged(nodeOf("c", "10.244.2.0/23", "192.0.2.3"), 5)})
	<-a.node.Synced()
	a.apply(map[string]*cluster.Node{"b": nil})
	told := map[netip.Prefix]bool{}
	for want := range slices.Values([][]string{{"10.244.1.0/24", "10.244.2.0/24", "fd00:1::/64"}, {"10.244.1.0/24", "10.244.2.0/23", "fd00:1::/64"}}) {
		c := <-a.cidrs
		if !c.Synced {
			t.Errorf("%+v is not synced", c)
		}
		for _, p := range c.Remove {
			if !told[p] {
				t.Errorf("%s was never added", p)
			}
			delete(told, p)
		}
		for _, p := range c.Add {
			told[p] = true
		}
		var got []string
		for p := range maps.Keys(told) {
			got = append(got, p.String())
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("CIDRs in force (-want +got):\n%s", diff)
		}
	}
}

// A large cluster: everything is written, one change touches one node, a restart finds all in place.
func TestManyNodes(t *testing.T) {
	const many = 2000
	a, _ := pair(t, Config{})
	nodes := map[string]*cluster.Node{}
	for i := range many {
		name := fmt.Sprintf("n%d", i)
		nodes[name] = nodeOf(name, fmt.Sprintf("100.%d.%d.0/24 fd01:%x::/64", 64+i>>8, i&255, i), fmt.Sprintf("192.0.%d.%d", 3+i/250, 1+i%250))
	}
	count := func(routes, peers int) {
		t.Helper()
		if got := len(a.routes()); got != routes+2 {
			t.Errorf("%d routes, want %d and two fences", got, routes)
		}
		if got := len(a.peers()); got != peers {
			t.Errorf("%d peers, want %d", got, peers)
		}
	}
	begin := time.Now()
	a.apply(nodes)
	<-a.node.Synced()
	t.Logf("%d nodes with two CIDRs each written in %s", many, time.Since(begin))
	count(2*many, many)

	begin = time.Now()
	a.apply(map[string]*cluster.Node{"n77": nil})
	a.until("n77 is gone", func() bool { return a.node.Status().Peers == many-1 })
	t.Logf("one node removed in %s", time.Since(begin))
	count(2*many-2, many-1)
	a.stop()

	a.start(nodeOf("a", "10.244.1.0/24 fd00:1::/64", "192.0.2.1 2001:db8::1"))
	begin = time.Now()
	a.apply(nodes)
	<-a.node.Synced()
	t.Logf("adopted in %s", time.Since(begin))
	count(2*many, many)
}
