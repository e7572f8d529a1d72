/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Which version of its meaning each kept map has. Written by the agent before it pins a map, read by the next agent, which adopts its own
 * version, the one before and the one after: a layout changes over two releases, of which the first reads both and the second writes
 * the new one. Sizes and fields are compared by BTF; a version is raised (KEEP_VERSION) when the same bytes come to mean something
 * else. Size: room for every map of any release. */
#pragma once

#include "map.h"

struct layout_name {
	__u8 bytes[16]; /* as the map is called, zero-filled */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct layout_name);
	__type(value, __u32); /* version */
} layouts SEC(".maps") KEEP;
