// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

// openAt returns Fairlead's handle in a fresh namespace, and netlink's own for what others do there.
func openAt(t *testing.T) (*link.Handle, *netlink.Handle) {
	t.Helper()
	ns := sandbox.NewNamespace(t)
	h, err := link.OpenAt(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	var nl *netlink.Handle
	ns.Do(t, func() (err error) {
		nl, err = netlink.NewHandle()
		return err
	})
	t.Cleanup(nl.Close)
	return h, nl
}

var overlay = link.Vxlan{Name: "fairlead0", Port: 8472, MTU: 1450, MAC: net.HardwareAddr{2, 1, 2, 3, 4, 5}}

func mustVxlan(t *testing.T, h *link.Handle, v link.Vxlan) (link.Device, bool) {
	t.Helper()
	d, made, err := h.SetVxlan(v)
	if err != nil {
		t.Fatal(err)
	}
	return d, made
}

func TestVxlanIsMadeOnceAndTunedInPlace(t *testing.T) {
	h, nl := openAt(t)
	first, made := mustVxlan(t, h, overlay)
	if !made || !first.Up || !first.NoARP || first.MTU != 1450 || first.MAC.String() != overlay.MAC.String() || first.Type != "vxlan" {
		t.Fatalf("made %t %+v, want a new device that is up, without ARP", made, first)
	}
	addrs, err := h.Addresses(first.Index)
	if err != nil || len(addrs) != 0 {
		t.Errorf("device has addresses %v (%v), want no link-local one", addrs, err)
	}

	if again, made := mustVxlan(t, h, overlay); made || again.Index != first.Index {
		t.Errorf("second time: made %t, index %d, want %d", made, again.Index, first.Index)
	}
	l, err := nl.LinkByName("fairlead0")
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func() error{
		"mtu":  func() error { return nl.LinkSetMTU(l, 1300) },
		"mac":  func() error { return nl.LinkSetHardwareAddr(l, net.HardwareAddr{2, 9, 9, 9, 9, 9}) },
		"arp":  func() error { return nl.LinkSetARPOn(l) },
		"down": func() error { return nl.LinkSetDown(l) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if d, made := mustVxlan(t, h, overlay); made || !cmp.Equal(d, first) {
			t.Errorf("after %s: made %t, %s", what, made, cmp.Diff(first, d))
		}
	}
}

// A device that differs in anything that VXLAN itself knows is made anew; these are the ones that other programs have left behind.
func TestVxlanIsMadeAnewWhenItDiffers(t *testing.T) {
	for name, other := range map[string]func(*netlink.Vxlan){
		"fixed VNI":   func(v *netlink.Vxlan) { v.FlowBased, v.VxlanId = false, 1 },
		"port":        func(v *netlink.Vxlan) { v.Port = 4789 },
		"learning":    func(v *netlink.Vxlan) { v.Learning = true },
		"ageing":      func(v *netlink.Vxlan) { v.Age = 60 },
		"limit":       func(v *netlink.Vxlan) { v.Limit = 10 },
		"ttl":         func(v *netlink.Vxlan) { v.TTL = 3 },
		"local":       func(v *netlink.Vxlan) { v.SrcAddr = net.IPv4(127, 0, 0, 1) },
		"gbp":         func(v *netlink.Vxlan) { v.GBP = true },
		"no checksum": func(v *netlink.Vxlan) { v.UDPCSum = false; v.UDP6ZeroCSumTx = true },
		"zero rx":     func(v *netlink.Vxlan) { v.UDP6ZeroCSumRx = true },
		"source port": func(v *netlink.Vxlan) { v.PortLow, v.PortHigh = 5000, 6000 },
		"proxy":       func(v *netlink.Vxlan) { v.Proxy = true },
	} {
		t.Run(name, func(t *testing.T) {
			h, nl := openAt(t)
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "fairlead0"
			v := &netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: 8472, Age: 300, UDPCSum: true}
			other(v)
			if err := nl.LinkAdd(v); err != nil {
				t.Fatal(err)
			}
			if _, made := mustVxlan(t, h, overlay); !made {
				t.Error("kept a device that differs")
			}
			if _, made := mustVxlan(t, h, overlay); made {
				t.Error("made the device twice")
			}
		})
	}
}

func TestVxlanNamesWhoHasThePortOrTheName(t *testing.T) {
	h, nl := openAt(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "flannel.1"
	if err := nl.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472}); err != nil {
		t.Fatal(err)
	}
	_, _, err := h.SetVxlan(overlay)
	want := "set up VXLAN device fairlead0: UDP port 8472: port is taken by VXLAN device flannel.1: delete it (ip link delete flannel.1) or choose another port"
	if !errors.Is(err, link.ErrPortTaken) || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if _, ok, _ := h.Device("fairlead0"); ok {
		t.Error("device was made in spite of the error")
	}
	if err := h.DeleteDevice("flannel.1"); err != nil {
		t.Fatal(err)
	}

	// A user's process on the port shows only when the device goes up.
	var socket *net.UDPConn
	if err := h.Do(func() (err error) {
		socket, err = net.ListenUDP("udp", &net.UDPAddr{Port: 8472})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, _, err = h.SetVxlan(overlay); !errors.Is(err, link.ErrPortTaken) {
		t.Errorf("error %v, want %v", err, link.ErrPortTaken)
	}
	if _, ok, _ := h.Device("fairlead0"); ok {
		t.Error("half-made device stayed")
	}
	if err := socket.Close(); err != nil {
		t.Fatal(err)
	}
	mustVxlan(t, h, overlay)
	if err := h.DeleteDevice("fairlead0"); err != nil {
		t.Fatal(err)
	}

	attrs.Name = "fairlead0"
	if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	if _, _, err = h.SetVxlan(overlay); err == nil {
		t.Error("a bridge of the name was taken over")
	}
	if d, ok, err := h.Device("fairlead0"); err != nil || !ok || d.Type != "bridge" {
		t.Errorf("foreign bridge is %+v, %t, %v", d, ok, err)
	}
}

func addrs(s ...string) (all []netip.Addr) {
	for _, a := range s {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func TestAddressesAreExact(t *testing.T) {
	h, nl := openAt(t)
	d, _ := mustVxlan(t, h, overlay)
	for _, want := range [][]netip.Addr{addrs("10.244.1.0", "fd00:1::"), addrs("10.244.1.0"), addrs("10.244.9.0", "fd00:9::"), nil} {
		for range 2 {
			if err := h.SetAddresses(d.Index, want); err != nil {
				t.Fatal(err)
			}
		}
		got, err := h.Addresses(d.Index)
		if err != nil {
			t.Fatal(err)
		}
		var have []netip.Addr
		for _, a := range got {
			if !a.Prefix.IsSingleIP() {
				t.Errorf("%s is no single address", a.Prefix)
			}
			have = append(have, a.Prefix.Addr())
		}
		if !cmp.Equal(have, want, cmpopts.EquateComparable(netip.Addr{})) {
			t.Errorf("addresses %v, want %v", have, want)
		}
		routes, err := nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: d.Index}, netlink.RT_FILTER_OIF)
		if err != nil || len(routes) != 0 {
			t.Errorf("addresses brought routes %v (%v)", routes, err)
		}
	}
}

func TestRoutesAreKnownByTheirOwner(t *testing.T) {
	h, nl := openAt(t)
	d, _ := mustVxlan(t, h, overlay)
	if err := h.SetAddresses(d.Index, addrs("10.244.1.0", "fd00:1::")); err != nil {
		t.Fatal(err)
	}
	want := []link.Route{
		{Dst: netip.MustParsePrefix("10.244.1.0/24"), Unreachable: true},
		{Dst: netip.MustParsePrefix("fd00:1::/64"), Unreachable: true},
		{Dst: netip.MustParsePrefix("10.244.2.0/24"), Link: d.Index, Gateway: netip.MustParseAddr("169.254.1.1"), OnLink: true, Src: netip.MustParseAddr("10.244.1.0"), MTU: 1400},
		{Dst: netip.MustParsePrefix("fd00:2::/64"), Link: d.Index, Gateway: netip.MustParseAddr("fe80::1"), OnLink: true, Src: netip.MustParseAddr("fd00:1::"), MTU: 1400},
		{Dst: netip.MustParsePrefix("10.244.3.0/24"), Link: d.Index},
		{Dst: netip.MustParsePrefix("fd00:3::/64"), Link: d.Index},
	}
	check := func() {
		t.Helper()
		got, err := h.Routes()
		if err != nil {
			t.Fatal(err)
		}
		order := func(a, b link.Route) int { return a.Dst.Compare(b.Dst) }
		slices.SortFunc(got, order)
		slices.SortFunc(want, order)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
	}
	for range 2 {
		for _, r := range want {
			if err := h.SetRoute(r); err != nil {
				t.Fatal(err)
			}
		}
		check()
	}

	// Replaced in place, from one sort to another and back.
	for i := range want {
		if want[i].MTU != 0 {
			want[i].MTU = 1300
		} else {
			want[i] = link.Route{Dst: want[i].Dst, Unreachable: !want[i].Unreachable, Link: want[i].Link}
			if !want[i].Unreachable {
				want[i].Link = d.Index
			} else {
				want[i].Link = 0
			}
		}
		if err := h.SetRoute(want[i]); err != nil {
			t.Fatal(err)
		}
	}
	check()

	// A route of another owner is neither listed, replaced nor deleted.
	for _, dst := range []string{"10.9.0.0/16", "fd09::/48"} {
		p := netip.MustParsePrefix(dst)
		foreign := &netlink.Route{LinkIndex: d.Index, Protocol: unix.RTPROT_STATIC, Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if err := nl.RouteAdd(foreign); err != nil {
			t.Fatal(err)
		}
		if err := h.SetRoute(link.Route{Dst: p, Unreachable: true}); !errors.Is(err, link.ErrForeignRoute) {
			t.Errorf("error %v, want %v", err, link.ErrForeignRoute)
		}
		if err := h.DeleteRoute(link.Route{Dst: p, Link: d.Index}); err != nil {
			t.Errorf("delete where only a foreign route is: %v", err)
		}
		if there, err := nl.RouteListFiltered(netlink.FAMILY_ALL, foreign, netlink.RT_FILTER_DST); err != nil || len(there) != 1 {
			t.Errorf("foreign routes to %s: %v, %v", dst, there, err)
		}
	}
	check()
	for _, r := range want {
		for range 2 {
			if err := h.DeleteRoute(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	want = nil
	check()
}

func TestSysctlOfTheHandlesNamespace(t *testing.T) {
	h, _ := openAt(t)
	before, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	for value := range 2 {
		v := string(rune('0' + value))
		if _, err := h.SetSysctl(v, "ipv4", "ip_forward"); err != nil {
			t.Fatal(err)
		}
		if got, err := h.Sysctl("ipv4", "ip_forward"); err != nil || got != v {
			t.Errorf("read %q, %v, want %s", got, err, v)
		}
	}
	if after, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || string(after) != string(before) {
		t.Errorf("own namespace changed from %q to %q (%v)", before, after, err)
	}
	if _, err := h.Sysctl("ipv4", "no_such"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want %v", err, os.ErrNotExist)
	}
}

func TestWatchSeesDevicesAddressesAndOwnRoutes(t *testing.T) {
	h, nl := openAt(t)
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan link.Event, 1024)
	begins := make(chan link.Event, 1024)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.Watch(ctx, func(e link.Event, index int) {
			if index == 0 {
				begins <- e
			} else {
				events <- e
			}
		})
	}()
	defer func() {
		cancel()
		<-ended
	}()
	first, second := <-begins, <-begins
	if first|second != link.LinkEvent|link.AddressEvent {
		t.Fatalf("the watch begins with events %d and %d, want one about links and one about addresses", first, second)
	}
	// expect does something until its message comes: that to routes may not be up at the first time.
	expect := func(want link.Event, do func()) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			do()
			settled := time.After(100 * time.Millisecond)
			for more := true; more; {
				select {
				case e := <-events:
					if e&want != 0 {
						return
					}
				case <-settled:
					more = false
				case <-deadline:
					t.Fatalf("no event %d", want)
				}
			}
		}
	}
	var d link.Device
	expect(link.LinkEvent, func() {
		if err := h.DeleteDevice("fairlead0"); err != nil {
			t.Fatal(err)
		}
		d, _ = mustVxlan(t, h, overlay)
	})
	expect(link.AddressEvent, func() {
		if err := errors.Join(h.SetAddresses(d.Index, nil), h.SetAddresses(d.Index, addrs("10.244.1.0"))); err != nil {
			t.Fatal(err)
		}
	})
	r := link.Route{Dst: netip.MustParsePrefix("10.244.2.0/24"), Link: d.Index}
	expect(link.RouteEvent, func() {
		if err := errors.Join(h.SetRoute(r), h.DeleteRoute(r)); err != nil {
			t.Fatal(err)
		}
	})

	// A pod's route and somebody else's are no news; the own one behind them is the next message.
	pod := link.Route{Dst: netip.MustParsePrefix("10.244.1.2/32"), Link: d.Index}
	foreign := &netlink.Route{LinkIndex: d.Index, Protocol: unix.RTPROT_STATIC, Dst: &net.IPNet{IP: net.IPv4(10, 8, 0, 0), Mask: net.CIDRMask(16, 32)}}
	if err := errors.Join(h.SetRoute(pod), h.DeleteRoute(pod), nl.RouteAdd(foreign), nl.RouteDel(foreign), h.SetRoute(r), h.DeleteRoute(r)); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for quiet := time.After(time.Second); ; {
		select {
		case e := <-events:
			if e == link.RouteEvent {
				seen++
			}
			continue
		case <-quiet:
		}
		break
	}
	if seen != 1 {
		t.Errorf("%d route events, want 1", seen)
	}
}
