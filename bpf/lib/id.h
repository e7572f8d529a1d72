/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What an id means survives the agent: every interned thing is found again by the 128-bit hash of its canonical signature. Written and
 * read by the agent only. Incarnations come from one counter per kind that only grows, so that a stored {id, incarnation} never means
 * another thing. */
#pragma once

#include "map.h"

enum id_kind {
	ID_SERVICE,
	ID_BACKEND,
	ID_PEER,
	ID_ENDPOINT,
	ID_SOURCE_RANGE,
	ID_KIND_MAX,
};

struct id_key {
	__u8 hash[16];
	__u32 kind; /* enum id_kind */
	__u32 pad;
};

struct id {
	__u32 id;
	__u32 incarnation;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1048576);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct id_key);
	__type(value, struct id);
} ids SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, enum id_kind);
	__type(value, __u64); /* last incarnation given out */
} incarnations SEC(".maps") KEEP;
