// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// names reads the words for drop reasons and counters from the enums themselves.
func (o *Objects) names(types *btf.Spec) (err error) {
	if o.dropNames, err = enumNames(types, "drop_reason", "DROP_"); err != nil {
		return err
	}
	o.counterNames, err = enumNames(types, "counter", "COUNT_")
	return err
}

// enumNames returns the names of an enum that counts from 0, by value: DROP_IPV4_SHORT is "ipv4-short". The last one only says how many
// there are and is left out.
func enumNames(types *btf.Spec, enum, prefix string) ([]string, error) {
	var e *btf.Enum
	if err := types.TypeByName(enum, &e); err != nil {
		return nil, fmt.Errorf("read enum %s: %w", enum, err)
	}
	names := make([]string, len(e.Values)-1)
	for _, v := range e.Values {
		if v.Value >= uint64(len(names)) {
			continue
		}
		names[v.Value] = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(v.Name, prefix), "_", "-"))
	}
	return names, nil
}

// DropReasons returns the name of every drop reason by its number; 0 is "none".
func (o *Objects) DropReasons() []string { return o.dropNames }

// Drops returns how often each place refused a packet or a call since the maps were made, by the reason's name, zeroes included.
func (o *Objects) Drops() (map[string]uint64, error) {
	all, err := o.sums(LayoutMapDrops, o.dropNames)
	if err != nil {
		return nil, fmt.Errorf("read drops: %w", err)
	}
	delete(all, "none")
	return all, nil
}

// Counters returns what is counted and drops nothing, by name, zeroes included.
func (o *Objects) Counters() (map[string]uint64, error) {
	all, err := o.sums(LayoutMapCounters, o.counterNames)
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return all, nil
}

// sums adds up a per-CPU array over the CPUs.
func (o *Objects) sums(name string, names []string) (map[string]uint64, error) {
	all := make(map[string]uint64, len(names))
	var perCPU []uint64
	for i, n := range names {
		if err := o.maps[name].Lookup(uint32(i), &perCPU); err != nil {
			return nil, err
		}
		var sum uint64
		for _, v := range perCPU {
			sum += v
		}
		all[n] = sum
	}
	return all, nil
}
