// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"math/bits"

	"github.com/fairlead/fairlead/pkg/bpf"
)

// slotRange is a range of slots. Offset and length are even: two slots share one aligned word of the map, and no word belongs to two
// ranges.
type slotRange struct {
	offset, length uint32
}

// slotSpace hands out ranges of slots. Free ranges lie in bins by the power of two below their length, so that taking and giving back
// cost the same however many there are; neighbours are joined when one is given back. Nothing of it is in the kernel: an agent that
// starts takes what the services in force name as taken.
type slotSpace struct {
	capacity uint32
	used     uint32
	bins     [32][]slotRange
	starts   map[uint32]freePlace // free ranges by offset
	ends     map[uint32]uint32    // offset of the free range that ends here
}

// freePlace says where a free range lies: bins[bin][index].
type freePlace struct {
	bin   uint8
	index uint32
}

// newSlotSpace returns a space in which these ranges are taken: in order of their offsets, disjoint, even and below the capacity.
func newSlotSpace(capacity uint32, taken []slotRange) *slotSpace {
	s := &slotSpace{capacity: capacity &^ 1, starts: map[uint32]freePlace{}, ends: map[uint32]uint32{}}
	var at uint32
	for _, r := range append(taken[:len(taken):len(taken)], slotRange{offset: s.capacity}) {
		if r.offset > at {
			s.put(slotRange{at, r.offset - at})
		}
		at = r.offset + r.length
		s.used += r.length
	}
	return s
}

// take reserves a range of at least n slots, n > 0.
func (s *slotSpace) take(n uint32) (slotRange, error) {
	if n > bpf.MaxSetLength {
		return slotRange{}, fmt.Errorf("reserve %d slots: a set has at most %d", n, bpf.MaxSetLength)
	}
	n = (n + 1) &^ 1
	first := binOf(n)
	// Ranges of the first bin may be too short: look at a few. Those of the next bins are all long enough.
	if r, ok := s.fitting(first, n, 16); ok {
		return s.cut(r, n), nil
	}
	for bin := first + 1; bin < len(s.bins); bin++ {
		if r, ok := s.fitting(bin, n, 1); ok {
			return s.cut(r, n), nil
		}
	}
	if r, ok := s.fitting(first, n, len(s.bins[first])); ok {
		return s.cut(r, n), nil
	}
	return slotRange{}, fmt.Errorf("reserve %d slots: %w (%d of %d used)", n, bpf.ErrFull, s.used, s.capacity)
}

// fitting returns a free range of at least n slots among the newest ones of a bin.
func (s *slotSpace) fitting(bin int, n uint32, look int) (slotRange, bool) {
	ranges := s.bins[bin]
	for i := len(ranges) - 1; i >= 0 && i >= len(ranges)-look; i-- {
		if ranges[i].length >= n {
			return ranges[i], true
		}
	}
	return slotRange{}, false
}

// cut takes the first n slots of a free range.
func (s *slotSpace) cut(r slotRange, n uint32) slotRange {
	s.remove(r)
	if r.length > n {
		s.put(slotRange{r.offset + n, r.length - n})
	}
	s.used += n
	return slotRange{r.offset, n}
}

// give makes a range free again. The zero range is none.
func (s *slotSpace) give(r slotRange) {
	if r.length == 0 {
		return
	}
	s.used -= r.length
	if before, ok := s.ends[r.offset]; ok {
		left := slotRange{before, r.offset - before}
		s.remove(left)
		r = slotRange{before, left.length + r.length}
	}
	if place, ok := s.starts[r.offset+r.length]; ok {
		right := s.bins[place.bin][place.index]
		s.remove(right)
		r.length += right.length
	}
	s.put(r)
}

func (s *slotSpace) put(r slotRange) {
	bin := binOf(r.length)
	s.starts[r.offset] = freePlace{uint8(bin), uint32(len(s.bins[bin]))}
	s.ends[r.offset+r.length] = r.offset
	s.bins[bin] = append(s.bins[bin], r)
}

func (s *slotSpace) remove(r slotRange) {
	place := s.starts[r.offset]
	bin := s.bins[place.bin]
	last := bin[len(bin)-1]
	bin[place.index] = last
	s.starts[last.offset] = place
	s.bins[place.bin] = bin[:len(bin)-1]
	delete(s.starts, r.offset)
	delete(s.ends, r.offset+r.length)
}

// binOf returns the power of two at or below n.
func binOf(n uint32) int { return bits.Len32(n) - 1 }
