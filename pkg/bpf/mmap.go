// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// mapped is the memory of an array map made with BPF_F_MMAPABLE: what programs see, without a system call.
//
// Elements start at multiples of 8 bytes (the kernel rounds the value size up). Words are read and written with one atomic load or
// store of 4 or 8 aligned bytes; a program sees all of a word or nothing of it, and a store orders the stores before it.
type mapped struct {
	name    string
	bytes   []byte
	stride  uint32 // bytes from one element to the next
	entries uint32
}

// mapArray maps the memory of an array. The mapping outlives the map's file descriptor.
func mapArray(name string, m *ebpf.Map) (*mapped, error) {
	stride := (m.ValueSize() + 7) &^ 7
	page := unix.Getpagesize()
	size := (int(stride)*int(m.MaxEntries()) + page - 1) &^ (page - 1)
	b, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map memory of %s: %w", name, err)
	}
	return &mapped{name: name, bytes: b, stride: stride, entries: m.MaxEntries()}, nil
}

// close gives the memory back; nobody may touch it afterwards.
func (m *mapped) close() error {
	b := m.bytes
	m.bytes = nil
	return unix.Munmap(b)
}

// word64 returns the 8 aligned bytes at a byte offset inside an element.
func (m *mapped) word64(element, offset uint32) *uint64 {
	at := uint64(element)*uint64(m.stride) + uint64(offset)
	_ = m.bytes[at : at+8] // the bounds check
	return (*uint64)(unsafe.Pointer(&m.bytes[at]))
}

// word32 returns the 4 aligned bytes at a byte offset inside an element.
func (m *mapped) word32(element, offset uint32) *uint32 {
	at := uint64(element)*uint64(m.stride) + uint64(offset)
	_ = m.bytes[at : at+4]
	return (*uint32)(unsafe.Pointer(&m.bytes[at]))
}

// load reads one word as a program may be writing it.
func (m *mapped) load(element, offset uint32) uint64 {
	return atomic.LoadUint64(m.word64(element, offset))
}

// store writes one word; what was stored before it is visible to whoever sees it.
func (m *mapped) store(element, offset uint32, w uint64) {
	atomic.StoreUint64(m.word64(element, offset), w)
}

// element returns the bytes of one element. The caller sees to it that no program relies on them while it writes.
func (m *mapped) element(i uint32) []byte {
	at := uint64(i) * uint64(m.stride)
	return m.bytes[at : at+uint64(m.stride)]
}

// at returns element i as a C struct. Only words that a program may change at the same time need load and store.
func at[T any](m *mapped, i uint32) *T { return (*T)(unsafe.Pointer(&m.element(i)[0])) }
