// SPDX-License-Identifier: Apache-2.0

package service

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/pkg/bpf"
	"github.com/fairlead/fairlead/pkg/cluster"
	"github.com/fairlead/fairlead/pkg/reconcile"
)

var (
	propertySeed = flag.Uint64("seed", 0, "run the random worlds of this seed only")
	propertyRuns = flag.Int("worlds", 24, "number of random worlds")
)

// meaning is what a backend is.
type meaning struct {
	addr     netip.AddrPort
	protocol uint8
}

func (m meaning) String() string { return fmt.Sprintf("%s/%d", m.addr, m.protocol) }

// crash is what a killed agent looks like from inside: it stops at a write, and nothing is cleaned up.
type crash struct{}

// trial drives a Proxy through one random history and looks at the maps, as a program would, after every write.
type trial struct {
	t     *testing.T
	rand  *rand.Rand
	m     *model
	w     *world
	proxy *Proxy
	now   time.Time

	faults  int // per cent of writes and stages that fail
	crashes int // in ten thousand: writes after which the agent is killed
	log     []string

	// What a program may find since the last event, by frontend: what it found before, and what it should find now.
	old    map[bpf.FrontendKey]outcome
	target expected
	former map[Key]outcome             // of the services that the frontends should lead to
	left   map[bpf.FrontendKey]outcome // what is right now for the service that a frontend led to before
	seen   map[bpf.FrontendKey][4]bool
	last   map[bpf.FrontendKey]glance

	readers []*reader
	holders []*holder
	choices []bpf.ID
	meaning map[bpf.ID]meaning // what a backend id and incarnation meant first
	stats   struct{ writes, crashes, faults, readers, batches int }
}

// glance is what a program found at a frontend.
type glance struct {
	service uint32
	outcome outcome
}

// reader is a program that is slow: between its reads anything may be written, but no grace period ends before it does.
type reader struct {
	key     bpf.FrontendKey
	local   bool
	step    int
	service uint32
	set     bpf.Set
	ranges  uint32 // set of source ranges
	clients string // that it lets in
	slot    uint32
	allowed []string // sets that it may have read
	pace    int      // one read in so many writes
}

// holder is a program that has an id from a flow, from affinity or from a socket: it compares the incarnation, then reads the address.
type holder struct {
	id    bpf.ID
	found bool // the incarnation was right
	pace  int
}

func TestRandomHistories(t *testing.T) {
	if *propertySeed != 0 {
		history(t, *propertySeed)
		return
	}
	for i := range *propertyRuns {
		seed := uint64(i + 1)
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			history(t, seed)
		})
	}
}

func history(t *testing.T, seed uint64) {
	r := &trial{
		t: t, rand: rand.New(rand.NewPCG(seed, 1)), m: newModel(), w: newWorld("here"), now: time.Unix(1000, 0),
		faults: 10, crashes: 20, meaning: map[bpf.ID]meaning{},
	}
	if seed%4 == 3 {
		r.m.frontendCap, r.m.slotCap, r.m.backendCap, r.m.serviceCap, r.m.rangeCap = 14, 96, 80, 24, 4 // some of it fills up
	}
	if seed%7 == 0 {
		r.faults, r.crashes = 0, 0
	}
	r.m.fault = func(string) error { return r.maybe("write") }
	r.m.after = r.look
	r.m.broken = func(why string) { r.fatalf("%s", why) }
	r.m.grace = func() error {
		if err := r.maybe("grace"); err != nil {
			return err
		}
		for _, x := range r.readers {
			for x.step < 5 {
				r.read(x)
			}
		}
		for _, x := range r.holders {
			r.hold(x)
			r.hold(x)
		}
		r.readers, r.holders = nil, nil
		return nil
	}
	r.start()
	for range 120 {
		r.event()
		for r.rand.IntN(3) > 0 {
			r.wait()
		}
		if r.rand.IntN(12) == 0 {
			r.restart("clean")
		}
	}
	if seed%4 != 3 {
		r.settle()
		r.compareAll()
		// A restart with nothing new writes nothing.
		r.restart("clean")
		r.settle()
		r.compareAll()
	}
	var gone cluster.Batch
	for _, c := range r.w.all().Changes {
		if c.Kind != cluster.NodeKind {
			gone.Changes = append(gone.Changes, cluster.Change{Kind: c.Kind, Key: c.Key})
		}
	}
	r.apply(gone)
	r.settle()
	r.compareAll()
	m := r.m
	if n := len(m.frontends) + len(m.ips) + len(m.services) + len(m.backends) + len(m.ids[bpf.IDService]) + len(m.ids[bpf.IDBackend]) +
		len(m.ids[bpf.IDSourceRange]) + len(m.ranges); n != 0 {
		r.fatalf("left behind: %v %v %v %v %v %v", m.frontends, m.ips, m.services, m.backends, m.ids, m.ranges)
	}
	if s := r.proxy; s.space.used != 0 || len(s.space.starts) != 1 || len(s.ports) != 0 || len(s.frontends) != 0 || len(s.ips) != 0 || len(s.ranges) != 0 ||
		s.placed != 0 {
		r.fatalf("not forgotten: %+v %d slots in %d free ranges, %d ports, %d frontends, %d IPs, %d placed", portNames(s), s.space.used, len(s.space.starts),
			len(s.ports), len(s.frontends), len(s.ips), s.placed)
	}
	t.Logf("%+v", r.stats)
}

func (r *trial) fatalf(format string, args ...any) {
	r.t.Helper()
	tail := r.log
	if len(tail) > 60 {
		tail = tail[len(tail)-60:]
	}
	r.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(tail, "\n"))
}

func (r *trial) logf(format string, args ...any) { r.log = append(r.log, fmt.Sprintf(format, args...)) }

func (r *trial) maybe(what string) error {
	if r.rand.IntN(100) < r.faults {
		r.stats.faults++
		r.logf("  fault: %s", what)
		return errFault
	}
	return nil
}

// start makes an agent that knows nothing and feeds it the world.
func (r *trial) start() {
	for {
		p, err := New(Config{
			Node: "here", Tables: r.m, IDs: r.m,
			Fault: func(s reconcile.Stage, name string) error {
				if r.rand.IntN(5) > 0 {
					return nil
				}
				return r.maybe(s.String() + " " + name)
			},
			Now: func() time.Time { return r.now },
		})
		if err != nil {
			r.fatalf("new: %v", err)
		}
		r.proxy = p
		// In any order and in pieces; nothing may be written before the last one.
		b := r.w.all()
		r.rand.Shuffle(len(b.Changes), func(i, j int) { b.Changes[i], b.Changes[j] = b.Changes[j], b.Changes[i] })
		before := r.m.writes
		n := r.rand.IntN(len(b.Changes) + 1)
		p.Apply(cluster.Batch{Changes: b.Changes[:n]})
		p.Apply(cluster.Batch{Changes: b.Changes[n:], Synced: b.Synced[:2]})
		if len(r.w.nodes) == 0 && r.m.writes != before {
			r.fatalf("%d writes before the gate", r.m.writes-before)
		}
		if r.guard(func() { p.Apply(cluster.Batch{Synced: b.Synced}) }) {
			return
		}
	}
}

// guard runs f as an agent that may be killed. False when it was.
func (r *trial) guard(f func()) (alive bool) {
	defer func() {
		if x := recover(); x != nil {
			if _, ok := x.(crash); !ok {
				r.logf("panic: %v", x)
				fmt.Println(strings.Join(r.log, "\n"))
				panic(x)
			}
			r.stats.crashes++
			r.logf("killed")
		}
	}()
	f()
	return true
}

// restart replaces the agent; the maps stay.
func (r *trial) restart(how string) {
	r.logf("restart: %s", how)
	r.expect()
	r.start()
}

// apply makes an event happen: from now on a program may find what it found before, or what is right after the event.
func (r *trial) apply(b cluster.Batch) {
	r.stats.batches++
	r.w.apply(b)
	r.expect()
	r.logf("batch: %s", describe(b))
	if !r.guard(func() { r.proxy.Apply(b) }) {
		r.restart("killed")
	}
}

// expect notes what a program finds now, and what it should.
func (r *trial) expect() {
	e := r.w.oracle()
	r.old, r.former, r.seen = map[bpf.FrontendKey]outcome{}, map[Key]outcome{}, map[bpf.FrontendKey][4]bool{}
	r.left, r.last = map[bpf.FrontendKey]outcome{}, map[bpf.FrontendKey]glance{}
	for k := range r.m.frontends {
		r.old[k] = r.m.frontend(k)
		if s := fmt.Sprint(r.old[k]); strings.Contains(s, "dead") || strings.Contains(s, "twice") {
			r.fatalf("frontend %s gives %s", k, s)
		}
	}
	for k, want := range e.services {
		if id, ok := r.m.ids[bpf.IDService][bpf.Sign(k.description())]; ok {
			if s := r.m.services[id.ID]; s.Incarnation == id.Incarnation {
				r.former[k] = r.m.service(id.ID)
			}
			for f, at := range r.m.frontends {
				if at.Service == id.ID {
					r.left[f] = want
				}
			}
		}
	}
	r.target = e
}

// wait lets time pass and does what is due.
func (r *trial) wait() {
	r.now = r.now.Add(time.Duration(r.rand.IntN(1500)) * time.Millisecond)
	r.logf("wait until %d ms", r.now.UnixMilli())
	if !r.guard(func() { _ = r.proxy.tend() }) {
		r.restart("killed")
	}
}

// settle waits without faults until nothing is left to do.
func (r *trial) settle() {
	faults, crashes := r.faults, r.crashes
	r.faults, r.crashes = 0, 0
	defer func() { r.faults, r.crashes = faults, crashes }()
	for i := 0; ; i++ {
		if _, busy := r.proxy.next(); !busy {
			return
		}
		if i == 50 {
			r.fatalf("not settled: %+v, %v", r.proxy.Stats(), r.proxy.Conditions())
		}
		r.now = r.now.Add(time.Minute)
		if err := r.proxy.tend(); err != nil {
			r.fatalf("tend: %v", err)
		}
	}
}

// compareAll holds the whole maps against the oracle.
func (r *trial) compareAll() {
	r.t.Helper()
	for k, want := range r.target.frontends {
		if got := r.m.frontend(k); got != want {
			r.fatalf("frontend %s is %+v, want %+v\n%v", k, got, want, r.proxy.Conditions())
		}
	}
	for k := range r.m.frontends {
		if _, ok := r.target.frontends[k]; !ok {
			r.fatalf("frontend %s should not be there", k)
		}
	}
	if got, want := fmt.Sprint(r.m.ips), fmt.Sprint(r.target.ips); got != want {
		r.fatalf("cluster IPs are %s, want %s", got, want)
	}
	for k, want := range r.target.services {
		id := r.m.ids[bpf.IDService][bpf.Sign(k.description())]
		if got := r.m.service(id.ID); got != want {
			r.fatalf("service %s is %+v, want %+v", k, got, want)
		}
	}
	sets := map[string]bool{}
	for set := range r.m.ranges {
		if is := r.m.clients(set); sets[is] || !r.m.named(set) {
			r.fatalf("source range set %d of %s is there twice, or nobody has it", set, is)
		} else {
			sets[is] = true
		}
	}
	if n := len(r.m.ids[bpf.IDSourceRange]); n != len(sets) {
		r.fatalf("%d ids of %d source range sets", n, len(sets))
	}
	var used uint32
	for _, s := range r.m.services {
		used += (s.Cluster.Length+1)&^1 + (s.Local.Length+1)&^1
	}
	if used != r.proxy.space.used {
		r.fatalf("%d slots reserved, %d in use", r.proxy.space.used, used)
	}
}

// look is the invariant. It runs after every write.
func (r *trial) look(what string) {
	r.stats.writes++
	r.log = append(r.log, "  "+what)
	for k := range r.m.frontends {
		r.lookAt(k)
	}
	for k := range r.old {
		r.lookAt(k)
	}
	for _, b := range r.m.backends {
		is := meaning{netip.AddrPortFrom(b.Addr, b.Port), b.Protocol}
		id := bpf.ID{ID: b.ID, Incarnation: b.Incarnation}
		if was, ok := r.meaning[id]; ok && was != is {
			r.fatalf("backend %v meant %v and means %v", id, was, is)
		}
		r.meaning[id] = is
	}
	for range 2 {
		if len(r.readers) < 8 && len(r.m.frontends) > 0 && r.rand.IntN(3) == 0 {
			all, _ := r.m.Frontends()
			r.readers = append(r.readers, &reader{key: all[r.rand.IntN(len(all))].FrontendKey, local: r.rand.IntN(2) == 0, pace: 1 + r.rand.IntN(40)})
			r.stats.readers++
		}
		if len(r.holders) < 16 && r.rand.IntN(4) == 0 {
			if id, ok := r.chosen(); ok {
				r.holders = append(r.holders, &holder{id: id, pace: 1 + r.rand.IntN(40)})
				r.stats.readers++
			}
		}
	}
	for _, x := range r.readers {
		if r.rand.IntN(x.pace) == 0 {
			r.read(x)
		}
	}
	for _, x := range r.holders {
		if r.rand.IntN(x.pace) == 0 {
			r.hold(x)
		}
	}
	r.holders = slices.DeleteFunc(r.holders, func(x *holder) bool { return x.id == bpf.ID{} })
	r.readers = slices.DeleteFunc(r.readers, func(x *reader) bool { return x.step == 5 })
	if r.rand.IntN(10000) < r.crashes {
		panic(crash{})
	}
}

// lookAt checks what a program finds at one frontend: all of the old state or all of the new, word by word, and never the old one again
// once it was the new one. Where the frontend moves from one service to another, it may find the new state of the one before it moves,
// and the old state of the other one when that could not be changed yet.
func (r *trial) lookAt(k bpf.FrontendKey) {
	got := r.m.frontend(k)
	now := glance{r.m.frontends[k].Service, got}
	if last, ok := r.last[k]; ok && last == now {
		return // checked already
	}
	r.last[k] = now
	old, ok := r.old[k]
	if !ok {
		old = absent
	}
	want, ok := r.target.frontends[k]
	if !ok {
		want = absent
	}
	former, ok := r.former[r.target.owner[k]]
	if !ok {
		former = want
	}
	left, ok := r.left[k]
	if !ok {
		left = want
	}
	// The same words by chance at another service are not the new state.
	there := r.m.frontends[k].Service == r.m.ids[bpf.IDService][bpf.Sign(r.target.owner[k].description())].ID
	seen := r.seen[k]
	for i, part := range [4][5]any{
		{got.Cluster, old.Cluster, want.Cluster, former.Cluster, left.Cluster},
		{got.Local, old.Local, want.Local, former.Local, left.Local},
		{got.Config, old.Config, want.Config, former.Config, left.Config},
		{got.Clients, old.Clients, want.Clients, former.Clients, left.Clients},
	} {
		switch {
		case part[0] == part[2]:
			seen[i] = seen[i] || there
		case seen[i]:
			r.fatalf("frontend %s went back to %v from %v", k, part[0], part[2])
		case part[0] != part[1] && part[0] != part[3] && part[0] != part[4]:
			r.fatalf("frontend %s gives %v; before %v, wanted %v", k, part[0], part[1], part[2])
		}
	}
	r.seen[k] = seen
}

// chosen returns a backend as a program chooses it, or one that it chose before.
func (r *trial) chosen() (bpf.ID, bool) {
	all, _ := r.m.Frontends()
	if len(all) > 0 {
		set := r.m.services[all[r.rand.IntN(len(all))].Service].Cluster
		if set.Length > 0 {
			b := r.m.backends[r.m.slots[set.Offset+uint32(r.rand.IntN(int(set.Length)))]]
			r.choices = append(r.choices, bpf.ID{ID: b.ID, Incarnation: b.Incarnation})
		}
	}
	if len(r.choices) == 0 {
		return bpf.ID{}, false
	}
	recent := r.choices[max(0, len(r.choices)-50):]
	return recent[r.rand.IntN(len(recent))], true
}

// hold lets a holder do its next read. An element that is cleared keeps its address until it is written again.
func (r *trial) hold(x *holder) {
	b, live := r.m.backends[x.id.ID]
	switch {
	case x.id == bpf.ID{}:
	case !x.found && live && b.Incarnation == x.id.Incarnation:
		x.found = true
	case !x.found:
		x.id = bpf.ID{} // it chooses anew
	default:
		if is := (meaning{netip.AddrPortFrom(b.Addr, b.Port), b.Protocol}); live && is != r.meaning[x.id] {
			r.fatalf("a holder of backend %v, %v, came to %v", x.id, r.meaning[x.id], is)
		}
		x.id = bpf.ID{}
	}
}

// read lets a slow reader do its next read.
func (r *trial) read(x *reader) {
	switch x.step {
	case 0:
		f, ok := r.m.frontends[x.key]
		if !ok {
			x.step = 4 // nobody is there
			break
		}
		x.service = f.Service
	case 1:
		s, ok := r.m.services[x.service]
		if !ok || s.Incarnation == 0 {
			r.fatalf("a reader of frontend %s came to service %d, which is gone", x.key, x.service)
		}
		x.ranges, x.clients = s.SourceRange, r.m.clients(s.SourceRange)
		x.set = s.Cluster
		if x.local {
			x.set = s.Local
		}
		x.allowed = strings.Fields(r.m.set(x.set))
		if x.set.Length == 0 {
			x.step = 4
		}
	case 2:
		if got := r.m.clients(x.ranges); got != x.clients {
			r.fatalf("a reader of frontend %s came to source range set %d of %q, which lets in %q", x.key, x.ranges, x.clients, got)
		}
		x.slot = r.m.slots[x.set.Offset+uint32(r.rand.IntN(int(x.set.Length)))]
	case 3:
		b, ok := r.m.backends[x.slot]
		at := netip.AddrPortFrom(b.Addr, b.Port).String()
		if !ok || !slices.Contains(x.allowed, at) {
			r.fatalf("a reader of frontend %s came to backend %d, %s, of a set of %q", x.key, x.slot, at, x.allowed)
		}
	}
	x.step++
}

func portNames(s *Proxy) (all []string) {
	for _, p := range s.ports {
		all = append(all, fmt.Sprintf("%s id=%v installed=%v want=%v leaving=%d backends=%d frontends=%d", p.name(), p.id, p.installed, p.want != nil, p.leaving,
			len(p.backends), p.frontends))
	}
	return all
}
