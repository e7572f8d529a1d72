// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestServiceWords(t *testing.T) {
	o := openTest(t)
	s := o.Services()
	want := Service{
		ID: 4, Incarnation: 7, Cluster: Set{Offset: 10, Length: 3}, Local: Set{Verdict: VerdictDrop}, Flags: ServiceInternalLocal,
		AffinitySeconds: 10800, SourceRange: 2,
	}
	if err := s.Flip(4, want); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Service(4); !ok || got != want {
		t.Errorf("service is %+v, want %+v", got, want)
	}
	// The words as service.h describes them, through the map call and not through the mapping.
	var raw LayoutService
	if err := o.maps[LayoutMapServices].Lookup(uint32(4), &raw); err != nil {
		t.Fatal(err)
	}
	if want := (LayoutService{ClusterSet: 3<<32 | 10, LocalSet: 1 << 56, Config: 1<<32 | 10800, Identity: 7<<32 | 2}); raw != want {
		t.Errorf("words are %+v, want %+v", raw, want)
	}
	if err := errors.Join(s.DeleteService(4), s.DeleteService(4)); err != nil {
		t.Fatal(err)
	}
	if all, _ := s.Services(); len(all) != 0 {
		t.Errorf("services after delete: %v", all)
	}

	wantError(t, s.Flip(0, want), "flip service 0: id out of range, 1 to 1023")
	wantError(t, s.Flip(1, Service{}), "flip service 1: incarnation is 0")
	wantError(t, s.Flip(1, Service{Incarnation: 1, Local: Set{Offset: 8190, Length: 3}}), "flip service 1: slots 8190 to 8193 are out of range, 0 to 8192")
}

func TestSlots(t *testing.T) {
	o := openTest(t)
	s := o.Services()
	if got := s.SlotCapacity(); got != 8192 {
		t.Fatalf("%d slots, want two for each of 4096 elements", got)
	}
	// An odd start: the range begins in the high half of an element whose low half is another's.
	if err := errors.Join(s.WriteSlots(4, []uint32{99}), s.WriteSlots(5, []uint32{1, 2, 3})); err != nil {
		t.Fatal(err)
	}
	var pair uint64
	for i, want := range map[uint32]uint64{2: 1<<32 | 99, 3: 3<<32 | 2, 4: 0} {
		if err := o.maps[LayoutMapSlots].Lookup(i, &pair); err != nil || pair != want {
			t.Errorf("element %d is %#x, %v, want %#x", i, pair, err, want)
		}
	}
	if got, err := s.Slots(4, 5); err != nil || !slices.Equal(got, []uint32{99, 1, 2, 3, 0}) {
		t.Errorf("slots are %v, %v", got, err)
	}
	if err := s.WriteSlots(8191, []uint32{1, 2}); !errors.Is(err, ErrFull) {
		t.Errorf("behind the end: %v, want ErrFull", err)
	}
}

func TestBackendFlagsAreOneWord(t *testing.T) {
	o := openTest(t)
	s := o.Services()
	b := Backend{ID: 2, Incarnation: 6, Flags: BackendServing | BackendCluster, Addr: netip.MustParseAddr("10.0.0.9"), Port: 8080, Protocol: 6}
	if err := s.PutBackend(b); err != nil {
		t.Fatal(err)
	}
	var raw LayoutBackend
	if err := o.maps[LayoutMapBackends].Lookup(uint32(2), &raw); err != nil {
		t.Fatal(err)
	}
	if want := (LayoutBackend{Word: 6<<32 | 7, Addr: addrOf(b.Addr), Port: 0x901f, Proto: 6}); raw != want {
		t.Errorf("element is %+v, want %+v", raw, want)
	}
	b.Flags = BackendServing
	if err := s.PutBackend(b); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Backend(2); !ok || got != b {
		t.Errorf("backend is %+v, want %+v", got, b)
	}
	all, err := s.Backends()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Backend{b}, all, sameAddr()); diff != "" {
		t.Errorf("backends (-want +got):\n%s", diff)
	}
	if err := errors.Join(s.DeleteBackend(2), s.DeleteBackend(2)); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Backend(2); ok {
		t.Error("the backend is still there")
	}
	wantError(t, s.PutBackend(Backend{ID: 1}), "put backend 1: address is missing")
	wantError(t, s.PutBackend(Backend{ID: 4096}), "put backend 4096: id out of range, 1 to 4095")
}

func TestFrontends(t *testing.T) {
	o := openTest(t)
	s := o.Services()
	var want []Frontend
	for i := range 1024 {
		a := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		if i%2 == 1 {
			a = netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)})
		}
		f := Frontend{FrontendKey: FrontendKey{Addr: a, Port: 443, Protocol: []uint8{6, 17, 132}[i%3]}, Service: uint32(i + 1), Class: FrontendClusterIP}
		if err := s.PutFrontend(f); err != nil {
			t.Fatal(err)
		}
		want = append(want, f)
	}
	extra := Frontend{FrontendKey: FrontendKey{Addr: netip.MustParseAddr("10.97.0.1"), Port: 80, Protocol: 6}, Service: 1}
	err := s.PutFrontend(extra)
	if !errors.Is(err, ErrFull) {
		t.Fatalf("frontend 1025: %v, want ErrFull", err)
	}
	wantError(t, err, "put frontend 10.97.0.1:80/tcp: write frontends: map is full (1024 elements)")
	got, err := s.Frontends()
	if err != nil {
		t.Fatal(err)
	}
	byService := func(a, b Frontend) int { return int(a.Service) - int(b.Service) }
	slices.SortFunc(got, byService)
	if diff := cmp.Diff(want, got, sameAddr()); diff != "" {
		t.Errorf("frontends (-want +got):\n%s", diff)
	}
	for i := range want {
		if err := s.DeleteFrontend(want[i].FrontendKey); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Frontends(); err != nil || len(got) != 0 {
		t.Errorf("%d frontends after delete, %v", len(got), err)
	}
	// The wildcards of NodePorts keep their families apart.
	for i, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		f := Frontend{FrontendKey: FrontendKey{Addr: a, Port: 30080, Protocol: 6}, Service: uint32(i + 1), Class: FrontendNodePort}
		if err := s.PutFrontend(f); err != nil {
			t.Fatal(err)
		}
	}
	got, err = s.Frontends()
	slices.SortFunc(got, byService)
	if err != nil || len(got) != 2 || got[0].Addr != netip.IPv4Unspecified() || got[1].Addr != netip.IPv6Unspecified() {
		t.Errorf("wildcard frontends are %v, %v", got, err)
	}
}

func TestClusterIPs(t *testing.T) {
	o := openTest(t)
	a, b := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")
	s := o.Services()
	if err := errors.Join(s.PutClusterIP(a, 1), s.PutClusterIP(a, 2), s.PutClusterIP(b, 1), s.DeleteClusterIP(netip.MustParseAddr("10.96.0.2"))); err != nil {
		t.Fatal(err)
	}
	got, err := s.ClusterIPs()
	if err != nil || len(got) != 2 || got[a] != 2 || got[b] != 1 {
		t.Errorf("cluster IPs are %v, %v", got, err)
	}
	used, _, err := s.ips.use()
	if err != nil || used != 2 {
		t.Errorf("use is %d, %v, want 2", used, err)
	}
}

// TestUsesAreCountedOnceAcrossAgents counts elements that a predecessor wrote before this agent wrote some.
func TestUsesAreCountedOnceAcrossAgents(t *testing.T) {
	dir := testDir(t)
	put := func(o *Objects, from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			f := Frontend{FrontendKey: FrontendKey{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), Port: 80, Protocol: 6}, Service: 1}
			b := Backend{ID: uint32(i + 1), Incarnation: 1, Addr: f.Addr}
			if err := errors.Join(o.Services().PutFrontend(f), o.Services().PutBackend(b), o.Services().Flip(uint32(i+1), Service{Incarnation: 1})); err != nil {
				t.Fatal(err)
			}
		}
	}
	used := func(o *Objects) map[string]uint64 {
		t.Helper()
		uses, err := o.Uses()
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]uint64{}
		for _, u := range uses {
			if u.Capacity == 0 || u.Used > u.Capacity {
				t.Errorf("use makes no sense: %+v", u)
			}
			all[u.Name] = u.Used
		}
		return all
	}
	first := mustOpen(t, Options{Dir: dir, Capacity: small()})
	put(first, 0, 20)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := mustOpen(t, Options{Dir: dir, Capacity: small()})
	defer second.Close()
	put(second, 10, 30) // ten are there already
	if got := used(second); got["frontends"] != 30 || got["backends"] != 30 || got["services"] != 30 {
		t.Errorf("use is %v, want 30 each", got)
	}
	for i := range 30 {
		f := FrontendKey{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), Port: 80, Protocol: 6}
		id := uint32(i + 1)
		if err := errors.Join(second.Services().DeleteFrontend(f), second.Services().DeleteBackend(id), second.Services().DeleteService(id)); err != nil {
			t.Fatal(err)
		}
	}
	if got := used(second); got["frontends"] != 0 || got["backends"] != 0 || got["services"] != 0 {
		t.Errorf("use is %v, want none", got)
	}
}

func TestGraceWaits(t *testing.T) {
	o := openTest(t)
	start := time.Now()
	for range 3 {
		if err := o.Services().Grace(); err != nil {
			t.Fatal(err)
		}
	}
	// An RCU grace period needs every CPU to pass a quiescent state: never as short as a bare system call.
	took := time.Since(start) / 3
	t.Logf("a grace period takes %v", took)
	if took < 20*time.Microsecond {
		t.Errorf("Grace took %v: the kernel did not wait", took)
	}
}

func ExampleFrontendKey_String() {
	fmt.Println(FrontendKey{Addr: netip.MustParseAddr("fd00::1"), Port: 53, Protocol: 17})
	// Output: [fd00::1]:53/udp
}
