/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The one timer, and how far it is. Armed by the agent through sweep_arm, then it re-arms itself; survives the agent (KEEP). A pinned
 * array keeps its timer, and the timer keeps its program: flows expire without any process. The next agent's sweep_arm replaces the
 * program. */
#pragma once

#include "map.h"

struct sweep {
	struct bpf_timer timer;
	__u64 ticked; /* CLOCK_MONOTONIC in nanoseconds at the end of the last tick: the sign of life */
	__u32 passes; /* over the whole table, completed */
	__u32 word; /* of the bitmap: the next one to look at */
	__u64 bits; /* slots of the word before it still to look at */
	/* in this pass so far */
	__u32 used; /* slots taken */
	__u32 kept; /* of them established, closing or replied */
	__u32 dying; /* of them not yet free again */
	/* in the last complete pass */
	__u32 last_used;
	__u32 last_kept;
	__u32 last_dying;
	__u32 reserved[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sweep);
} sweep_timer SEC(".maps") KEEP;
