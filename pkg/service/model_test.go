// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/pkg/bpf"
)

var errFault = errors.New("injected fault")

// model is the service maps and the ids as an array of words and a few hashes, with a program's eyes: after every single write it can
// be looked at, and every write can fail.
type model struct {
	frontendCap, slotCap uint32
	serviceCap           uint32
	backendCap           uint32

	frontends map[bpf.FrontendKey]bpf.Frontend
	ips       map[netip.Addr]uint32
	services  map[uint32]bpf.Service
	backends  map[uint32]bpf.Backend // live ones
	slots     []uint32
	ranges    map[uint32]map[netip.Prefix]bool // source ranges by set
	rangeCap  int                              // prefixes in all sets
	cidrs     map[netip.Prefix]bool

	ids     map[bpf.IDKind]map[bpf.Signature]bpf.ID
	free    map[bpf.IDKind][]uint32
	next    map[bpf.IDKind]uint32
	counter map[bpf.IDKind]uint32

	fault  func(what string) error // before a write
	after  func(what string)       // after each word or entry
	grace  func() error
	broken func(why string) // a call that no order of writes allows
	writes int
	names  map[netip.AddrPort]string // of backends: to write them anew after every write takes long
	used   uint32
}

func newModel() *model {
	m := &model{
		frontendCap: 1 << 20, slotCap: 1 << 16, serviceCap: 1 << 12, backendCap: 1 << 14,
		frontends: map[bpf.FrontendKey]bpf.Frontend{},
		ips:       map[netip.Addr]uint32{},
		services:  map[uint32]bpf.Service{},
		backends:  map[uint32]bpf.Backend{},
		slots:     make([]uint32, 1<<16),
		ranges:    map[uint32]map[netip.Prefix]bool{},
		rangeCap:  1 << 10,
		cidrs:     map[netip.Prefix]bool{},
		ids:       map[bpf.IDKind]map[bpf.Signature]bpf.ID{bpf.IDService: {}, bpf.IDBackend: {}, bpf.IDSourceRange: {}},
		free:      map[bpf.IDKind][]uint32{},
		names:     map[netip.AddrPort]string{},
		next:      map[bpf.IDKind]uint32{},
		counter:   map[bpf.IDKind]uint32{},
		fault:     func(string) error { return nil },
		after:     func(string) {},
		grace:     func() error { return nil },
		broken:    func(why string) { panic(why) },
	}
	return m
}

func (m *model) do(what string, words ...func()) error {
	if err := m.fault(what); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, w := range words {
		w()
		m.writes++
		m.after(what)
	}
	return nil
}

func (m *model) FrontendCapacity() uint32 { return m.frontendCap }
func (m *model) SlotCapacity() uint32     { return m.slotCap }
func (m *model) SetSlotsUsed(n uint32)    { m.used = n }
func (m *model) Grace() error             { return m.grace() }

func (m *model) PutFrontend(f bpf.Frontend) error {
	if _, ok := m.frontends[f.FrontendKey]; !ok && uint32(len(m.frontends)) >= m.frontendCap {
		return fmt.Errorf("put frontend %s: %w", f.FrontendKey, bpf.ErrFull)
	}
	return m.do("put frontend", func() { m.frontends[f.FrontendKey] = f })
}

func (m *model) DeleteFrontend(k bpf.FrontendKey) error {
	return m.do("delete frontend", func() { delete(m.frontends, k) })
}

func (m *model) Frontends() ([]bpf.Frontend, error) {
	return slices.SortedFunc(maps.Values(m.frontends), func(a, b bpf.Frontend) int { return compareFrontends(a.FrontendKey, b.FrontendKey) }), nil
}

func (m *model) PutClusterIP(a netip.Addr, n uint32) error {
	return m.do("put cluster IP", func() { m.ips[a] = n })
}

func (m *model) DeleteClusterIP(a netip.Addr) error {
	return m.do("delete cluster IP", func() { delete(m.ips, a) })
}

func (m *model) ClusterIPs() (map[netip.Addr]uint32, error) { return maps.Clone(m.ips), nil }

func (m *model) Flip(id uint32, s bpf.Service) error {
	if id == 0 || id > m.serviceCap || s.Incarnation == 0 || s.ID != id {
		panic(fmt.Sprintf("flip service %d: %+v", id, s))
	}
	word := func(f func(w *bpf.Service)) func() {
		return func() {
			w := m.services[id]
			f(&w)
			m.services[id] = w
		}
	}
	return m.do("flip", word(func(w *bpf.Service) {
		if w.Incarnation != s.Incarnation {
			w.Incarnation = 0
		}
	}), word(func(w *bpf.Service) { w.Flags, w.AffinitySeconds = s.Flags, s.AffinitySeconds }),
		word(func(w *bpf.Service) { w.Local = s.Local }),
		word(func(w *bpf.Service) { w.Cluster = s.Cluster }),
		word(func(w *bpf.Service) { w.ID, w.Incarnation, w.SourceRange = id, s.Incarnation, s.SourceRange }))
}

func (m *model) DeleteService(id uint32) error {
	return m.do("delete service", func() { delete(m.services, id) })
}

func (m *model) Services() ([]bpf.Service, error) {
	var all []bpf.Service
	for _, s := range m.services {
		if s.Incarnation != 0 {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b bpf.Service) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

func (m *model) PutBackend(b bpf.Backend) error {
	if b.ID == 0 || b.ID > m.backendCap || b.Incarnation == 0 || !b.Addr.IsValid() || b.Protocol == 0 {
		panic(fmt.Sprintf("put backend %+v", b))
	}
	old, live := m.backends[b.ID]
	var words []func()
	if live && (old.Incarnation != b.Incarnation || old.Addr != b.Addr || old.Port != b.Port || old.Protocol != b.Protocol) {
		words = append(words, func() { delete(m.backends, b.ID) })
	}
	return m.do("put backend", append(words, func() { m.backends[b.ID] = b })...)
}

func (m *model) DeleteBackend(id uint32) error {
	return m.do("delete backend", func() { delete(m.backends, id) })
}

func (m *model) Backend(id uint32) (bpf.Backend, bool) {
	b, ok := m.backends[id]
	return b, ok
}

func (m *model) Backends() ([]bpf.Backend, error) {
	return slices.SortedFunc(maps.Values(m.backends), func(a, b bpf.Backend) int { return cmp.Compare(a.ID, b.ID) }), nil
}

func (m *model) WriteSlots(offset uint32, ids []uint32) error {
	if uint64(offset)+uint64(len(ids)) > uint64(m.slotCap) {
		panic("write slots out of range")
	}
	var words []func()
	for i, id := range ids {
		words = append(words, func() { m.slots[offset+uint32(i)] = id })
	}
	return m.do("write slots", words...)
}

func (m *model) Slots(offset, length uint32) ([]uint32, error) {
	return slices.Clone(m.slots[offset : offset+length]), nil
}

func (m *model) Acquire(kind bpf.IDKind, description string) (bpf.ID, error) {
	sig := bpf.Sign(description)
	if id, ok := m.ids[kind][sig]; ok {
		return id, nil
	}
	limit := m.serviceCap // of sets too
	if kind == bpf.IDBackend {
		limit = m.backendCap
	}
	if len(m.free[kind]) == 0 && m.next[kind] >= limit {
		return bpf.ID{}, fmt.Errorf("acquire id: %w", bpf.ErrFull)
	}
	var id bpf.ID
	err := m.do("acquire id", func() {
		m.counter[kind]++
		id.Incarnation = m.counter[kind]
		if f := m.free[kind]; len(f) > 0 {
			id.ID, m.free[kind] = f[0], f[1:]
		} else {
			m.next[kind]++
			id.ID = m.next[kind]
		}
		m.ids[kind][sig] = id
	})
	return id, err
}

func (m *model) Find(kind bpf.IDKind, description string) (bpf.ID, bool, error) {
	id, ok := m.ids[kind][bpf.Sign(description)]
	return id, ok, nil
}

func (m *model) ReleaseSignature(kind bpf.IDKind, sig bpf.Signature) error {
	id, ok := m.ids[kind][sig]
	if !ok {
		return nil
	}
	if b := m.backends[id.ID]; kind == bpf.IDBackend && b.Incarnation == id.Incarnation {
		m.broken(fmt.Sprintf("release id %v of a live backend", id))
	}
	if w := m.services[id.ID]; kind == bpf.IDService && w.Incarnation == id.Incarnation {
		m.broken(fmt.Sprintf("release id %v of a live service", id))
	}
	if kind == bpf.IDSourceRange && (len(m.ranges[id.ID]) > 0 || m.named(id.ID)) {
		m.broken(fmt.Sprintf("release id %v of a source range set that is there or in use", id))
	}
	return m.do("release id", func() {
		delete(m.ids[kind], sig)
		// Reuse as soon as possible: that is where mistakes show.
		m.free[kind] = append([]uint32{id.ID}, m.free[kind]...)
	})
}

func (m *model) List(kind bpf.IDKind) ([]bpf.Interned, error) {
	var all []bpf.Interned
	for sig, id := range m.ids[kind] {
		all = append(all, bpf.Interned{Signature: sig, ID: id})
	}
	slices.SortFunc(all, func(a, b bpf.Interned) int { return cmp.Compare(a.ID.ID, b.ID.ID) })
	return all, nil
}

func (m *model) PutSourceRange(set uint32, p netip.Prefix) error {
	if set == 0 || p != p.Masked() {
		panic(fmt.Sprintf("put source range %s of set %d", p, set))
	}
	n := 0
	for _, r := range m.ranges {
		n += len(r)
	}
	if n >= m.rangeCap && !m.ranges[set][p] {
		return fmt.Errorf("put source range %s of set %d: %w", p, set, bpf.ErrFull)
	}
	if m.named(set) {
		m.broken(fmt.Sprintf("put source range %s of set %d, which is in use", p, set))
	}
	return m.do("put source range", func() {
		if m.ranges[set] == nil {
			m.ranges[set] = map[netip.Prefix]bool{}
		}
		m.ranges[set][p] = true
	})
}

func (m *model) DeleteSourceRange(set uint32, p netip.Prefix) error {
	if m.named(set) {
		m.broken(fmt.Sprintf("delete source range %s of set %d, which is in use", p, set))
	}
	return m.do("delete source range", func() {
		delete(m.ranges[set], p)
		if len(m.ranges[set]) == 0 {
			delete(m.ranges, set)
		}
	})
}

func (m *model) SourceRanges() (map[uint32][]netip.Prefix, error) {
	all := map[uint32][]netip.Prefix{}
	for set, r := range m.ranges {
		all[set] = slices.SortedFunc(maps.Keys(r), comparePrefixes)
	}
	return all, nil
}

// named says whether a service names a set of source ranges.
func (m *model) named(set uint32) bool {
	for _, s := range m.services {
		if s.Incarnation != 0 && s.SourceRange == set {
			return true
		}
	}
	return false
}

// clients says whom a set of source ranges lets in.
func (m *model) clients(set uint32) string {
	if set == 0 {
		return "everybody"
	}
	var all []string
	for p := range m.ranges[set] {
		all = append(all, p.String())
	}
	if len(all) == 0 {
		return "nobody"
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (m *model) PutServiceCIDR(p netip.Prefix) error {
	return m.do("put service CIDR", func() { m.cidrs[p] = true })
}

func (m *model) DeleteServiceCIDR(p netip.Prefix) error {
	return m.do("delete service CIDR", func() { delete(m.cidrs, p) })
}

func (m *model) ServiceCIDRs() ([]netip.Prefix, error) {
	return slices.SortedFunc(maps.Keys(m.cidrs), comparePrefixes), nil
}

// set says what choosing from a set gives: its backends, or its verdict. What a program must never find is said in words that no oracle
// uses.
func (m *model) set(s bpf.Set) string {
	if s.Length == 0 {
		return verdictName(s.Verdict)
	}
	members := make([]string, 0, s.Length)
	for _, id := range m.slots[s.Offset : s.Offset+s.Length] {
		b, ok := m.backends[id]
		if !ok {
			return fmt.Sprintf("slot names dead backend %d", id)
		}
		at := netip.AddrPortFrom(b.Addr, b.Port)
		name, ok := m.names[at]
		if !ok {
			name = at.String()
			m.names[at] = name
		}
		members = append(members, name)
	}
	slices.Sort(members)
	for i := range members[1:] {
		if members[i] == members[i+1] {
			return "slot names a backend twice"
		}
	}
	return strings.Join(members, " ")
}

// outcome is what a program finds at a frontend, or at a service.
type outcome struct {
	Cluster, Local string // members, or the verdict
	Config         config
	Clients        string // of load balancer addresses
}

// config is the word beside the sets.
type config struct {
	flags    bpf.ServiceFlag
	affinity int
}

// nothing is the config of what is not there.
var nothing = config{affinity: -1}

// absent is the outcome at a frontend that is not there.
var absent = outcome{"absent", "absent", nothing, "absent"}

func (m *model) service(id uint32) outcome {
	s, ok := m.services[id]
	if !ok || s.Incarnation == 0 {
		return outcome{"dead service", "dead service", nothing, "dead service"}
	}
	return outcome{m.set(s.Cluster), m.set(s.Local), config{s.Flags, int(s.AffinitySeconds)}, m.clients(s.SourceRange)}
}

func (m *model) frontend(k bpf.FrontendKey) outcome {
	f, ok := m.frontends[k]
	if !ok {
		return absent
	}
	return m.service(f.Service)
}
