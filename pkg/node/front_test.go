// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cni"
	"github.com/fairlead/fairlead/pkg/link"
)

// face is a Front in the namespace of a host, with the real tables and programs.
type face struct {
	*Front
	h       *host
	objects *bpf.Objects
}

// Attach, Detach and Attached do in the host's namespace what an agent does in its own.
func (f *face) Attach(ifindex int) (err error) {
	f.h.ns.Do(f.h.t, func() error { err = f.objects.AttachNet(ifindex); return nil })
	return err
}

func (f *face) Detach(ifindex int) error { return f.objects.DetachNet(ifindex) }

func (f *face) Attached() (all map[int]bool, err error) {
	f.h.ns.Do(f.h.t, func() error { all, err = f.objects.NetLinks(); return nil })
	return all, err
}

// face opens the tables and makes a Front of the host, which has an uplink eth0.
func (h *host) face(words ...string) *face {
	h.t.Helper()
	f := &face{h: h}
	var err error
	f.objects, err = bpf.Open(bpf.Options{Dir: h.dir, Log: slog.New(slog.DiscardHandler), Capacity: map[string]uint32{
		"backends": 4096, "slots": 4096, "services": 1024, "frontends": 1024, "affinities": 1024, "cluster_ips": 1024, "ids": 8192,
		"flow_slots": 4096, "node_addresses": 8,
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := f.objects.Close(); err != nil {
			h.t.Error(err)
		}
	})
	ports, err := ParseNodePorts(words)
	if err != nil {
		h.t.Fatal(err)
	}
	uplink := h.device("eth0")
	self := Self{Node4: netip.MustParseAddr("192.0.2.1"), Node6: netip.MustParseAddr("2001:db8::1"), Underlay: uplink}
	f.Front = NewFront(FrontConfig{
		NodePorts: ports, Pod: cni.IsLinkName, Self: func() Self { return self },
		Log: slog.New(slog.NewTextHandler(testLog{h}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, h.nl, f.objects.NodeAddresses(), f.objects.NetDevices(), f)
	return f
}

func (h *host) device(name string) link.Device {
	h.t.Helper()
	d, ok, err := h.nl.Device(name)
	if err != nil || !ok {
		h.t.Fatalf("device %s: %t, %v", name, ok, err)
	}
	return d
}

// kernel returns what tables and devices hold: fronts as text without link-local addresses, and the devices with both programs.
func (f *face) kernel() (addresses, devices []string, attached map[int]bool) {
	f.h.t.Helper()
	entered, err1 := f.objects.NodeAddresses().All()
	carriers, err2 := f.objects.NetDevices().All()
	attached, err3 := f.Attached()
	if err := errors.Join(err1, err2, err3); err != nil {
		f.h.t.Fatal(err)
	}
	addresses, devices = fronts{addresses: entered, devices: carriers}.text()
	addresses = slices.DeleteFunc(addresses, func(s string) bool { return strings.HasPrefix(s, "fe80:") })
	return addresses, devices, attached
}

// until waits for the kernel to hold these addresses and these devices, each of which carries the programs.
func (f *face) until(addresses, devices string) {
	f.h.t.Helper()
	var got string
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		a, d, attached := f.kernel()
		in := len(attached) == len(d)
		for _, ok := range attached {
			in = in && ok
		}
		got = strings.Join(a, " ") + " | " + strings.Join(d, ", ")
		if in && got == addresses+" | "+devices {
			return
		}
		if time.Now().After(deadline) {
			f.h.t.Fatalf("kernel holds %s, attached %v; want %s | %s; status %+v", got, attached, addresses, devices, f.Status())
		}
	}
}

// run runs a Front until the returned function is called.
func (f *face) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := f.Run(ctx); err != context.Canceled {
			f.h.t.Errorf("run: %v", err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		ended.Wait()
	})
	f.h.t.Cleanup(stop)
	return stop
}

func newUplink(t *testing.T) *host {
	t.Helper()
	a, b := newHost(t, Config{Name: "a"}), newHost(t, Config{Name: "b"})
	wire(t, 1500, a, []string{"192.0.2.1/24", "2001:db8::1/64"}, b, nil)
	return a
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func TestFrontFollowsAddressesAndDevices(t *testing.T) {
	a := newUplink(t)
	other := newHost(t, Config{Name: "c"})
	f := a.face("primary", "198.51.100.0/24")
	if err := f.programs.Attach(a.device("eth0").Index); errors.Is(err, bpf.ErrNoTCX) {
		t.Skipf("the agent attaches filters instead, which pkg/bpf tests: %v", err)
	}
	stop := f.run()
	eth0 := fmt.Sprintf("%d 192.0.2.1 2001:db8::1", a.device("eth0").Index)
	f.until("192.0.2.1* 2001:db8::1*", eth0)

	a.must(a.nl.AddAddress("eth0", netip.MustParsePrefix("192.0.2.77/32")))
	f.until("192.0.2.1* 192.0.2.77 2001:db8::1*", eth0)
	a.must(a.nl.DeleteAddress("eth0", netip.MustParsePrefix("192.0.2.77/32")))
	f.until("192.0.2.1* 2001:db8::1*", eth0)

	// A device without an address that counts, then with one, then without, then gone.
	a.must(link.Wire(a.nl, link.End{Name: "eth1", Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.1/24")}}, other.nl, link.End{Name: "eth0"}))
	f.until("192.0.2.1* 203.0.113.1 2001:db8::1*", eth0)
	a.must(a.nl.AddAddress("eth1", netip.MustParsePrefix("198.51.100.1/24")))
	both := eth0 + fmt.Sprintf(", %d 203.0.113.1 invalid IP", a.device("eth1").Index)
	f.until("192.0.2.1* 198.51.100.1* 203.0.113.1 2001:db8::1*", both)
	a.must(a.nl.DeleteAddress("eth1", netip.MustParsePrefix("198.51.100.1/24")))
	f.until("192.0.2.1* 203.0.113.1 2001:db8::1*", eth0)
	a.must(a.nl.AddAddress("eth1", netip.MustParsePrefix("198.51.100.1/24")))
	f.until("192.0.2.1* 198.51.100.1* 203.0.113.1 2001:db8::1*", both)
	a.must(a.nl.DeleteDevice("eth1"))
	f.until("192.0.2.1* 2001:db8::1*", eth0)
	if s := f.Status(); len(s.Conditions) != 0 || s.Repaired != 0 || len(s.Devices) != 1 || len(s.Addresses) < 2 {
		t.Errorf("status is %+v", s)
	}

	// Everything stays when the agent ends. The next one takes over what is right and removes what is not, with other settings.
	stop()
	f.until("192.0.2.1* 2001:db8::1*", eth0)
	a.must(errors.Join(f.addresses.Put(netip.MustParseAddr("192.0.2.200"), bpf.NodeAddressLocal), f.devices.Put(4711, bpf.NetDevice{})))
	next := a.face("all")
	next.run()
	next.until("192.0.2.1* 2001:db8::1*", eth0)
	if s := next.Status(); s.Repaired != 0 {
		t.Errorf("adoption counts as repair: %+v", s)
	}
}

func TestFrontRepairsDrift(t *testing.T) {
	a := newUplink(t)
	f := a.face("primary")
	a.must(f.look()) // before anything was read
	if addresses, devices, attached := f.kernel(); len(addresses)+len(devices)+len(attached) != 0 {
		t.Errorf("wrote %v %v %v before it knew what is there", addresses, devices, attached)
	}
	eth0 := a.device("eth0").Index
	if err := errors.Join(f.compare(), f.look()); errors.Is(err, bpf.ErrNoTCX) {
		t.Skipf("the agent attaches filters instead, which pkg/bpf tests: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	f.until("192.0.2.1* 2001:db8::1*", fmt.Sprintf("%d 192.0.2.1 2001:db8::1", eth0))
	a.must(errors.Join(f.look(), f.compare(), f.look()))
	if s := f.Status(); s.Repaired != 0 {
		t.Errorf("%d repairs without a change", s.Repaired)
	}
	a.must(errors.Join(
		f.objects.NodeAddresses().Delete(netip.MustParseAddr("192.0.2.1")), f.objects.NodeAddresses().Put(netip.MustParseAddr("192.0.2.9"), bpf.NodeAddressLocal),
		f.objects.NetDevices().Put(eth0, bpf.NetDevice{}), f.objects.DetachNet(eth0),
		f.look(), f.compare(), f.look(),
	))
	f.until("192.0.2.1* 2001:db8::1*", fmt.Sprintf("%d 192.0.2.1 2001:db8::1", eth0))
	if s := f.Status(); s.Repaired != 3 {
		t.Errorf("%d repairs, want one each of addresses, devices and programs", s.Repaired)
	}
}

func TestFrontWithFullTableKeepsNodePorts(t *testing.T) {
	a := newUplink(t)
	f := a.face("primary", "192.0.2.200/32")
	var extra []netip.Prefix
	for last := byte(10); last < 20; last++ {
		extra = append(extra, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), 32))
	}
	for _, p := range append(extra, netip.MustParsePrefix("192.0.2.200/32")) {
		a.must(a.nl.AddAddress("eth0", p))
	}
	a.must(f.compare())
	if err := f.look(); !errors.Is(err, bpf.ErrFull) {
		t.Fatalf("error is %v", err)
	}
	addresses, _, _ := f.kernel()
	if diff := cmp.Diff([]string{"192.0.2.1*", "192.0.2.200*", "2001:db8::1*"}, slices.DeleteFunc(addresses, func(s string) bool { return !strings.HasSuffix(s, "*") })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := f.Status().Conditions["node addresses"]; !errors.Is(err, bpf.ErrFull) || !strings.Contains(err.Error(), "are not served: put node address") {
		t.Errorf("condition is %v", err)
	}
	for _, p := range extra {
		a.must(a.nl.DeleteAddress("eth0", p))
	}
	a.must(f.look())
	if s := f.Status(); len(s.Conditions) != 0 {
		t.Errorf("conditions stay: %v", s.Conditions)
	}
	if addresses, _, _ := f.kernel(); !cmp.Equal(addresses, []string{"192.0.2.1*", "192.0.2.200*", "2001:db8::1*"}) {
		t.Errorf("addresses are %v", addresses)
	}
}
