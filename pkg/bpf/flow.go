// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Flows is the flow table (bpf/lib/flow.h): read through its memory, without a system call, while the programs write it. The agent writes
// its header only.
type Flows struct {
	index   *mapped // header, bitmap, buckets
	slots   *mapped
	buckets uint32
}

// FlowPhase is where a flow stands.
type FlowPhase uint32

// The phases, in the order of enum flow_phase.
const (
	FlowHalfOpen    = FlowPhase(LayoutFlowPhaseFLOW_HALF_OPEN)
	FlowEstablished = FlowPhase(LayoutFlowPhaseFLOW_ESTABLISHED)
	FlowClosing     = FlowPhase(LayoutFlowPhaseFLOW_CLOSING)
	FlowClosed      = FlowPhase(LayoutFlowPhaseFLOW_CLOSED)
	FlowUnreplied   = FlowPhase(LayoutFlowPhaseFLOW_UNREPLIED)
	FlowReplied     = FlowPhase(LayoutFlowPhaseFLOW_REPLIED)
	FlowEcho        = FlowPhase(LayoutFlowPhaseFLOW_ECHO)

	flowPhases = int(LayoutFlowPhaseFLOW_PHASE_MAX)
)

// String returns the phase as metrics and the CLI spell it.
func (p FlowPhase) String() string {
	names := [flowPhases]string{"half-open", "established", "closing", "closed", "unreplied", "replied", "echo"}
	if int(p) < len(names) {
		return names[p]
	}
	return fmt.Sprintf("phase-%d", uint32(p))
}

// FlowTarget is where packets of a flow go in one direction: an id in endpoints or peers that counts only with its incarnation.
type FlowTarget struct {
	Kind            LayoutTargetKind
	ID, Incarnation uint32
}

// Flow is one record, copied.
type Flow struct {
	Slot       uint32
	Generation uint16
	Orig, Xlat LayoutTuple // forward packet before and after translation; equal when nothing is translated
	Phase      FlowPhase
	Idle       time.Duration // since the last packet in either direction, in seconds
	Forward    FlowTarget    // toward the destination
	Reply      FlowTarget    // toward the source

	Service, ServiceIncarnation, Backend, BackendIncarnation uint32
}

// Translated says whether packets are rewritten.
func (f Flow) Translated() bool { return f.Orig != f.Xlat }

// String returns the flow as one line: tuple, what it becomes, phase, idle time.
func (f Flow) String() string {
	s := f.Orig.String()
	if f.Translated() {
		s += " as " + f.Xlat.String()
	}
	return fmt.Sprintf("%s %s idle %s", s, f.Phase, f.Idle)
}

// flowLines returns how many elements flow_buckets needs for that many slots, and how many of them are buckets: as many words as four
// times the slots, in a power of two.
func flowLines(slots uint32) (lines, buckets uint32) {
	buckets = 1 << bits.Len32((max(slots, 2)-1)/2)
	return 1 + slots/uint32(LayoutTableSizeTABLE_LINE_SLOTS) + buckets, buckets
}

// flowSlots is the inverse of flowLines: the bitmap is always shorter than the buckets, so the largest power of two in lines is theirs.
func flowSlots(lines uint32) uint32 {
	buckets := uint32(1) << (bits.Len32(lines-1) - 1)
	return (lines - 1 - buckets) * uint32(LayoutTableSizeTABLE_LINE_SLOTS)
}

// flowGeometry returns the number of buckets in an index of that many lines over that many slots. The error names the map to change.
func flowGeometry(lines, slots uint32) (buckets uint32, err error) {
	const line = uint32(LayoutTableSizeTABLE_LINE_SLOTS)
	if slots == 0 || slots%line != 0 || slots > 1<<30 {
		return 0, fmt.Errorf("size map %s: %d slots: want a multiple of %d up to %d", LayoutMapFlowSlots, slots, line, 1<<30)
	}
	if lines < 2+slots/line {
		return 0, fmt.Errorf("size map %s: %d lines are too few for %d slots", LayoutMapFlowBuckets, lines, slots)
	}
	buckets = lines - 1 - slots/line
	if buckets&(buckets-1) != 0 {
		return 0, fmt.Errorf("size map %s: %d buckets (lines without header and bitmap): want a power of two", LayoutMapFlowBuckets, buckets)
	}
	return buckets, nil
}

// openFlows adopts the table or writes the header of a new one. It must have returned before the first program that uses the table is
// attached: the seed decides where every key stands.
func openFlows(index, slots *mapped) (*Flows, error) {
	buckets, err := flowGeometry(index.entries, slots.entries)
	if err != nil {
		return nil, err
	}
	const fresh = uint64(LayoutTableMagicTABLE_MAGIC)<<32 | uint64(LayoutTableMagicTABLE_VERSION)
	header, geometry := index.load(0, 0), word(slots.entries, buckets)
	if header == 0 { // new, or its maker was killed before the last line here
		var seed [48]byte
		if _, err := rand.Read(seed[:]); err != nil {
			return nil, fmt.Errorf("seed flow table: %w", err)
		}
		for i := range uint32(6) {
			index.store(0, 8+8*i, binary.LittleEndian.Uint64(seed[8*i:]))
		}
		index.store(0, 56, geometry)
		index.store(0, 0, fresh)
		header = fresh
	}
	if header != fresh {
		return nil, fmt.Errorf("adopt map %s: header is %#x, this agent knows %#x (magic and version)", LayoutMapFlowBuckets, header, fresh)
	}
	if got := index.load(0, 56); got != geometry {
		return nil, fmt.Errorf("adopt map %s: made for %d slots and %d buckets, the maps have %d and %d",
			LayoutMapFlowBuckets, high(got), low(got), slots.entries, buckets)
	}
	return &Flows{index: index, slots: slots, buckets: buckets}, nil
}

// Capacity returns the number of slots.
func (f *Flows) Capacity() uint32 { return f.slots.entries }

// Used returns the number of slots taken, those included whose flow has just ended and that are not free yet.
func (f *Flows) Used() uint32 {
	n := 0
	for w := range f.slots.entries / 64 {
		n += bits.OnesCount64(f.bitmap(w))
	}
	return uint32(n)
}

// bitmap returns the bits of slots 64*w and up.
func (f *Flows) bitmap(w uint32) uint64 { return f.index.load(1+w/8, w%8*8) }

// All yields every live flow. What the programs change meanwhile may be seen as it was or as it is; no flow is yielded twice, and none
// with the facts of another.
func (f *Flows) All() iter.Seq[Flow] {
	return func(yield func(Flow) bool) {
		now := flowNow()
		for w := range f.slots.entries / 64 {
			for b := f.bitmap(w); b != 0; b &= b - 1 {
				if flow, ok := f.read(w*64+uint32(bits.TrailingZeros64(b)), now); ok && !yield(flow) {
					return
				}
			}
		}
	}
}

// Count returns the number of live flows by phase.
func (f *Flows) Count() map[FlowPhase]uint64 {
	count := make(map[FlowPhase]uint64, flowPhases)
	for p := range FlowPhase(flowPhases) {
		count[p] = 0
	}
	for flow := range f.All() {
		count[flow.Phase]++
	}
	return count
}

// read copies a live flow. A record does not change its facts for at least a second after it was live, so a copy between two looks at the
// same word is of one flow.
func (f *Flows) read(slot, now uint32) (Flow, bool) {
	w := f.slots.load(slot, 0)
	if flowState(w) != LayoutFlowStateFLOW_LIVE {
		return Flow{}, false
	}
	raw := at[LayoutFlow](f.slots, slot)
	forward, reply := atomic.LoadUint32(&raw.Seen[LayoutFlowDirFLOW_FORWARD]), atomic.LoadUint32(&raw.Seen[LayoutFlowDirFLOW_REPLY])
	idle := max(int32(now-forward), 0)
	if reply != 0 {
		idle = min(idle, max(int32(now-reply), 0))
	}
	flow := Flow{
		Slot:               slot,
		Generation:         uint16(w >> 48),
		Orig:               raw.Orig,
		Xlat:               raw.Xlat,
		Phase:              flowPhase(raw.Orig.Proto, w, reply != 0),
		Idle:               time.Duration(idle) * time.Second,
		Forward:            FlowTarget{LayoutTargetKind(raw.FwdKind), raw.Fwd.Id, raw.Fwd.Incarnation},
		Reply:              FlowTarget{LayoutTargetKind(raw.RevKind), raw.Rev.Id, raw.Rev.Incarnation},
		Service:            raw.Service,
		ServiceIncarnation: raw.ServiceIncarnation,
		Backend:            raw.Backend,
		BackendIncarnation: raw.BackendIncarnation,
	}
	return flow, f.slots.load(slot, 0)>>48 == w>>48
}

func flowState(w uint64) LayoutFlowState { return LayoutFlowState(w >> 40 & 0xff) }

// flowPhase is flow_phase() of bpf/lib/flow.h.
func flowPhase(proto uint8, w uint64, replied bool) FlowPhase {
	const (
		acks = LayoutFlowBitFLOW_ACK_FORWARD | LayoutFlowBitFLOW_ACK_REPLY
		fins = LayoutFlowBitFLOW_FIN_FORWARD | LayoutFlowBitFLOW_FIN_REPLY
		rsts = LayoutFlowBitFLOW_RST_FORWARD | LayoutFlowBitFLOW_RST_REPLY
	)
	switch said := LayoutFlowBit(w >> 32 & 0xff); proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_SCTP:
		switch {
		case said&rsts != 0 || said&fins == fins:
			return FlowClosed
		case said&acks != acks:
			return FlowHalfOpen
		case said&fins != 0:
			return FlowClosing
		}
		return FlowEstablished
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return FlowEcho
	}
	if replied {
		return FlowReplied
	}
	return FlowUnreplied
}

// flowNow returns the second that programs write into records: flow_now() of bpf/lib/flow.h.
func flowNow() uint32 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &t); err != nil {
		return 0 // cannot be on Linux; every idle time is then 0
	}
	return uint32(uint64(t.Nano())>>20*4503600>>32) + 1
}

// Sweep is how far the timer is that ends idle flows.
type Sweep struct {
	Ticked time.Duration // CLOCK_MONOTONIC at its last tick; 0: not yet
	Passes uint32        // over the whole table
	Used   uint32        // slots taken, in the last pass
	Kept   uint32        // of them established, closing or replied
	Dying  uint32        // of them ended and not free yet
}

// Sweep reads the state of the timer.
func (o *Objects) Sweep() (Sweep, error) {
	m, ok := o.maps[LayoutMapSweepTimer]
	if !ok {
		return Sweep{}, errors.New("read sweep: map is not open")
	}
	var s LayoutSweep
	if err := m.Lookup(uint32(0), &s); err != nil {
		return Sweep{}, fmt.Errorf("read sweep: %w", err)
	}
	return Sweep{Ticked: time.Duration(s.Ticked), Passes: s.Passes, Used: s.LastUsed, Kept: s.LastKept, Dying: s.LastDying}, nil
}
