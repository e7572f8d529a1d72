// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sameAddr lets cmp compare addresses and prefixes, whose fields it cannot see.
func sameAddr() cmp.Option {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
}

func testEndpoint(id uint32) Endpoint {
	return Endpoint{
		ID: id, Incarnation: 100 + id, Ifindex: 1000 + id, Cookie: uint64(5000 + id),
		Addr4: netip.AddrFrom4([4]byte{10, 1, byte(id >> 8), byte(id)}),
		Addr6: netip.MustParseAddr("fd00::").Next(),
		MAC:   [6]byte{2, 0, 0, 0, byte(id >> 8), byte(id)},
	}
}

// leads returns where the indexes lead for an endpoint's facts: device, two addresses, namespace; 0 for nowhere.
func leads(t *testing.T, o *Objects, e Endpoint) [4]uint32 {
	t.Helper()
	var ids [4]uint32
	var errs [4]error
	ids[0], _, errs[0] = o.endpoints.links.get(e.Ifindex)
	ids[1], _, errs[1] = o.endpoints.addrs.get(addrOf(e.Addr4))
	ids[2], _, errs[2] = o.endpoints.addrs.get(addrOf(e.Addr6))
	ids[3], _, errs[3] = o.endpoints.spaces.get(e.Cookie)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestEndpointPutDelete(t *testing.T) {
	o := openTest(t)
	e := testEndpoint(5)
	if err := o.Endpoints().Put(e); err != nil {
		t.Fatal(err)
	}
	if got := leads(t, o, e); got != [4]uint32{5, 5, 5, 5} {
		t.Errorf("indexes lead to %v", got)
	}

	// What programs see, byte for byte.
	var raw LayoutEndpoint
	if err := o.maps[LayoutMapEndpoints].Lookup(uint32(5), &raw); err != nil {
		t.Fatal(err)
	}
	want := LayoutEndpoint{
		Word: 105<<32 | 1, Cookie: 5005, Ifindex: 1005, Mac: e.MAC,
		Addr4: LayoutAddr{Bytes: [16]uint8{10: 0xff, 11: 0xff, 12: 10, 13: 1, 15: 5}},
		Addr6: LayoutAddr{Bytes: [16]uint8{0: 0xfd, 15: 1}},
	}
	if raw != want {
		t.Errorf("element is %+v, want %+v", raw, want)
	}

	// A flag changes in the one word; the rest of the element and the indexes are not touched.
	e.Flags = EndpointSocketLBOff
	if err := o.Endpoints().Put(e); err != nil {
		t.Fatal(err)
	}
	if w := o.endpoints.array.load(5, 0); w != 105<<32|3 {
		t.Errorf("word is %#x after the flag was set", w)
	}

	// Another pod takes the id: nothing leads to it by the first pod's facts.
	next := testEndpoint(6)
	next.ID, next.Incarnation, next.Addr6 = 5, 200, netip.Addr{}
	if err := o.Endpoints().Put(next); err != nil {
		t.Fatal(err)
	}
	if got := leads(t, o, e); got != [4]uint32{} {
		t.Errorf("the first pod's facts still lead to %v", got)
	}
	if got, ok := o.Endpoints().Get(5); !ok || got != next {
		t.Errorf("endpoint is %+v, want %+v", got, next)
	}

	for range 2 {
		if err := o.Endpoints().Delete(5); err != nil {
			t.Fatal(err)
		}
	}
	if got := leads(t, o, next); got != [4]uint32{} {
		t.Errorf("after Delete its facts lead to %v", got)
	}
	if all, err := o.Endpoints().List(); err != nil || len(all) != 0 {
		t.Errorf("after Delete the table has %v, %v", all, err)
	}
}

func TestEndpointDeleteLeavesSuccessor(t *testing.T) {
	o := openTest(t)
	old, next := testEndpoint(1), testEndpoint(2)
	next.Addr4 = old.Addr4 // an address that changed hands before the old endpoint was deleted
	for _, e := range []Endpoint{old, next} {
		if err := o.Endpoints().Put(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Endpoints().Delete(old.ID); err != nil {
		t.Fatal(err)
	}
	if got := leads(t, o, next); got != [4]uint32{2, 2, 2, 2} {
		t.Errorf("the successor's facts lead to %v", got)
	}
}

func TestEndpointFullIsTakenBack(t *testing.T) {
	capacity := small()
	capacity["endpoint_addrs"] = 3
	o := mustOpen(t, Options{Dir: testDir(t), Capacity: capacity})
	defer o.Close()
	first, second, third := testEndpoint(1), testEndpoint(2), testEndpoint(3)
	first.Addr6, second.Addr6 = netip.MustParseAddr("fd00::a"), netip.MustParseAddr("fd00::b")
	third.Addr6 = netip.MustParseAddr("fd00::c")
	if err := o.Endpoints().Put(first); err != nil {
		t.Fatal(err)
	}
	err := o.Endpoints().Put(second)
	if !errors.Is(err, ErrFull) {
		t.Fatalf("fourth address: %v, want ErrFull", err)
	}
	wantError(t, err, "put endpoint 2: write endpoint_addrs: map is full (3 elements)")
	if got := leads(t, o, second); got != [4]uint32{} {
		t.Errorf("the refused endpoint's facts lead to %v", got)
	}
	all, _ := o.Endpoints().List()
	if diff := cmp.Diff([]Endpoint{first}, all, sameAddr()); diff != "" {
		t.Errorf("endpoints after a refused Put (-want +got):\n%s", diff)
	}
	uses, err := o.Uses()
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range uses {
		if u.Name == "endpoint_addrs" && (u != MapUse{Name: "endpoint_addrs", Capacity: 3, Used: 2, Failed: 1}) {
			t.Errorf("use is %+v", u)
		}
		if u.Name == "endpoints" && (u != MapUse{Name: "endpoints", Capacity: 4095, Used: 1, Failed: 1}) {
			t.Errorf("use is %+v", u)
		}
	}
}

func TestEndpointRefuses(t *testing.T) {
	o := openTest(t)
	for _, c := range []struct {
		e    Endpoint
		want string
	}{
		{Endpoint{Ifindex: 1}, "put endpoint 0: id out of range, 1 to 4095"},
		{Endpoint{ID: 4096, Ifindex: 1}, "put endpoint 4096: id out of range"},
		{Endpoint{ID: 1}, "put endpoint 1: ifindex is 0"},
	} {
		wantError(t, o.Endpoints().Put(c.e), c.want)
	}
	wantError(t, o.Endpoints().Delete(4096), "delete endpoint 4096: id out of range")
}
