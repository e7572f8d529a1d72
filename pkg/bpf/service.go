// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Words of bpf/lib/service.h under the names that Go code uses.
type (
	FrontendClass  = LayoutFrontendClass
	ServiceVerdict = LayoutServiceVerdict
	ServiceFlag    = LayoutServiceFlag
	BackendFlag    = LayoutBackendFlag
)

// The values of these words. That a backend is live is said by PutBackend.
const (
	FrontendClusterIP    = LayoutFrontendClassFRONTEND_CLUSTER_IP
	FrontendNodePort     = LayoutFrontendClassFRONTEND_NODE_PORT
	FrontendLoadBalancer = LayoutFrontendClassFRONTEND_LOAD_BALANCER
	FrontendExternalIP   = LayoutFrontendClassFRONTEND_EXTERNAL_IP
	FrontendHostPort     = LayoutFrontendClassFRONTEND_HOST_PORT

	VerdictRefuse = LayoutServiceVerdictVERDICT_REFUSE // no endpoint anywhere: answered
	VerdictDrop   = LayoutServiceVerdictVERDICT_DROP   // traffic policy Local and none here: silence

	ServiceInternalLocal = LayoutServiceFlagSERVICE_INTERNAL_LOCAL
	ServiceExternalLocal = LayoutServiceFlagSERVICE_EXTERNAL_LOCAL
	ServiceSocketOff     = LayoutServiceFlagSERVICE_SOCKET_OFF

	BackendServing = LayoutBackendFlagBACKEND_SERVING
	BackendCluster = LayoutBackendFlagBACKEND_CLUSTER  // in the cluster set
	BackendInLocal = LayoutBackendFlagBACKEND_IN_LOCAL // in the local set
	BackendLocal   = LayoutBackendFlagBACKEND_LOCAL    // on this node
	BackendHost    = LayoutBackendFlagBACKEND_HOST     // on a host network
	backendLive    = LayoutBackendFlagBACKEND_LIVE
)

// MaxSetLength is the largest number of slots that one set may have: its length has 24 bits.
const MaxSetLength = 1<<24 - 1

// FrontendKey is where clients send to: an address (0.0.0.0 or :: for a NodePort), a port in host byte order, an IP protocol number.
type FrontendKey struct {
	Addr     netip.Addr
	Port     uint16
	Protocol uint8
}

// String returns "address:port/protocol".
func (k FrontendKey) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.Addr, k.Port), protocolName(k.Protocol))
}

// Frontend leads from a key to a service.
type Frontend struct {
	FrontendKey
	Service uint32
	Class   FrontendClass
}

// Set is a range of slots, or, when Length is 0, what is answered instead.
type Set struct {
	Offset, Length uint32
	Verdict        ServiceVerdict // when empty
}

// word returns {verdict:8, length:24, offset:32}.
func (s Set) word() uint64 {
	return uint64(s.Verdict)<<56 | uint64(s.Length&MaxSetLength)<<32 | uint64(s.Offset)
}

// setOf is the inverse of word.
func setOf(w uint64) Set {
	return Set{Verdict: ServiceVerdict(w >> 56), Length: high(w) & MaxSetLength, Offset: low(w)}
}

// Service is one Service port in one family.
type Service struct {
	ID              uint32 // 1 to ServiceCapacity
	Incarnation     uint32 // from IDs, never 0
	Cluster, Local  Set
	Flags           ServiceFlag
	AffinitySeconds uint32 // 0: none
	SourceRange     uint32 // source range set; 0: everybody
}

// LogValue describes the service by what people look for.
func (s Service) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("id", s.ID), slog.Any("incarnation", s.Incarnation), slog.Any("cluster", s.Cluster.Length),
		slog.Any("local", s.Local.Length))
}

// Backend is one (service, address, port).
type Backend struct {
	ID          uint32 // 1 to BackendCapacity
	Incarnation uint32 // from IDs
	Flags       BackendFlag
	Addr        netip.Addr
	Port        uint16 // host byte order
	Protocol    uint8
}

// Services is frontends, services, slots and backends. The order of a change is the caller's: backends and slots beside the old ones,
// then Flip, then a grace period, then removal. Each method makes one word or one entry visible at once; methods may be called by several
// goroutines.
type Services struct {
	frontends *hash[LayoutFrontendKey, LayoutFrontend]
	ips       *hash[LayoutAddr, uint32]
	services  *mapped
	slots     *mapped
	backends  *mapped
	ranges    *hash[LayoutSourceRange, uint32]
	cidrs     *hash[LayoutServiceCidr, uint32]
	epoch     *mapped
	grace     func() error

	mu             sync.Mutex
	counted        bool
	liveServices   uint64
	liveBackends   uint64
	failedServices uint64
	failedBackends uint64
	failedSlots    uint64
	slotsUsed      atomic.Uint64
}

// ServiceCapacity returns the largest usable service id, BackendCapacity the largest backend id, SlotCapacity the number of slots.
func (t *Services) ServiceCapacity() uint32 { return t.services.entries - 1 }

// BackendCapacity returns the largest usable backend id.
func (t *Services) BackendCapacity() uint32 { return t.backends.entries - 1 }

// SlotCapacity returns the number of slots.
func (t *Services) SlotCapacity() uint32 { return 2 * t.slots.entries }

// FrontendCapacity returns how many frontends fit.
func (t *Services) FrontendCapacity() uint32 { return t.frontends.m.MaxEntries() }

// PutFrontend makes a key lead to a service, which is complete before, and raises the epoch: flows that began before look again. A full map is ErrFull.
func (t *Services) PutFrontend(f Frontend) error {
	err := t.frontends.put(frontendKeyOf(f.FrontendKey), LayoutFrontend{Service: f.Service, Class: uint8(f.Class)})
	if err != nil {
		return fmt.Errorf("put frontend %s: %w", f.FrontendKey, err)
	}
	atomic.AddUint64(t.epoch.word64(0, 0), 1)
	return nil
}

// DeleteFrontend removes a key; one that is not there is no error.
func (t *Services) DeleteFrontend(k FrontendKey) error {
	if err := t.frontends.delete(frontendKeyOf(k)); err != nil {
		return fmt.Errorf("delete frontend %s: %w", k, err)
	}
	return nil
}

// Frontends returns all frontends in no order.
func (t *Services) Frontends() ([]Frontend, error) {
	var all []Frontend
	err := t.frontends.walk(func(k LayoutFrontendKey, v LayoutFrontend) {
		all = append(all, Frontend{
			FrontendKey: FrontendKey{Addr: k.Addr.Addr(), Port: portFrom(k.Port), Protocol: k.Proto},
			Service:     v.Service,
			Class:       FrontendClass(v.Class),
		})
	})
	return all, err
}

// PutClusterIP notes that n services have this ClusterIP: packets to it at a port without frontend are refused.
func (t *Services) PutClusterIP(a netip.Addr, n uint32) error {
	if err := t.ips.put(addrOf(a), n); err != nil {
		return fmt.Errorf("put cluster IP %s: %w", a, err)
	}
	return nil
}

// DeleteClusterIP forgets a ClusterIP; one that is not there is no error.
func (t *Services) DeleteClusterIP(a netip.Addr) error {
	if err := t.ips.delete(addrOf(a)); err != nil {
		return fmt.Errorf("delete cluster IP %s: %w", a, err)
	}
	return nil
}

// ClusterIPs returns each ClusterIP with the number of services that have it.
func (t *Services) ClusterIPs() (map[netip.Addr]uint32, error) {
	all := map[netip.Addr]uint32{}
	err := t.ips.walk(func(a LayoutAddr, n uint32) { all[a.Addr()] = n })
	return all, err
}

// Flip writes the service with an id: first flags and identity where they differ, then the local and the cluster set, each in one word.
// A service is in use from its first Flip (Incarnation is not 0) to DeleteService.
func (t *Services) Flip(id uint32, s Service) error {
	if id == 0 || id >= t.services.entries {
		t.fail(&t.failedServices)
		return fmt.Errorf("flip service %d: id out of range, 1 to %d", id, t.services.entries-1)
	}
	if s.Incarnation == 0 {
		return fmt.Errorf("flip service %d: incarnation is 0", id)
	}
	for _, set := range []Set{s.Cluster, s.Local} {
		if set.Length > MaxSetLength || uint64(set.Offset)+uint64(set.Length) > uint64(t.SlotCapacity()) {
			return fmt.Errorf("flip service %d: slots %d to %d are out of range, 0 to %d", id, set.Offset,
				uint64(set.Offset)+uint64(set.Length), t.SlotCapacity())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count()
	old := t.services.load(id, serviceIdentity)
	identity := word(s.Incarnation, s.SourceRange)
	if high(old) != s.Incarnation {
		// Another service: nobody may see its identity with the sets of the one before.
		t.services.store(id, serviceIdentity, 0)
	}
	t.services.store(id, serviceConfig, word(uint32(s.Flags), s.AffinitySeconds))
	t.services.store(id, serviceLocal, s.Local.word())
	t.services.store(id, serviceCluster, s.Cluster.word())
	t.services.store(id, serviceIdentity, identity)
	if high(old) == 0 {
		t.liveServices++
	}
	return nil
}

// DeleteService marks a service unused; its frontends are gone before.
func (t *Services) DeleteService(id uint32) error {
	if id == 0 || id >= t.services.entries {
		return fmt.Errorf("delete service %d: id out of range, 1 to %d", id, t.services.entries-1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count()
	if high(t.services.load(id, serviceIdentity)) == 0 {
		return nil
	}
	for _, w := range []uint32{serviceIdentity, serviceCluster, serviceLocal, serviceConfig} {
		t.services.store(id, w, 0)
	}
	t.liveServices--
	return nil
}

// Service returns the service with an id.
func (t *Services) Service(id uint32) (Service, bool) {
	if id == 0 || id >= t.services.entries {
		return Service{}, false
	}
	identity := t.services.load(id, serviceIdentity)
	if high(identity) == 0 {
		return Service{}, false
	}
	config := t.services.load(id, serviceConfig)
	return Service{
		ID:              id,
		Incarnation:     high(identity),
		SourceRange:     low(identity),
		Cluster:         setOf(t.services.load(id, serviceCluster)),
		Local:           setOf(t.services.load(id, serviceLocal)),
		Flags:           ServiceFlag(high(config)),
		AffinitySeconds: low(config),
	}, true
}

// Services returns every service in use in the order of ids.
func (t *Services) Services() ([]Service, error) {
	var all []Service
	for id := uint32(1); id < t.services.entries; id++ {
		if s, ok := t.Service(id); ok {
			all = append(all, s)
		}
	}
	return all, nil
}

// PutBackend writes a backend. With the same incarnation, address, port and protocol only its one word of flags changes.
func (t *Services) PutBackend(b Backend) error {
	if b.ID == 0 || b.ID >= t.backends.entries {
		t.fail(&t.failedBackends)
		return fmt.Errorf("put backend %d: id out of range, 1 to %d", b.ID, t.backends.entries-1)
	}
	if !b.Addr.IsValid() {
		return fmt.Errorf("put backend %d: address is missing", b.ID)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count()
	w := word(b.Incarnation, uint32(b.Flags|backendLive))
	old := t.backends.load(b.ID, 0)
	live := BackendFlag(low(old))&backendLive != 0
	el := at[LayoutBackend](t.backends, b.ID)
	same := high(old) == b.Incarnation && el.Addr == addrOf(b.Addr) && el.Port == portOf(b.Port) && el.Proto == b.Protocol
	if !live || !same {
		t.backends.store(b.ID, 0, 0)
		el.Addr, el.Port, el.Proto = addrOf(b.Addr), portOf(b.Port), b.Protocol
	}
	t.backends.store(b.ID, 0, w)
	if !live {
		t.liveBackends++
	}
	return nil
}

// DeleteBackend clears a backend's word; no set names it any more. An id that is not in use is no error.
func (t *Services) DeleteBackend(id uint32) error {
	if id == 0 || id >= t.backends.entries {
		return fmt.Errorf("delete backend %d: id out of range, 1 to %d", id, t.backends.entries-1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count()
	if BackendFlag(low(t.backends.load(id, 0)))&backendLive != 0 {
		t.liveBackends--
	}
	t.backends.store(id, 0, 0)
	return nil
}

// Backend returns the backend with an id.
func (t *Services) Backend(id uint32) (Backend, bool) {
	if id == 0 || id >= t.backends.entries {
		return Backend{}, false
	}
	w := t.backends.load(id, 0)
	if BackendFlag(low(w))&backendLive == 0 {
		return Backend{}, false
	}
	el := at[LayoutBackend](t.backends, id)
	return Backend{
		ID:          id,
		Incarnation: high(w),
		Flags:       BackendFlag(low(w)) &^ backendLive,
		Addr:        el.Addr.Addr(),
		Port:        portFrom(el.Port),
		Protocol:    el.Proto,
	}, true
}

// Backends returns every live backend in the order of ids.
func (t *Services) Backends() ([]Backend, error) {
	var all []Backend
	for id := uint32(1); id < t.backends.entries; id++ {
		if b, ok := t.Backend(id); ok {
			all = append(all, b)
		}
	}
	return all, nil
}

// WriteSlots writes backend ids into slots that no set in use names. No system call.
func (t *Services) WriteSlots(offset uint32, ids []uint32) error {
	if uint64(offset)+uint64(len(ids)) > uint64(t.SlotCapacity()) {
		t.fail(&t.failedSlots)
		return fmt.Errorf("write slots %d to %d: %w (%d slots)", offset, uint64(offset)+uint64(len(ids)), ErrFull, t.SlotCapacity())
	}
	for i, id := range ids {
		slot := offset + uint32(i)
		atomic.StoreUint32(t.slots.word32(slot/2, slot%2*4), id)
	}
	return nil
}

// Slots returns what WriteSlots wrote into a range.
func (t *Services) Slots(offset, length uint32) ([]uint32, error) {
	if uint64(offset)+uint64(length) > uint64(t.SlotCapacity()) {
		return nil, fmt.Errorf("read slots %d to %d: out of range, 0 to %d", offset, uint64(offset)+uint64(length), t.SlotCapacity())
	}
	ids := make([]uint32, length)
	for i := range ids {
		slot := offset + uint32(i)
		ids[i] = atomic.LoadUint32(t.slots.word32(slot/2, slot%2*4))
	}
	return ids, nil
}

// SetSlotsUsed tells how many slots are reserved: whoever hands out the ranges knows, and Uses shows it.
func (t *Services) SetSlotsUsed(n uint32) { t.slotsUsed.Store(uint64(n)) }

// Grace returns when every program that ran while it was called has ended: from then on nobody reads what was unlinked before. It blocks
// for some ten milliseconds and costs no lock.
func (t *Services) Grace() error {
	if err := t.grace(); err != nil {
		return fmt.Errorf("wait for a grace period: %w", err)
	}
	return nil
}

// Byte offsets of the words of struct service.
const (
	serviceCluster  = 0
	serviceLocal    = 8
	serviceConfig   = 16
	serviceIdentity = 24
)

// count reads use from the maps once; the lock is held.
func (t *Services) count() {
	if t.counted {
		return
	}
	t.counted = true
	for id := uint32(1); id < t.services.entries; id++ {
		if high(t.services.load(id, serviceIdentity)) != 0 {
			t.liveServices++
		}
	}
	for id := uint32(1); id < t.backends.entries; id++ {
		if BackendFlag(low(t.backends.load(id, 0)))&backendLive != 0 {
			t.liveBackends++
		}
	}
}

func (t *Services) fail(n *uint64) {
	t.mu.Lock()
	*n++
	t.mu.Unlock()
}

func frontendKeyOf(k FrontendKey) LayoutFrontendKey {
	return LayoutFrontendKey{Addr: addrOf(k.Addr), Port: portOf(k.Port), Proto: k.Protocol}
}

// String returns "address:port/protocol".
func (k LayoutFrontendKey) String() string {
	return FrontendKey{Addr: k.Addr.Addr(), Port: portFrom(k.Port), Protocol: k.Proto}.String()
}
