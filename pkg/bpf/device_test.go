// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	nl "github.com/fairlead/fairlead/pkg/link"
	"github.com/fairlead/fairlead/pkg/testnet/sandbox"
)

func TestNetDevices(t *testing.T) {
	devices := openTest(t).NetDevices()
	a := NetDevice{Addr4: netip.MustParseAddr("192.0.2.1"), Addr6: netip.MustParseAddr("2001:db8::1")}
	b := NetDevice{Addr6: netip.MustParseAddr("2001:db8::2")}
	if err := errors.Join(devices.Put(2, b), devices.Put(2, a), devices.Put(3, b), devices.Put(4, a), devices.Delete(4), devices.Delete(4)); err != nil {
		t.Fatal(err)
	}
	got, err := devices.All()
	if err != nil {
		t.Fatal(err)
	}
	want := map[int]NetDevice{2: a, 3: b}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for i := 5; err == nil && i < 1000; i++ {
		err = devices.Put(i, a)
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("error of a full map is %v", err)
	}
}

// uplinks returns the indexes of two devices of a namespace, and its handle.
func uplinks(t *testing.T, ns *sandbox.Namespace) (*nl.Handle, [2]int) {
	t.Helper()
	h, err := nl.OpenAt(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	if err := nl.Wire(h, nl.End{Name: "eth0"}, h, nl.End{Name: "eth1"}); err != nil {
		t.Fatal(err)
	}
	var found [2]int
	for i := range found {
		d, ok, err := h.Device("eth" + strconv.Itoa(i))
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		found[i] = d.Index
	}
	return h, found
}

// netLinks reads what is attached in a namespace.
func netLinks(t *testing.T, o *Objects, ns *sandbox.Namespace) (all map[int]bool) {
	t.Helper()
	ns.Do(t, func() (err error) {
		all, err = o.NetLinks()
		return err
	})
	return all
}

func TestNetLinksFollowDevices(t *testing.T) {
	dir, ns := testDir(t), sandbox.NewNamespace(t)
	h, on := uplinks(t, ns)
	first := mustOpen(t, Options{Dir: dir, Capacity: small()})
	var err error
	ns.Do(t, func() error { err = errors.Join(first.AttachNet(on[0]), first.AttachNet(on[1])); return nil })
	if errors.Is(err, ErrNoTCX) {
		t.Skipf("the agent attaches filters instead: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[int]bool{on[0]: true, on[1]: true}, netLinks(t, first, ns)); diff != "" {
		t.Errorf("after attaching, -want +got:\n%s", diff)
	}
	before := links(t, first)

	second := mustOpen(t, Options{Dir: dir, Capacity: small()})
	defer second.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[int]bool{on[0]: false, on[1]: false}, netLinks(t, second, ns)); diff != "" {
		t.Errorf("with programs of the agent before, -want +got:\n%s", diff)
	}
	ns.Do(t, func() error { return second.AttachNet(on[0]) })
	if diff := cmp.Diff(map[int]bool{on[0]: true, on[1]: false}, netLinks(t, second, ns)); diff != "" {
		t.Errorf("after one was attached again, -want +got:\n%s", diff)
	}
	after := links(t, second)
	for _, hook := range netHooks() {
		name := hook.link(on[0])
		p, err := second.export(hook.program)
		if err != nil {
			t.Fatal(err)
		}
		if after[name].ID != before[name].ID || after[name].Program != p.ID {
			t.Errorf("link %s was %+v and is %+v, want it updated in place to program %d", name, before[name], after[name], p.ID)
		}
	}

	// Another namespace has the same indexes: nothing of it is attached.
	if diff := cmp.Diff(map[int]bool{on[0]: false, on[1]: false}, netLinks(t, second, sandbox.NewNamespace(t))); diff != "" {
		t.Errorf("in another namespace, -want +got:\n%s", diff)
	}

	// One goes by hand, with a pin that a killed agent left; the other's device is gone first.
	stray := filepath.Join(dir, linksDir, netHooks()[0].link(on[0]))
	if err := os.Rename(stray, stray+aside); err != nil {
		t.Fatal(err)
	}
	if err := second.DetachNet(on[0]); err != nil {
		t.Fatal(err)
	}
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		ns.Do(t, func() error {
			ids, err := linksOn(on[0], hook)
			if len(ids) != 0 {
				t.Errorf("links %v are on the device at %s", ids, hook)
			}
			return err
		})
	}
	ns.Do(t, func() error { return errors.Join(second.AttachNet(on[0]), second.DetachNet(on[0])) })
	if err := h.DeleteDevice("eth1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[int]bool{on[1]: false}, netLinks(t, second, ns)); diff != "" {
		t.Errorf("with a device that is gone, -want +got:\n%s", diff)
	}
	if err := errors.Join(second.DetachNet(on[1]), second.DetachNet(on[1])); err != nil {
		t.Fatal(err)
	}
	if got := links(t, second); len(got) != 0 {
		t.Errorf("links are left: %v", got)
	}
	ns.Do(t, func() error {
		wantError(t, second.AttachNet(4711), "attach net programs to device 4711")
		return nil
	})
}

// The way of kernels without tcx.
func TestNetProgramsAsFilters(t *testing.T) {
	o, ns := openTest(t), sandbox.NewNamespace(t)
	h, on := uplinks(t, ns)
	var v *nl.Veths
	ns.Do(t, func() (err error) {
		v, err = nl.OpenVeths()
		return err
	})
	defer v.Close()
	from, to, err := o.NetPrograms()
	if err != nil {
		t.Fatal(err)
	}
	f := nl.Filters{FromPodFD: from.FD, FromPodID: from.ID, ToPodFD: to.FD, ToPodID: to.ID}
	ours, others := nl.FilterNames{From: "from_net", To: "to_net"}, nl.FilterNames{From: "theirs", To: "theirs"}
	if err := errors.Join(v.RemoveFilters(on[0], ours), v.AttachNamed(on[0], f, ours), v.AttachNamed(on[0], f, ours), v.VerifyFilters(on[0], f)); err != nil {
		t.Fatal(err)
	}
	if err := v.AttachNamed(on[0], f, others); !errors.Is(err, nl.ErrFilter) || !strings.Contains(err.Error(), `taken by "from_net" and "to_net"`) {
		t.Errorf("error of a taken place is %v", err)
	}
	if err := errors.Join(v.RemoveFilters(on[0], others), v.VerifyFilters(on[0], f)); err != nil {
		t.Errorf("filters of others were removed: %v", err)
	}
	if err := v.RemoveFilters(on[0], ours); err != nil {
		t.Fatal(err)
	}
	if err := v.VerifyFilters(on[0], f); !errors.Is(err, nl.ErrFilter) {
		t.Errorf("filters are still there: %v", err)
	}
	if err := errors.Join(h.DeleteDevice("eth0"), v.RemoveFilters(on[0], ours)); err != nil {
		t.Error(err)
	}
}
