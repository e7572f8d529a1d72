// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
)

// EndpointFlag is a bit of an endpoint's word (bpf/lib/endpoint.h).
type EndpointFlag = LayoutEndpointFlag

// The flags that a caller may set; that an endpoint is live is said by Put.
const (
	EndpointSocketLBOff = LayoutEndpointFlagENDPOINT_SOCKET_LB_OFF // fairlead.io/socket-lb: "off"
	endpointLive        = LayoutEndpointFlagENDPOINT_LIVE
)

// Endpoint is a pod of this node as the programs know it.
type Endpoint struct {
	ID           uint32 // 1 to Endpoints.Capacity()
	Incarnation  uint32 // from IDs: never the same for two pods with one id
	Flags        EndpointFlag
	Addr4, Addr6 netip.Addr // the zero Addr where the pod lacks the family
	Cookie       uint64     // network namespace cookie of the pod; 0: unknown
	Ifindex      uint32     // host side of the veth
	MAC          [6]byte    // pod side of the veth
}

// LogValue describes the endpoint by what people look for.
func (e Endpoint) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("id", e.ID), slog.Any("incarnation", e.Incarnation), slog.Any("ifindex", e.Ifindex),
		slog.Any("addr4", e.Addr4), slog.Any("addr6", e.Addr6))
}

// Endpoints is the table of the node's pods: the array element that describes a pod, and the three indexes that lead to it (device,
// address, namespace). All methods may be called by several goroutines.
type Endpoints struct {
	mu     sync.Mutex
	array  *mapped
	links  *hash[uint32, uint32]
	addrs  *hash[LayoutAddr, uint32]
	spaces *hash[uint64, uint32]
	failed uint64
}

// Capacity returns the largest usable id.
func (t *Endpoints) Capacity() uint32 { return t.array.entries - 1 }

// Put writes an endpoint: its element with the live word last, then the indexes. Putting what is there already changes nothing. When an
// index is full everything of this Put is taken back and the error says which map is full.
func (t *Endpoints) Put(e Endpoint) error {
	if e.ID == 0 || e.ID >= t.array.entries {
		return fmt.Errorf("put endpoint %d: id out of range, 1 to %d", e.ID, t.array.entries-1)
	}
	if e.Ifindex == 0 {
		return fmt.Errorf("put endpoint %d: ifindex is 0", e.ID)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old, had := t.read(e.ID)
	if had && old != e && withFlags(old, e.Flags) == e {
		t.array.store(e.ID, 0, word(e.Incarnation, uint32(e.Flags|endpointLive)))
		old = e
	}
	if had && old != e {
		// The same id with other facts: what leads to the old ones goes first.
		if err := t.remove(old); err != nil {
			return fmt.Errorf("put endpoint %d: %w", e.ID, err)
		}
		had = false
	}
	if !had {
		el := at[LayoutEndpoint](t.array, e.ID)
		t.array.store(e.ID, 0, 0)
		el.Addr4, el.Addr6 = addrOf(e.Addr4), addrOf(e.Addr6)
		el.Cookie, el.Ifindex, el.Mac = e.Cookie, e.Ifindex, e.MAC
		t.array.store(e.ID, 0, word(e.Incarnation, uint32(e.Flags|endpointLive)))
	}
	if err := t.index(e); err != nil {
		t.failed++
		return fmt.Errorf("put endpoint %d: %w", e.ID, errors.Join(err, t.remove(e)))
	}
	return nil
}

// Delete takes the indexes and then the element of an endpoint away. An id that is not in use is no error.
func (t *Endpoints) Delete(id uint32) error {
	if id == 0 || id >= t.array.entries {
		return fmt.Errorf("delete endpoint %d: id out of range, 1 to %d", id, t.array.entries-1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.read(id)
	if !ok {
		return nil
	}
	if err := t.remove(e); err != nil {
		return fmt.Errorf("delete endpoint %d: %w", id, err)
	}
	return nil
}

// Get returns the endpoint with an id.
func (t *Endpoints) Get(id uint32) (Endpoint, bool) {
	if id == 0 || id >= t.array.entries {
		return Endpoint{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.read(id)
}

// List returns every live endpoint in the order of ids, those of an agent before this one too.
func (t *Endpoints) List() ([]Endpoint, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Endpoint
	for id := uint32(1); id < t.array.entries; id++ {
		if e, ok := t.read(id); ok {
			all = append(all, e)
		}
	}
	return all, nil
}

func withFlags(e Endpoint, f EndpointFlag) Endpoint {
	e.Flags = f
	return e
}

func (t *Endpoints) read(id uint32) (Endpoint, bool) {
	w := t.array.load(id, 0)
	if EndpointFlag(low(w))&endpointLive == 0 {
		return Endpoint{}, false
	}
	el := at[LayoutEndpoint](t.array, id)
	return Endpoint{
		ID:          id,
		Incarnation: high(w),
		Flags:       EndpointFlag(low(w)) &^ endpointLive,
		Addr4:       addrOrNone(el.Addr4),
		Addr6:       addrOrNone(el.Addr6),
		Cookie:      el.Cookie,
		Ifindex:     el.Ifindex,
		MAC:         el.Mac,
	}, true
}

// index writes what leads to the endpoint.
func (t *Endpoints) index(e Endpoint) error {
	if err := t.links.put(e.Ifindex, e.ID); err != nil {
		return err
	}
	for _, a := range []netip.Addr{e.Addr4, e.Addr6} {
		if !a.IsValid() {
			continue
		}
		if err := t.addrs.put(addrOf(a), e.ID); err != nil {
			return err
		}
	}
	if e.Cookie == 0 {
		return nil
	}
	return t.spaces.put(e.Cookie, e.ID)
}

// remove takes the endpoint out: the indexes that still lead to it, then its word.
func (t *Endpoints) remove(e Endpoint) error {
	err := t.links.deleteIf(e.Ifindex, e.ID)
	for _, a := range []netip.Addr{e.Addr4, e.Addr6} {
		if a.IsValid() {
			err = errors.Join(err, t.addrs.deleteIf(addrOf(a), e.ID))
		}
	}
	if e.Cookie != 0 {
		err = errors.Join(err, t.spaces.deleteIf(e.Cookie, e.ID))
	}
	if err != nil {
		return err
	}
	t.array.store(e.ID, 0, 0)
	return nil
}
