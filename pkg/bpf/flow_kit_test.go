// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// flowKit is a flow table that nobody else uses, with testdata/table.c and sweep.c over it.
type flowKit struct {
	t       testing.TB
	flows   *Flows
	table   *ebpf.Collection
	sweep   *ebpf.Collection
	results *mapped
	places  *mapped
	turns   *mapped
}

func newFlowKit(t testing.TB, slots uint32) *flowKit {
	t.Helper()
	k := &flowKit{t: t}
	lines, buckets := flowLines(slots)
	load := func(read func() (*ebpf.CollectionSpec, error), shared map[string]*ebpf.Map) *ebpf.Collection {
		spec, err := read()
		if err != nil {
			t.Fatal(err)
		}
		spec.Maps[LayoutMapFlowSlots].MaxEntries = slots
		spec.Maps[LayoutMapFlowBuckets].MaxEntries = lines
		if plain, ok := spec.Maps["plain"]; ok {
			plain.MaxEntries = slots
		}
		if err := spec.Variables[LayoutVarCfg].Set(Config{flowBuckets: buckets, flowSlots: slots}.layout()); err != nil {
			t.Fatal(err)
		}
		replace := map[string]*ebpf.Map{}
		for name := range spec.Maps {
			if m, ok := shared[name]; ok {
				replace[name] = m
			}
		}
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
		if err != nil {
			var v *ebpf.VerifierError
			if errors.As(err, &v) {
				t.Fatalf("%v\n%+v", err, v)
			}
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	memory := func(name string) *mapped {
		m, err := mapArray(name, k.table.Maps[name])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.close(); err != nil {
				t.Error(err)
			}
		})
		return m
	}
	k.table = load(LoadTable, nil)
	shared := map[string]*ebpf.Map{}
	for _, name := range []string{LayoutMapFlowBuckets, LayoutMapFlowSlots, LayoutMapCounters, LayoutMapDrops} {
		shared[name] = k.table.Maps[name]
	}
	k.sweep = load(LoadSweep, shared)
	k.results, k.places, k.turns = memory("results"), memory("places"), memory("turns")
	var err error
	if k.flows, err = openFlows(memory(LayoutMapFlowBuckets), memory(LayoutMapFlowSlots)); err != nil {
		t.Fatal(err)
	}
	return k
}

// run runs one program of testdata/table.c on this thread and returns its answer and what it counted.
func (k *flowKit) run(program string, job TableJob) (int32, TableResult) {
	k.t.Helper()
	*at[TableResult](k.results, job.Id) = TableResult{}
	frame := make([]byte, 64)
	copy(frame, unsafe.Slice((*byte)(unsafe.Pointer(&job)), unsafe.Sizeof(job)))
	answer, err := k.table.Programs[program].Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		k.t.Errorf("run %s: %v", program, err)
	}
	return int32(answer), *at[TableResult](k.results, job.Id)
}

// all runs a program over a job's flows and wants every one of them well.
func (k *flowKit) all(program string, job TableJob) {
	k.t.Helper()
	if _, r := k.run(program, job); r.Ok != uint64(job.Count) || r.Wrong != 0 || r.Missed != 0 {
		k.t.Errorf("%s %+v: %d ok, %d wrong, %d missed, refused %v", program, job, r.Ok, r.Wrong, r.Missed, r.Refused)
	}
}

// none runs a program over a job's flows and wants none of them found.
func (k *flowKit) none(program string, job TableJob) {
	k.t.Helper()
	if _, r := k.run(program, job); r.Ok != 0 || r.Missed != uint64(job.Count) {
		k.t.Errorf("%s %+v: %d found, want none", program, job, r.Ok)
	}
}

// pair runs one program on two CPUs at once, as job 0 and job 1.
func (k *flowKit) pair(program string, jobs [2]TableJob) (results [2]TableResult) {
	k.t.Helper()
	if runtime.NumCPU() < 2 {
		k.t.Skip("needs two CPUs")
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		k.t.Fatal(err)
	}
	var both []int
	for cpu := 0; len(both) < 2 && cpu < 1024; cpu++ {
		if cpus.IsSet(cpu) {
			both = append(both, cpu)
		}
	}
	for i := range uint32(2) {
		k.turns.store(i, 0, 0)
	}
	var wg sync.WaitGroup
	var ready atomic.Int32
	for i, job := range jobs {
		job.Id = uint32(i)
		wg.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its affinity with it
			var one unix.CPUSet
			one.Set(both[i])
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				k.t.Error(err)
			}
			for ready.Add(1); ready.Load() < 2; {
			}
			_, results[i] = k.run(program, job)
		})
	}
	wg.Wait()
	return results
}

// race runs t_race until the two CPUs have met at every step: other processes may keep one from starting.
func (k *flowKit) race(jobs [2]TableJob) (results [2]TableResult) {
	k.t.Helper()
	for range 100 {
		if results = k.pair("t_race", jobs); results[0].Missed+results[1].Missed == 0 {
			return results
		}
		for _, job := range jobs {
			job.Shape &^= TableShapeSHAPE_REVERSED
			if _, r := k.run("t_remove", job); r.Wrong != 0 {
				k.t.Fatalf("%d flows could not be removed", r.Wrong)
			}
		}
	}
	k.t.Fatal("the two CPUs did not meet in 100 tries")
	return results
}

// counter returns one of enum counter over all CPUs.
func (k *flowKit) counter(c LayoutCounter) (sum uint64) {
	k.t.Helper()
	var each []uint64
	if err := k.table.Maps[LayoutMapCounters].Lookup(uint32(c), &each); err != nil {
		k.t.Fatal(err)
	}
	for _, n := range each {
		sum += n
	}
	return sum
}

// arm starts the sweep.
func (k *flowKit) arm() {
	k.t.Helper()
	answer, err := k.sweep.Programs["sweep_arm"].Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil || answer != 0 {
		k.t.Fatalf("arm: %d, %v", int32(answer), err)
	}
}

// swept returns the state of the timer.
func (k *flowKit) swept() (s LayoutSweep) {
	k.t.Helper()
	if err := k.sweep.Maps[LayoutMapSweepTimer].Lookup(uint32(0), &s); err != nil {
		k.t.Fatal(err)
	}
	return s
}

// passes waits until the sweep has walked the whole table n times from start to end.
func (k *flowKit) passes(n uint32) {
	k.t.Helper()
	until := k.swept().Passes + n + 1
	k.until("passes of the sweep", func() bool { return int32(k.swept().Passes-until) >= 0 })
}

// until waits for something that the kernel does by itself.
func (k *flowKit) until(what string, ok func() bool) {
	k.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			k.t.Fatalf("no %s in 20 s: %+v", what, k.swept())
		}
	}
}

// age makes a record older: its packets were that many seconds earlier.
func (k *flowKit) age(slot, seconds uint32) {
	for dir := range uint32(2) {
		seen := k.flows.slots.word32(slot, 8+4*dir)
		if old := atomic.LoadUint32(seen); old != 0 {
			if old -= seconds; old == 0 {
				old-- // 0 is "never"
			}
			atomic.StoreUint32(seen, old)
		}
	}
}

// numbered returns the live flows by the number that testdata/table.c gave them.
func (k *flowKit) numbered() map[uint32]Flow {
	all := map[uint32]Flow{}
	for f := range k.flows.All() {
		if other, twice := all[f.Service]; twice {
			k.t.Errorf("flow %d has two records: %v in slot %d, %v in slot %d", f.Service, other, other.Slot, f, f.Slot)
		}
		all[f.Service] = f
	}
	return all
}

// consistent checks the whole table while nobody writes it: every word of the index is of a live record, every live record has its words,
// every bit of the bitmap has a record.
func (k *flowKit) consistent() {
	k.t.Helper()
	words := map[uint32]int{}
	for line := range k.flows.buckets {
		for i := range uint32(8) {
			w := k.flows.index.load(1+k.flows.slots.entries/512+line, 8*i)
			if w == 0 {
				continue
			}
			slot := uint32(w & 0x7fffffff)
			record := k.flows.slots.load(slot, 0)
			if flowState(record) != LayoutFlowStateFLOW_LIVE || record>>48 != w>>32&0xffff {
				k.t.Errorf("word %#x in bucket %d: record is %#x", w, line, record)
			}
			words[slot]++
		}
	}
	used := 0
	for slot := range k.flows.slots.entries {
		taken := k.flows.bitmap(slot/64)>>(slot%64)&1 == 1
		switch state := flowState(k.flows.slots.load(slot, 0)); {
		case state == LayoutFlowStateFLOW_LIVE:
			want := 1
			if f, _ := k.flows.read(slot, flowNow()); f.Translated() {
				want = 2
			}
			if words[slot] != want || !taken {
				k.t.Errorf("slot %d: live, %d words, taken %v; want %d and true", slot, words[slot], taken, want)
			}
		case state == LayoutFlowStateFLOW_DYING && !taken, state != LayoutFlowStateFLOW_DYING && state != LayoutFlowStateFLOW_FREE,
			state == LayoutFlowStateFLOW_FREE && taken:
			k.t.Errorf("slot %d: state %d, taken %v", slot, state, taken)
		}
		if taken {
			used++
		}
	}
	if got := k.flows.Used(); got != uint32(used) {
		k.t.Errorf("Used is %d, counted %d", got, used)
	}
}
