// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkFlowTable measures the flow table beside a kernel hash with the record as its value, in the same run: medians of rounds that
// take turns, in nanoseconds, the cost of the loop and of making the key taken off. A ratio below 1 is the table's gain.
//
// Lookups are a dependent chain of random flows, so that misses do not overlap. The hash only finds; flow_find also tells direction and
// translation. "seen" is what an established packet pays: flow_find and flow_seen.
func BenchmarkFlowTable(b *testing.B) {
	const rounds, lookups = 7, 1 << 18
	for _, flows := range []uint32{1, 1000, 10_000, 100_000, 500_000} {
		for _, translated := range []bool{false, true} {
			name := fmt.Sprintf("flows=%d", flows)
			job := TableJob{First: 1, Flows: flows, Proto: unix.IPPROTO_TCP}
			if translated {
				name += "/translated"
				job.Shape = TableShapeSHAPE_TRANSLATED
			}
			b.Run(name, func(b *testing.B) {
				slots := max((flows*2+511)/512*512, 131072)
				k := newFlowKit(b, slots)
				took := map[string][]float64{}
				measure := func(what, program string, count uint32) {
					job.Count = count
					start := time.Now()
					_, r := k.run(program, job)
					took[what] = append(took[what], float64(time.Since(start))/float64(count))
					if program != "b_base" && r.Ok != uint64(count) {
						b.Fatalf("%s: %d of %d", program, r.Ok, count)
					}
				}
				for range rounds { // the first of an empty table, then among slots that rest
					measure("create", "t_create", flows)
					measure("insert", "b_put", flows)
					measure("remove", "t_remove", flows)
					measure("delete", "b_delete", flows)
					k.freeAll()
				}
				measure("create", "t_create", flows)
				measure("insert", "b_put", flows)
				for b.Loop() {
					for range rounds {
						measure("base", "b_base", lookups)
						measure("find", "b_table", lookups)
						measure("seen", "b_seen", lookups)
						measure("hash", "b_plain", lookups)
					}
				}
				median := func(what string) float64 {
					slices.Sort(took[what])
					return took[what][len(took[what])/2]
				}
				base := median("base")
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median("find")-base, "find-ns")
				b.ReportMetric(median("seen")-base, "seen-ns")
				b.ReportMetric(median("hash")-base, "hash-ns")
				b.ReportMetric((median("find")-base)/(median("hash")-base), "find/hash")
				if flows > 1 {
					b.ReportMetric(median("create"), "create-ns")
					b.ReportMetric(median("insert"), "insert-ns")
					b.ReportMetric(median("create")/median("insert"), "create/insert")
					b.ReportMetric(median("remove"), "remove-ns")
				}
			})
		}
	}
}

// freeAll frees every slot at once, as the sweep would after its grace period.
func (k *flowKit) freeAll() {
	for w := range k.flows.slots.entries / 64 {
		k.flows.index.store(1+w/8, w%8*8, 0)
	}
	for slot := range k.flows.slots.entries {
		k.flows.slots.store(slot, 0, k.flows.slots.load(slot, 0)>>48<<48)
	}
}
