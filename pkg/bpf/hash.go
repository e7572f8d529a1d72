// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrFull says that a map holds as many elements as it may: the change was refused and what was there stays.
var ErrFull = errors.New("map is full")

// hash is a kernel hash or trie that only agents write. It counts its elements, so that use is known without walking it.
type hash[K, V comparable] struct {
	name string
	m    *ebpf.Map

	mu     sync.Mutex
	known  bool // used was read from the kernel
	used   uint64
	failed uint64
}

// count reads the number of elements once; the lock is held.
func (h *hash[K, V]) count() error {
	if h.known {
		return nil
	}
	h.used = 0
	if err := h.walk(func(K, V) { h.used++ }); err != nil {
		return err
	}
	h.known = true
	return nil
}

// use returns elements and refused inserts.
func (h *hash[K, V]) use() (used, failed uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	err = h.count()
	return h.used, h.failed, err
}

// put inserts or replaces. A full map is ErrFull with the map's name and size.
func (h *hash[K, V]) put(k K, v V) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.m.Update(k, v, ebpf.UpdateNoExist)
	if err == nil {
		h.used++ // means nothing before the first count, which starts anew
		return nil
	}
	if errors.Is(err, ebpf.ErrKeyExist) {
		err = h.m.Update(k, v, ebpf.UpdateExist)
		if err == nil {
			return nil
		}
	}
	h.failed++
	// Hashes say E2BIG, tries and full free lists ENOSPC or ENOMEM.
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("write %s: %w (%d elements)", h.name, ErrFull, h.m.MaxEntries())
	}
	return fmt.Errorf("write %s: %w", h.name, err)
}

// get returns the value of a key.
func (h *hash[K, V]) get(k K) (v V, ok bool, err error) {
	err = h.m.Lookup(k, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("read %s: %w", h.name, err)
	}
	return v, true, nil
}

// delete removes a key; one that is not there is no error.
func (h *hash[K, V]) delete(k K) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.m.Delete(k)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete from %s: %w", h.name, err)
	}
	h.used--
	return nil
}

// deleteIf removes a key that has this value: an index that leads elsewhere by now is left alone.
func (h *hash[K, V]) deleteIf(k K, v V) error {
	got, ok, err := h.get(k)
	if err != nil || !ok || got != v {
		return err
	}
	return h.delete(k)
}

// walk calls f for every element.
func (h *hash[K, V]) walk(f func(K, V)) error {
	if err := walkBatch(h.m, f); err != nil {
		return fmt.Errorf("read all of %s: %w", h.name, err)
	}
	return nil
}

// walkBatch reads a map in slices of at most 4,096 elements, few enough that the kernel is never busy with one call for long.
func walkBatch[K, V any](m *ebpf.Map, f func(K, V)) error {
	n := min(int(m.MaxEntries()), 4096)
	var cursor ebpf.MapBatchCursor
	keys, values := make([]K, n), make([]V, n)
	for {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		// A bucket with more elements than a slice has room for asks for a larger slice.
		if errors.Is(err, unix.ENOSPC) && n < int(m.MaxEntries()) {
			n = min(2*n, int(m.MaxEntries()))
			keys, values = make([]K, n), make([]V, n)
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range got {
			f(keys[i], values[i])
		}
		if err != nil {
			return nil
		}
	}
}
