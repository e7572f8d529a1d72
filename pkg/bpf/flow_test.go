// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shapes are the kinds of flows that every test of the table runs with.
func shapes() map[string]TableJob {
	return map[string]TableJob{
		"ipv4 tcp":             {Proto: unix.IPPROTO_TCP},
		"ipv6 udp":             {Proto: unix.IPPROTO_UDP, Shape: TableShapeSHAPE_V6},
		"ipv4 sctp translated": {Proto: unix.IPPROTO_SCTP, Shape: TableShapeSHAPE_TRANSLATED},
		"ipv6 tcp translated":  {Proto: unix.IPPROTO_TCP, Shape: TableShapeSHAPE_TRANSLATED | TableShapeSHAPE_V6},
		"ipv4 udp snat":        {Proto: unix.IPPROTO_UDP, Shape: TableShapeSHAPE_TRANSLATED | TableShapeSHAPE_SNAT},
	}
}

func TestFlowFoundBothWays(t *testing.T) {
	for name, job := range shapes() {
		t.Run(name, func(t *testing.T) {
			k := newFlowKit(t, 32768)
			job.First, job.Count = 7, 20000
			k.all("t_create", job)
			for job.Form = range TableForm(4) {
				k.all("t_find", job)
			}
			other := job
			other.First, other.Form = job.First+job.Count, 0
			k.none("t_find", other)

			// The same again is the same flows.
			k.all("t_create", job)
			if got := k.flows.Used(); got != job.Count {
				t.Errorf("%d slots taken, want %d", got, job.Count)
			}
			if got := k.counter(LayoutCounterCOUNT_FLOW_CREATED); got != uint64(job.Count) {
				t.Errorf("%d created, want %d", got, job.Count)
			}
			all := k.numbered()
			for i := job.First; i < job.First+job.Count; i++ {
				f, ok := all[i]
				if !ok || f.Forward != (FlowTarget{LayoutTargetKindTARGET_PEER, i, i + 1}) || f.Orig.Proto != job.Proto ||
					f.Translated() != (job.Shape&TableShapeSHAPE_TRANSLATED != 0) {
					t.Fatalf("flow %d in the dump: %v %+v", i, ok, f)
				}
			}
			k.consistent()

			// Half of them go, by their replies after translation.
			job.Count, job.Form = 10000, TableFormFORM_REVERSED|TableFormFORM_TRANSLATED
			k.all("t_remove", job)
			for job.Form = range TableForm(4) {
				k.none("t_find", job)
			}
			rest := job
			rest.First += job.Count
			for rest.Form = range TableForm(4) {
				k.all("t_find", rest)
			}
			k.consistent()
		})
	}
}

// A table can be filled to the last slot, with two words for every flow.
func TestFlowTableFull(t *testing.T) {
	for _, slots := range []uint32{512, 131072} {
		t.Run(fmt.Sprint(slots), func(t *testing.T) {
			k := newFlowKit(t, slots)
			job := TableJob{Count: slots + 1000, Proto: unix.IPPROTO_TCP, Shape: TableShapeSHAPE_TRANSLATED}
			_, r := k.run("t_create", job)
			full := r.Refused[LayoutDropReasonDROP_FLOW_FULL]
			if r.Ok != uint64(slots) || full != 1000 {
				t.Errorf("%d flows made in %d slots, %d refused for lack of a slot, all refusals %v", r.Ok, slots, full, r.Refused)
			}
			if got := k.flows.Used(); got != slots {
				t.Errorf("%d of %d slots taken", got, slots)
			}
			for job.Form = range TableForm(4) {
				if _, r := k.run("t_find", job); r.Ok != uint64(slots) || r.Wrong != 0 {
					t.Errorf("form %d: %d found, %d wrong, want %d and 0", job.Form, r.Ok, r.Wrong, slots)
				}
			}
			k.consistent()
		})
	}
}

// Full buckets refuse a key and leave nothing behind, and others stay found.
func TestFlowBucketsFull(t *testing.T) {
	k := newFlowKit(t, 1024)
	for line := range k.flows.buckets { // two free words in each, the others lead to a slot whose generation they do not have
		for i := range uint32(6) {
			k.flows.index.store(3+line, 8*i, 0xffff<<32|1023)
		}
	}
	job := TableJob{Count: 1000, Proto: unix.IPPROTO_UDP, Shape: TableShapeSHAPE_TRANSLATED}
	_, r := k.run("t_create", job)
	if r.Refused[LayoutDropReasonDROP_FLOW_BUCKETS] == 0 || r.Ok+r.Refused[LayoutDropReasonDROP_FLOW_BUCKETS] != 1000 {
		t.Errorf("%d made, refused %v", r.Ok, r.Refused)
	}
	if got := k.flows.Used(); uint64(got) != r.Ok {
		t.Errorf("%d slots taken by %d flows", got, r.Ok)
	}
	for job.Form = range TableForm(4) {
		if _, found := k.run("t_find", job); found.Ok != r.Ok || found.Wrong != 0 {
			t.Errorf("form %d: %d found, %d wrong, want %d and 0", job.Form, found.Ok, found.Wrong, r.Ok)
		}
	}
	for line := range k.flows.buckets {
		for i := range uint32(6) {
			k.flows.index.store(3+line, 8*i, 0)
		}
	}
	k.consistent()
}

// Two CPUs make the same flow at the same moment: one record, and both have it.
func TestFlowRace(t *testing.T) {
	const steps = 20000
	udp := func(shape TableShape) TableJob {
		return TableJob{Count: steps, Proto: unix.IPPROTO_UDP, Shape: shape}
	}
	for name, test := range map[string]struct {
		jobs [2]TableJob
		dirs bool // the two meet it from different sides
	}{
		"same":          {jobs: [2]TableJob{udp(0), udp(0)}},
		"both sides":    {jobs: [2]TableJob{udp(0), udp(TableShapeSHAPE_REVERSED)}, dirs: true},
		"translated":    {jobs: [2]TableJob{udp(TableShapeSHAPE_TRANSLATED), udp(TableShapeSHAPE_TRANSLATED)}},
		"other backend": {jobs: [2]TableJob{udp(TableShapeSHAPE_TRANSLATED), udp(TableShapeSHAPE_TRANSLATED | TableShapeSHAPE_OTHER)}},
	} {
		t.Run(name, func(t *testing.T) {
			k := newFlowKit(t, 32768)
			results := k.race(test.jobs)
			raced := uint64(0)
			for id, r := range results {
				raced += r.Refused[LayoutDropReasonDROP_FLOW_RACE]
				if r.Missed != 0 || r.Ok+r.Refused[LayoutDropReasonDROP_FLOW_RACE] != steps {
					t.Errorf("side %d: %d ok, %d not met, refused %v", id, r.Ok, r.Missed, r.Refused)
				}
			}
			for i := range uint32(steps) {
				a, b := k.places.load(i, 0), k.places.load(65536+i, 0)
				if a == 0 || b == 0 {
					continue // refused as a race, counted above
				}
				if uint32(a) != uint32(b) || a>>32&0xffff != b>>32&0xffff {
					t.Fatalf("flow %d: one side has %#x, the other %#x", i, a, b)
				}
				if same := a>>48&0xff == b>>48&0xff; same == test.dirs {
					t.Fatalf("flow %d: directions in %#x and %#x", i, a, b)
				}
			}
			if got := len(k.numbered()); got != steps {
				t.Errorf("%d flows, want %d", got, steps)
			}
			k.consistent()
			collisions := k.counter(LayoutCounterCOUNT_FLOW_COLLISION)
			if collisions < steps/2 {
				t.Errorf("%d collisions in %d steps: the two did not meet", collisions, steps)
			}
			if raced > steps/20 {
				t.Errorf("%d of %d packets lost their race twice", raced, 2*steps)
			}
			t.Logf("%d collisions, %d refused twice", collisions, raced)
		})
	}
}

// Two clients want the same translated address and port: one gets it, the other is told to take another.
func TestFlowPortRace(t *testing.T) {
	const steps = 20000
	k := newFlowKit(t, 32768)
	job := TableJob{Count: steps, Proto: unix.IPPROTO_TCP, Shape: TableShapeSHAPE_TRANSLATED | TableShapeSHAPE_SNAT}
	results := k.race([2]TableJob{job, job})
	won, lost, raced := uint64(0), uint64(0), uint64(0)
	for _, r := range results {
		won += r.Ok
		lost += r.Refused[LayoutDropReasonDROP_FLOW_PORTS]
		raced += r.Refused[LayoutDropReasonDROP_FLOW_RACE]
	}
	if won+lost+raced != 2*steps || won > steps || raced > steps/20 {
		t.Errorf("%d have the port, %d are told to take another, %d lost the race twice; %d steps", won, lost, raced, steps)
	}
	seen := map[LayoutTuple]Flow{}
	for f := range k.flows.All() {
		if other, twice := seen[f.Xlat]; twice {
			t.Fatalf("%v and %v have the same translation", f, other)
		}
		seen[f.Xlat] = f
	}
	if uint64(len(seen)) != won {
		t.Errorf("%d records, %d flows that were made", len(seen), won)
	}
	k.consistent()
}

// Both CPUs make, find, end and check random flows of a small set while the sweep frees slots and the agent reads.
func TestFlowStress(t *testing.T) {
	for name, job := range shapes() {
		if job.Shape&TableShapeSHAPE_SNAT != 0 {
			continue // the two sides are different flows there: TestFlowPortRace
		}
		t.Run(name, func(t *testing.T) {
			const slots = 262144 // a slot rests for two to three seconds
			k := newFlowKit(t, slots)
			k.arm()
			job.First, job.Flows, job.Count = 100, 64, 20000
			stop := make(chan struct{})
			var reader sync.WaitGroup
			reads := 0
			reader.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					for f := range k.flows.All() {
						i := f.Service
						if f.Forward != (FlowTarget{LayoutTargetKindTARGET_PEER, i, i + 1}) || f.BackendIncarnation != i+6 || i < 100 || i >= 164 {
							t.Errorf("the agent reads facts of two flows: %+v", f)
							return
						}
						reads++
					}
				}
			})
			var total TableResult
			for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end) && !t.Failed(); {
				for _, r := range k.pair("t_churn", [2]TableJob{job, job}) {
					total.Ok += r.Ok
					total.Wrong += r.Wrong
					total.Missed += r.Missed
					for reason, n := range r.Refused {
						total.Refused[reason] += n
					}
				}
				if used := k.flows.Used(); used > slots/2 {
					k.until("free slots", func() bool { return k.flows.Used() < slots/4 })
				}
			}
			close(stop)
			reader.Wait()
			if total.Wrong != 0 {
				t.Errorf("%d packets met a wrong record", total.Wrong)
			}
			races := total.Refused[LayoutDropReasonDROP_FLOW_RACE]
			total.Refused[LayoutDropReasonDROP_FLOW_RACE] = 0
			if total.Refused != (TableResult{}).Refused || races > total.Missed/20 {
				t.Errorf("refused %v, races %d of %d", total.Refused, races, total.Missed)
			}
			k.numbered()
			job.Count, job.First = 64, 100
			if _, r := k.run("t_remove", job); r.Wrong != 0 {
				t.Errorf("%d of the rest could not be removed", r.Wrong)
			}
			k.until("empty table", func() bool { return k.flows.Used() == 0 })
			k.consistent()
			t.Logf("%d packets, %d new flows, %d collisions, %d lost the race twice, %d records read by the agent",
				total.Ok, k.counter(LayoutCounterCOUNT_FLOW_CREATED), k.counter(LayoutCounterCOUNT_FLOW_COLLISION), races, reads)
		})
	}
}

// A slot that has another flow is not the one that was found, and cannot be ended by who found the old one.
func TestFlowGeneration(t *testing.T) {
	k := newFlowKit(t, 512)
	job := TableJob{First: 1, Count: 512, Proto: unix.IPPROTO_UDP}
	k.all("t_create", job)
	old := k.numbered()
	k.all("t_remove", job)
	k.arm()
	k.until("free slots", func() bool { return k.flows.Used() == 0 })
	job.First = 1000
	k.all("t_create", job)
	for _, f := range old {
		job.Slot, job.Generation = f.Slot, uint32(f.Generation)
		if answer, _ := k.run("t_still", job); answer != 0 {
			t.Fatalf("flow %v, ended, in slot %d: still and removed are %b", f, f.Slot, answer)
		}
	}
	k.all("t_find", job)
	for _, f := range k.numbered() {
		if f.Generation != old[1].Generation+1 {
			t.Fatalf("slot %d has generation %d, want %d", f.Slot, f.Generation, old[1].Generation+1)
		}
		job.Slot, job.Generation = f.Slot, uint32(f.Generation)
		if answer, _ := k.run("t_still", job); answer != 3 {
			t.Fatalf("flow %v: still and removed are %b", f, answer)
		}
	}
}

// Generations wrap around without 0, which is an empty word's.
func TestFlowGenerationWraps(t *testing.T) {
	k := newFlowKit(t, 512)
	for slot := range uint32(512) {
		k.flows.slots.store(slot, 0, 0xffff<<48)
	}
	job := TableJob{Count: 512, Proto: unix.IPPROTO_UDP}
	k.all("t_create", job)
	for f := range k.flows.All() {
		if f.Generation != 1 {
			t.Fatalf("slot %d has generation %d after 65535, want 1", f.Slot, f.Generation)
		}
	}
	k.all("t_find", job)
}

// One record says after each packet where the connection stands.
func TestFlowPhases(t *testing.T) {
	const fin, syn, rst, ack = tcpFIN, tcpSYN, tcpRST, tcpACK
	k := newFlowKit(t, 512)
	job := TableJob{Count: 1}
	ends := map[FlowPhase]uint64{}
	type packet struct {
		reply bool
		flags uint8
		want  FlowPhase
	}
	open := []packet{{false, syn, FlowHalfOpen}, {true, syn | ack, FlowHalfOpen}, {false, ack, FlowEstablished}}
	for name, test := range map[string]struct {
		proto   uint8
		packets []packet
	}{
		"opened and closed": {6, append(open[:3:3], packet{true, ack, FlowEstablished}, packet{false, fin | ack, FlowClosing}, packet{true, ack, FlowClosing},
			packet{true, fin | ack, FlowClosed}, packet{false, ack, FlowClosed})},
		"closed by the other side":           {6, append(open[:3:3], packet{true, fin | ack, FlowClosing}, packet{false, fin | ack, FlowClosed})},
		"syn flood":                          {6, []packet{{false, syn, FlowHalfOpen}, {true, syn | ack, FlowHalfOpen}, {true, syn | ack, FlowHalfOpen}, {false, syn, FlowHalfOpen}}},
		"ack flood":                          {6, []packet{{false, ack, FlowHalfOpen}, {false, ack, FlowHalfOpen}, {true, rst, FlowClosed}}},
		"refused":                            {6, []packet{{false, syn, FlowHalfOpen}, {true, rst | ack, FlowClosed}}},
		"met in midstream":                   {6, []packet{{false, ack, FlowHalfOpen}, {true, ack, FlowEstablished}}},
		"reset":                              {6, append(open[:3:3], packet{false, rst, FlowClosed}, packet{false, rst, FlowClosed})},
		"forged reset, the other side lives": {6, append(open[:3:3], packet{false, rst, FlowClosed}, packet{true, ack, FlowEstablished})},
		"same ports again":                   {6, append(open[:3:3], packet{false, rst, FlowClosed}, packet{false, syn, FlowHalfOpen}, packet{true, syn | ack, FlowHalfOpen}, packet{false, ack, FlowEstablished})},
		"syn on a living connection":         {6, append(open[:3:3], packet{false, syn, FlowEstablished})},
		"both sides open":                    {6, []packet{{false, syn, FlowHalfOpen}, {true, syn, FlowHalfOpen}, {false, syn | ack, FlowHalfOpen}, {true, syn | ack, FlowHalfOpen}, {false, ack, FlowEstablished}}},
		"sctp without flags":                 {132, []packet{{false, 0, FlowHalfOpen}, {true, 0, FlowEstablished}}},
		"udp":                                {17, []packet{{false, 0, FlowUnreplied}, {false, 0, FlowUnreplied}, {true, 0, FlowReplied}}},
		"icmp":                               {1, []packet{{false, 0, FlowEcho}, {true, 0, FlowEcho}}},
		"icmpv6":                             {58, []packet{{false, 0, FlowEcho}, {true, 0, FlowEcho}}},
		"other":                              {47, []packet{{false, 0, FlowUnreplied}, {true, 0, FlowReplied}}},
	} {
		t.Run(name, func(t *testing.T) {
			k.t = t
			job.First++
			job.Proto = test.proto
			job.Form, job.TcpFlags = 0, 0
			k.all("t_create", job)
			last := FlowHalfOpen
			for i, p := range test.packets {
				job.Form, job.TcpFlags = 0, p.flags
				if p.reply {
					job.Form = TableFormFORM_REVERSED
				}
				want := int32(1)
				if p.flags == syn && last == FlowClosed {
					want = 2 // flow_over: a new connection
				}
				if got, _ := k.run("t_seen", job); got != want {
					t.Errorf("packet %d: answer %d, want %d", i, got, want)
				}
				if last = k.numbered()[job.First].Phase; last != p.want {
					t.Errorf("after packet %d %+v the flow is %s, want %s", i, p, last, p.want)
				}
			}
			ends[last]++
		})
	}
	for phase, n := range k.flows.Count() {
		if n != ends[phase] {
			t.Errorf("%d flows are %s in the count, want %d", n, phase, ends[phase])
		}
	}
}

func TestFlowGeometry(t *testing.T) {
	for _, slots := range []uint32{512, 1024, 1536, 131072, 1 << 20, 1 << 30} {
		lines, want := flowLines(slots)
		if got, err := flowGeometry(lines, slots); err != nil || got != want || uint64(want)*8 < 4*uint64(slots) {
			t.Errorf("%d slots: %d lines, %d buckets, read back as %d, %v", slots, lines, want, got, err)
		}
	}
	for _, bad := range [][2]uint32{{65793, 0}, {65793, 511}, {65793, 513}, {2, 512}, {1, 512}, {5, 512}, {65793, 1<<30 + 512}} {
		if got, err := flowGeometry(bad[0], bad[1]); err == nil {
			t.Errorf("%d lines for %d slots: %d buckets, want an error", bad[0], bad[1], got)
		}
	}
}

// Another agent's table is adopted with its seed, and one that is not ours is refused.
func TestFlowHeader(t *testing.T) {
	k := newFlowKit(t, 512)
	seed := k.flows.index.load(0, 8)
	if again, err := openFlows(k.flows.index, k.flows.slots); err != nil || again.buckets != k.flows.buckets || k.flows.index.load(0, 8) != seed || seed == 0 {
		t.Errorf("adopted as %+v, %v, seed %#x then %#x", again, err, seed, k.flows.index.load(0, 8))
	}
	geometry := k.flows.index.load(0, 56)
	k.flows.index.store(0, 56, geometry+1)
	_, err := openFlows(k.flows.index, k.flows.slots)
	wantError(t, err, "flow_buckets", "512 slots and 257 buckets", "512 and 256")
	k.flows.index.store(0, 56, geometry)
	k.flows.index.store(0, 0, k.flows.index.load(0, 0)+1)
	_, err = openFlows(k.flows.index, k.flows.slots)
	wantError(t, err, "flow_buckets", "version")
}

func TestFlowString(t *testing.T) {
	k := newFlowKit(t, 512)
	k.all("t_create", TableJob{First: 1, Count: 1, Proto: unix.IPPROTO_TCP, Shape: TableShapeSHAPE_TRANSLATED})
	const want = "tcp 10.0.0.0:30001 -> 11.0.0.1:80 as tcp 10.0.0.0:30001 -> 12.0.0.7:8080 half-open idle 0s"
	if got := k.numbered()[1].String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
