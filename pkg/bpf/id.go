// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/sha256"
	"fmt"
	"math"
	"sync"

	"github.com/cilium/ebpf"
)

// IDKind is a sort of thing that has ids of its own (bpf/lib/id.h).
type IDKind = LayoutIdKind

// The kinds.
const (
	IDService     = LayoutIdKindID_SERVICE
	IDBackend     = LayoutIdKindID_BACKEND
	IDPeer        = LayoutIdKindID_PEER
	IDEndpoint    = LayoutIdKindID_ENDPOINT
	IDSourceRange = LayoutIdKindID_SOURCE_RANGE
	idKinds       = LayoutIdKindID_KIND_MAX
)

// ID names one thing for good: the same id with another incarnation is another thing.
type ID struct {
	ID          uint32
	Incarnation uint32
}

// Signature is the 128-bit hash of what a thing is, by which a later agent finds its id again.
type Signature [16]byte

// Sign returns the signature of a canonical description: the first half of its SHA-256.
func Sign(description string) Signature {
	sum := sha256.Sum256([]byte(description))
	return Signature(sum[:16])
}

// Interned is a signature with its id.
type Interned struct {
	Signature Signature
	ID
}

// IDs gives every thing of a kind a small id, the same one again after a restart, and a new incarnation whenever an id changes hands.
// Methods may be called by several goroutines.
type IDs struct {
	mu           sync.Mutex
	table        *hash[LayoutIdKey, LayoutId]
	incarnations *ebpf.Map
	kinds        [idKinds]idSpace
	loaded       bool
}

// idSpace is the ids of one kind.
type idSpace struct {
	limit    uint32 // ids are 1 to limit
	known    map[Signature]ID
	next     uint32   // ids from here on were never used
	free     []uint32 // ids given back, the longest unused first
	reserved uint64   // incarnations up to here are written in the kernel as given out
	last     uint64   // the last one given out
}

// incarnationBlock is how many incarnations are reserved by one write to the kernel. An agent that dies loses what is left of its block,
// and the counter goes on behind it.
const incarnationBlock = 1024

// Acquire returns the id of a thing. One that is known keeps its id and incarnation, across agents too; a new one gets an unused id, with
// the longest unused first, and a new incarnation. ErrFull when the kind has no id left.
func (t *IDs) Acquire(kind IDKind, description string) (ID, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return ID{}, fmt.Errorf("acquire %s id: %w", kindName(kind), err)
	}
	s := &t.kinds[kind]
	sig := Sign(description)
	if id, ok := s.known[sig]; ok {
		return id, nil
	}
	if len(s.free) == 0 && s.next > s.limit {
		return ID{}, fmt.Errorf("acquire %s id: %w (%d ids)", kindName(kind), ErrFull, s.limit)
	}
	incarnation, err := t.incarnation(kind)
	if err != nil {
		return ID{}, fmt.Errorf("acquire %s id: %w", kindName(kind), err)
	}
	id := ID{ID: s.next, Incarnation: incarnation}
	if len(s.free) > 0 {
		id.ID = s.free[0]
	}
	if err := t.table.put(LayoutIdKey{Hash: sig, Kind: uint32(kind)}, LayoutId{Id: id.ID, Incarnation: id.Incarnation}); err != nil {
		return ID{}, fmt.Errorf("acquire %s id: %w", kindName(kind), err)
	}
	if len(s.free) > 0 {
		s.free = s.free[1:]
	} else {
		s.next++
	}
	s.known[sig] = id
	return id, nil
}

// Find returns the id of a thing without giving it one.
func (t *IDs) Find(kind IDKind, description string) (ID, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return ID{}, false, fmt.Errorf("find %s id: %w", kindName(kind), err)
	}
	id, ok := t.kinds[kind].known[Sign(description)]
	return id, ok, nil
}

// Release gives an id back after nothing in the kernel names it any more; where packets in flight may, after a grace period. A thing
// without id is no error.
func (t *IDs) Release(kind IDKind, description string) error {
	return t.ReleaseSignature(kind, Sign(description))
}

// ReleaseSignature is Release for what List returned.
func (t *IDs) ReleaseSignature(kind IDKind, sig Signature) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return fmt.Errorf("release %s id: %w", kindName(kind), err)
	}
	s := &t.kinds[kind]
	id, ok := s.known[sig]
	if !ok {
		return nil
	}
	if err := t.table.delete(LayoutIdKey{Hash: sig, Kind: uint32(kind)}); err != nil {
		return fmt.Errorf("release %s id %d: %w", kindName(kind), id.ID, err)
	}
	delete(s.known, sig)
	s.free = append(s.free, id.ID)
	return nil
}

// List returns every id of a kind in no order, those that an agent before this one gave too.
func (t *IDs) List(kind IDKind) ([]Interned, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return nil, fmt.Errorf("list %s ids: %w", kindName(kind), err)
	}
	all := make([]Interned, 0, len(t.kinds[kind].known))
	for sig, id := range t.kinds[kind].known {
		all = append(all, Interned{Signature: sig, ID: id})
	}
	return all, nil
}

// load reads the table once.
func (t *IDs) load() error {
	if t.loaded {
		return nil
	}
	for kind := range t.kinds {
		s := &t.kinds[kind]
		s.known, s.next, s.free = map[Signature]ID{}, 1, nil
		if err := t.incarnations.Lookup(uint32(kind), &s.last); err != nil {
			return fmt.Errorf("read incarnations: %w", err)
		}
		s.reserved = s.last
	}
	err := t.table.walk(func(k LayoutIdKey, v LayoutId) {
		if int(k.Kind) >= len(t.kinds) {
			return // a kind of a later release
		}
		s := &t.kinds[k.Kind]
		s.known[k.Hash] = ID{ID: v.Id, Incarnation: v.Incarnation}
		s.next = max(s.next, v.Id+1)
	})
	if err != nil {
		return err
	}
	for kind := range t.kinds {
		s := &t.kinds[kind]
		used := make([]bool, s.next)
		for _, id := range s.known {
			used[id.ID] = true
		}
		for id := uint32(1); id < s.next; id++ {
			if !used[id] && id <= s.limit {
				s.free = append(s.free, id)
			}
		}
	}
	t.loaded = true
	return nil
}

// incarnation returns the next incarnation of a kind. The kernel's counter is ahead of every one given out, so that no later agent
// gives it out again. Words hold 32 bits: after four billion they start again, and 0 is left out.
func (t *IDs) incarnation(kind IDKind) (uint32, error) {
	s := &t.kinds[kind]
	for {
		if s.last == s.reserved {
			ahead := s.reserved + incarnationBlock
			if err := t.incarnations.Put(uint32(kind), ahead); err != nil {
				return 0, fmt.Errorf("write incarnations: %w", err)
			}
			s.reserved = ahead
		}
		s.last++
		if uint32(s.last&math.MaxUint32) != 0 {
			return uint32(s.last & math.MaxUint32), nil
		}
	}
}

// kindName returns a kind as errors name it.
func kindName(kind IDKind) string {
	switch kind {
	case IDService:
		return "service"
	case IDBackend:
		return "backend"
	case IDPeer:
		return "peer"
	case IDEndpoint:
		return "endpoint"
	case IDSourceRange:
		return "source range set"
	}
	return fmt.Sprintf("kind %d", uint32(kind))
}
