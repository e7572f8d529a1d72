// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	tcpFIN = uint8(LayoutFlowTcpFLOW_TCP_FIN)
	tcpSYN = uint8(LayoutFlowTcpFLOW_TCP_SYN)
	tcpRST = uint8(LayoutFlowTcpFLOW_TCP_RST)
	tcpACK = uint8(LayoutFlowTcpFLOW_TCP_ACK)
)

// say sends packets of a job's flows: positive flags go forward, negative ones back.
func (k *flowKit) say(job TableJob, flags ...int) {
	k.t.Helper()
	number := job.First
	for i := range job.Count {
		job.First = number + i
		for _, f := range flags {
			job.Form, job.TcpFlags = 0, uint8(max(f, -f))
			if f < 0 {
				job.Form = TableFormFORM_REVERSED
			}
			if got, _ := k.run("t_seen", job); got == 0 {
				k.t.Fatalf("flow %d is not found", job.First)
			}
		}
	}
}

// establish makes TCP connections that both sides agreed on.
func (k *flowKit) establish(first, count uint32) {
	k.t.Helper()
	job := TableJob{First: first, Count: count, Proto: unix.IPPROTO_TCP}
	k.all("t_create", job)
	k.say(job, int(tcpSYN), -int(tcpSYN|tcpACK), int(tcpACK))
}

// Every phase has its own time, and ends within three seconds after it.
func TestSweepExpires(t *testing.T) {
	const none = 0x80 // a packet of a protocol without flags
	k := newFlowKit(t, 4096)
	syn, fin, rst, ack := int(tcpSYN), int(tcpFIN), int(tcpRST), int(tcpACK)
	tests := []struct {
		name    string
		proto   uint8
		packets []int
		phase   FlowPhase
		limit   LayoutFlowTimeout
	}{
		{"half-open", 6, []int{syn, -(syn | ack)}, FlowHalfOpen, LayoutFlowTimeoutFLOW_TIMEOUT_HALF_OPEN},
		{"established", 6, []int{syn, -(syn | ack), ack}, FlowEstablished, LayoutFlowTimeoutFLOW_TIMEOUT_ESTABLISHED},
		{"one fin", 6, []int{syn, -(syn | ack), ack, fin | ack}, FlowClosing, LayoutFlowTimeoutFLOW_TIMEOUT_CLOSING},
		{"both fin", 6, []int{syn, -(syn | ack), ack, fin | ack, -(fin | ack)}, FlowClosed, LayoutFlowTimeoutFLOW_TIMEOUT_CLOSED},
		{"reset", 6, []int{syn, -(rst | ack)}, FlowClosed, LayoutFlowTimeoutFLOW_TIMEOUT_CLOSED},
		{"sctp half-open", 132, []int{syn}, FlowHalfOpen, LayoutFlowTimeoutFLOW_TIMEOUT_HALF_OPEN},
		{"sctp established", 132, []int{syn, -(syn | ack), ack}, FlowEstablished, LayoutFlowTimeoutFLOW_TIMEOUT_ESTABLISHED},
		{"udp unreplied", 17, []int{none}, FlowUnreplied, LayoutFlowTimeoutFLOW_TIMEOUT_UNREPLIED},
		{"udp replied", 17, []int{none, -none}, FlowReplied, LayoutFlowTimeoutFLOW_TIMEOUT_REPLIED},
		{"gre unreplied", 47, []int{none}, FlowUnreplied, LayoutFlowTimeoutFLOW_TIMEOUT_UNREPLIED},
		{"icmp", 1, []int{none, -none}, FlowEcho, LayoutFlowTimeoutFLOW_TIMEOUT_ECHO},
		{"icmpv6", 58, []int{none, -none}, FlowEcho, LayoutFlowTimeoutFLOW_TIMEOUT_ECHO},
	}
	number := func(i int) uint32 { return uint32(10 * i) }
	for i, test := range tests {
		job := TableJob{First: number(i), Count: 3, Proto: test.proto}
		k.all("t_create", job)
		k.say(job, test.packets...)
	}
	all := k.numbered()
	for i, test := range tests {
		if got := all[number(i)].Phase; got != test.phase {
			t.Errorf("%s: phase is %s, want %s", test.name, got, test.phase)
		}
		k.age(all[number(i)].Slot, uint32(test.limit)+2)   // over its time
		k.age(all[number(i)+1].Slot, uint32(test.limit)-5) // not yet, and the test is over before
		// The third is new, but for the packets of one direction.
	}
	start := time.Now()
	k.arm()
	k.passes(2)
	all = k.numbered()
	took := time.Since(start)
	for i, test := range tests {
		if f, ok := all[number(i)]; ok {
			t.Errorf("%s: %v is still there after %d s", test.name, f, test.limit+2)
		}
		if _, ok := all[number(i)+1]; !ok && took < 3*time.Second {
			t.Errorf("%s: ended %d s too early", test.name, 5)
		}
		if _, ok := all[number(i)+2]; !ok {
			t.Errorf("%s: a new flow ended", test.name)
		}
	}
	if got := k.counter(LayoutCounterCOUNT_FLOW_EXPIRED); got != uint64(len(tests)) {
		t.Errorf("%d expired, want %d", got, len(tests))
	}
	if got := k.counter(LayoutCounterCOUNT_FLOW_PRESSED); got != 0 {
		t.Errorf("%d ended under pressure", got)
	}

	// Their slots are free only a while later: a reader may hold them.
	k.until("free slots", func() bool { return k.flows.Used() == uint32(2*len(tests)) })
	if freed := time.Since(start); freed < time.Second {
		t.Errorf("slots are free %s after the sweep began, want at least a second", freed)
	}
	k.consistent()
}

// A reply keeps a flow whose other direction is silent, and the other way round.
func TestSweepEitherDirectionKeeps(t *testing.T) {
	k := newFlowKit(t, 512)
	k.all("t_create", TableJob{First: 1, Count: 3, Proto: unix.IPPROTO_UDP})
	all := k.numbered()
	for i := range uint32(3) {
		k.age(all[1+i].Slot, 1000)
	}
	job := TableJob{First: 1, Count: 1, Proto: unix.IPPROTO_UDP}
	k.say(job, -0x80)
	job.First = 2
	k.say(job, 0x80)
	k.arm()
	k.passes(1)
	all = k.numbered()
	if _, ok := all[3]; ok || len(all) != 2 || all[1].Phase != FlowReplied || all[2].Phase != FlowUnreplied {
		t.Errorf("left are %v, want flow 1 and 2", all)
	}
}

// A flood of half-open connections many times the table's size ends no established flow, however long that is idle, and new flows
// find room as soon as the flood is over.
func TestSweepFlood(t *testing.T) {
	const slots, kept = 4096, 1000
	k := newFlowKit(t, slots)
	k.establish(1, kept)
	for _, f := range k.numbered() {
		k.age(f.Slot, 23*60*60)
	}
	k.arm()
	next := uint32(100000)
	refused := uint64(0)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		_, r := k.run("t_create", TableJob{First: next, Count: 500, Proto: unix.IPPROTO_TCP, TcpFlags: tcpSYN})
		refused += r.Refused[LayoutDropReasonDROP_FLOW_FULL]
		next += 500
		time.Sleep(5 * time.Millisecond) // the pace of the flood: 100,000 a second
	}
	made := k.counter(LayoutCounterCOUNT_FLOW_CREATED)
	if made-kept < slots || made+refused < 10*slots {
		t.Errorf("the flood made %d flows in %d slots and %d were refused: not a flood, or nothing was freed", made-kept, slots-kept, refused)
	}
	count := k.flows.Count()
	if count[FlowEstablished] != kept {
		t.Errorf("%d of %d established flows are left after the flood", count[FlowEstablished], kept)
	}
	if got := k.counter(LayoutCounterCOUNT_FLOW_PRESSED); got < slots/2 {
		t.Errorf("%d ended under pressure", got)
	}
	if got := k.counter(LayoutCounterCOUNT_FLOW_EXPIRED); got != 0 {
		t.Errorf("%d expired without pressure in 5 s", got)
	}
	k.until("room", func() bool { return k.flows.Used() < slots*3/4 })
	k.all("t_create", TableJob{First: 50000, Count: 500, Proto: unix.IPPROTO_TCP})
	k.all("t_find", TableJob{First: 1, Count: kept, Proto: unix.IPPROTO_TCP})
	t.Logf("%d half-open made, %d refused", made-kept, refused)
}

// When established flows themselves fill the table, the ones that are idle longest end first, and half-open ones before them.
func TestSweepPressure(t *testing.T) {
	const slots = 4096
	for _, test := range []struct {
		name        string
		established uint32 // half of them idle for 20 h, the others for 30 s
		halfOpen    uint32 // idle for 10 s
		old, half   bool   // left
	}{
		{"three quarters", 2048, 1024, true, true},
		{"seven eighths, mostly half-open", 2048, 1536, true, false},
		{"seven eighths, established", 3584, 100, false, false},
		{"full", 4000, 96, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := newFlowKit(t, slots)
			k.establish(0, test.established)
			k.all("t_create", TableJob{First: 10000, Count: test.halfOpen, Proto: unix.IPPROTO_TCP, TcpFlags: tcpSYN})
			for i, f := range k.numbered() {
				switch {
				case i >= 10000:
					k.age(f.Slot, 10)
				case i%2 == 0:
					k.age(f.Slot, 20*60*60)
				default:
					k.age(f.Slot, 30)
				}
			}
			k.arm()
			k.passes(2)
			var old, fresh, half uint32
			for i := range k.numbered() {
				switch {
				case i >= 10000:
					half++
				case i%2 == 0:
					old++
				default:
					fresh++
				}
			}
			if fresh != test.established/2 {
				t.Errorf("%d of %d established flows that were idle for 30 s are left", fresh, test.established/2)
			}
			if all := old == test.established/2; all != test.old {
				t.Errorf("%d of %d established flows that were idle for 20 h are left", old, test.established/2)
			}
			if all := half == test.halfOpen; all != test.half {
				t.Errorf("%d of %d half-open flows are left", half, test.halfOpen)
			}
			// What had to go went until the pressure was over, not farther than one pass.
			if ended := k.counter(LayoutCounterCOUNT_FLOW_PRESSED); ended == 0 != (test.old && test.half) {
				t.Errorf("%d ended under pressure", ended)
			}
		})
	}
}

// The timer goes on when the process that armed it holds nothing any more, and the next agent's program takes its place.
func TestSweepOutlivesAgent(t *testing.T) {
	dir := testDir(t)
	first := mustOpen(t, Options{Dir: dir, Capacity: small()})
	if err := first.ArmSweep(); err != nil {
		t.Fatal(err)
	}
	info, err := first.programs["sweep_arm"].Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := mustOpen(t, Options{Dir: dir, Capacity: small()})
	defer second.Close()
	passes := func() uint32 {
		s, err := second.Sweep()
		if err != nil {
			t.Fatal(err)
		}
		return s.Passes
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %s in 20 s", what)
			}
		}
	}
	before := passes()
	wait("passes without an agent", func() bool { return passes() >= before+3 })
	if p, err := ebpf.NewProgramFromID(id); err != nil {
		t.Errorf("program %d of the first agent is gone while its timer runs: %v", id, err)
	} else if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := second.ArmSweep(); err != nil {
		t.Fatal(err)
	}
	wait("end of the first agent's program", func() bool {
		p, err := ebpf.NewProgramFromID(id)
		if err == nil {
			err = p.Close()
		}
		return errors.Is(err, os.ErrNotExist)
	})
	before = passes()
	wait("passes after the second agent armed", func() bool { return passes() >= before+3 })
	if s, err := second.Sweep(); err != nil || s.Ticked == 0 || s.Used != 0 {
		t.Errorf("sweep says %+v, %v", s, err)
	}
}
