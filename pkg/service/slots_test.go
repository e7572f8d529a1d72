// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/fairlead/fairlead/pkg/bpf"
)

func TestSlotsAreNeverGivenTwice(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	s := newSlotSpace(4096, []slotRange{{10, 4}, {14, 2}, {100, 50}})
	owner := make([]int, 4096) // 0: free
	held := map[int]slotRange{1: {10, 4}, 2: {14, 2}, 3: {100, 50}}
	mark := func(x slotRange, from, to int) {
		t.Helper()
		for i := x.offset; i < x.offset+x.length; i++ {
			if owner[i] != from {
				t.Fatalf("slot %d of range %v belongs to %d, want %d", i, x, owner[i], from)
			}
			owner[i] = to
		}
	}
	for id, x := range held {
		mark(x, 0, id)
	}
	next, refused := 4, 0
	for range 20000 {
		if r.IntN(100) < 55 {
			n := 1 + uint32(r.IntN(1<<r.IntN(9)))
			x, err := s.take(n)
			if err != nil {
				if !errors.Is(err, bpf.ErrFull) {
					t.Fatal(err)
				}
				refused++
				continue
			}
			if x.length < n || x.length > n+1 || x.offset%2 != 0 || x.length%2 != 0 {
				t.Fatalf("take %d gave %v", n, x)
			}
			mark(x, 0, next)
			held[next] = x
			next++
			continue
		}
		for id, x := range held {
			mark(x, id, 0)
			s.give(x)
			delete(held, id)
			break
		}
	}
	var used uint32
	for _, x := range held {
		used += x.length
	}
	if s.used != used || refused == 0 {
		t.Errorf("%d slots used, want %d; %d refused, want some", s.used, used, refused)
	}
	for _, x := range held {
		s.give(x)
	}
	if x, err := s.take(4096); err != nil || x != (slotRange{0, 4096}) {
		t.Errorf("free neighbours are not one range: %v, %v", x, err)
	}
}

func TestSlotsOfASet(t *testing.T) {
	s := newSlotSpace(8, nil)
	if _, err := s.take(bpf.MaxSetLength + 1); err == nil || errors.Is(err, bpf.ErrFull) {
		t.Errorf("more slots than a set can name: %v", err)
	}
	if _, err := s.take(9); !errors.Is(err, bpf.ErrFull) {
		t.Errorf("more slots than there are: %v", err)
	}
	s.give(slotRange{}) // an empty set has none
	if s.used != 0 {
		t.Errorf("%d used", s.used)
	}
}
