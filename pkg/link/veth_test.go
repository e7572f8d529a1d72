// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/pkg/link"
)

// space makes a network namespace that lives as long as its file.
func space(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		back, e := os.Open("/proc/thread-self/ns/net")
		if e != nil {
			err = e
			return
		}
		defer back.Close()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
			if e := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); e == nil {
				runtime.UnlockOSThread() // else the thread ends with the goroutine
			}
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func shell(t *testing.T, ns *os.File, command string) string {
	t.Helper()
	var out []byte
	if err := link.InNamespace(int(ns.Fd()), func() (err error) {
		out, err = exec.Command("sh", "-ec", command).CombinedOutput()
		return err
	}); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

func veths(t *testing.T, ns *os.File) *link.Veths {
	t.Helper()
	var v *link.Veths
	if err := link.InNamespace(int(ns.Fd()), func() (err error) {
		v, err = link.OpenVeths()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func spec() link.Veth {
	return link.Veth{
		Host: "fl0123456789ab", Pod: "eth0", HostMAC: [6]byte{2, 1}, PodMAC: [6]byte{2, 2}, MTU: 1400, Alias: "default/web",
		Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
	}
}

func TestVethEndsWhereItBelongs(t *testing.T) {
	host, pod := space(t), space(t)
	v := veths(t, host)
	p, err := v.Create(int(pod.Fd()), spec())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f, err := v.Find("fl0123456789ab")
	if err != nil || f.Index != p.HostIndex || f.Peer != p.PodIndex || f.MTU != 1400 || f.MAC != spec().HostMAC || f.Up || f.Kind != "veth" {
		t.Errorf("host side %+v, pair %+v, %v", f, p, err)
	}
	if cookie, err := link.NamespaceCookie(int(pod.Fd())); err != nil || cookie != p.Cookie {
		t.Errorf("cookie %d, want %d, %v", p.Cookie, cookie, err)
	}
	if out := shell(t, pod, "ip -br link"); !strings.Contains(out, "eth0") || !strings.Contains(out, "02:02:00:00:00:00") {
		t.Errorf("pod side: %s", out)
	}
	// Again: the interface is taken, and nothing of the first is touched.
	other := spec()
	other.Host = "fl0123456789cd"
	if _, err := v.Create(int(pod.Fd()), other); !errors.Is(err, link.ErrPodLinkExists) {
		t.Errorf("taken interface: %v", err)
	}
	// The host side's name is left from an attempt in a namespace that is gone otherwise: it goes.
	second := space(t)
	q, err := v.Create(int(second.Fd()), spec())
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if all, err := v.List("fl"); err != nil || len(all) != 1 || all[0].Index != q.HostIndex {
		t.Errorf("links %+v, %v", all, err)
	}
	if _, err := v.Create(int(host.Fd()), other); !errors.Is(err, link.ErrHostNamespace) {
		t.Errorf("own namespace: %v", err)
	}
	for range 2 {
		if err := v.Delete("fl0123456789ab"); err != nil {
			t.Error(err)
		}
	}
	if _, err := v.Find("fl0123456789ab"); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("after its removal: %v", err)
	}
}

func TestDeleteLeavesWhatIsNoVeth(t *testing.T) {
	host := space(t)
	v := veths(t, host)
	shell(t, host, "ip link add fl0123456789ab type bridge")
	if err := v.Delete("fl0123456789ab"); err == nil || !strings.Contains(err.Error(), "bridge") {
		t.Errorf("error %v", err)
	}
	if _, err := v.Find("fl0123456789ab"); err != nil {
		t.Error(err)
	}
}

func TestFiltersNameWhoHasTheirPlace(t *testing.T) {
	host, pod := space(t), space(t)
	v := veths(t, host)
	p, err := v.Create(int(pod.Fd()), spec())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f := link.Filters{FromPodFD: -1, ToPodFD: -1, FromPodID: 1, ToPodID: 2}
	if err := v.VerifyFilters(p.HostIndex, f); !errors.Is(err, link.ErrFilter) {
		t.Errorf("no clsact: %v", err)
	}
	shell(t, host, "tc qdisc add dev fl0123456789ab ingress")
	if err := v.AttachFilters(p.HostIndex, f); err == nil || !strings.Contains(err.Error(), "ingress qdisc") {
		t.Errorf("ingress qdisc of another: %v", err)
	}
	if err := v.VerifyFilters(9999, f); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("no link: %v", err)
	}
}
