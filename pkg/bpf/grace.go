// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// waiter waits for running programs to end. The update of a map that holds a map returns to userspace only after an RCU grace period
// (maybe_wait_bpf_programs in kernel/bpf/syscall.c): a promise that the kernel gives on purpose and that no other call gives.
type waiter struct {
	outer, inner *ebpf.Map
}

func newWaiter() (*waiter, error) {
	spec := &ebpf.MapSpec{Name: "grace_inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make grace period map: %w", err)
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Name: "grace", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: spec})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make grace period map: %w", err), inner.Close())
	}
	return &waiter{outer: outer, inner: inner}, nil
}

func (w *waiter) wait() error { return w.outer.Put(uint32(0), w.inner) }

func (w *waiter) close() error { return errors.Join(w.outer.Close(), w.inner.Close()) }
