/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Peers: the other nodes. Written by the agent from Node objects, read by pod.c and overlay.c; survive the agent (KEEP).
 *
 * A peer's element is written before its CIDRs and cleared after they are gone; an id is reused only with a new incarnation. Sizes:
 * 8,192 nodes with four CIDRs each; when full, new peers are refused with a condition and the old ones stay. */
#pragma once

#include "addr.h"
#include "map.h"

enum peer_flag {
	PEER_LIVE = 1,
	PEER_DIRECT = 2, /* same L2: routed by the kernel, no overlay */
};

struct peer {
	__u64 word; /* {incarnation:32, flags:32}: one aligned word, written last, cleared first */
	struct addr node; /* outer address */
	__u32 mtu; /* largest inner packet to this peer in bytes; 0: the node's own */
	__u32 pad;
	__u32 reserved[4];
};

struct peer_cidr {
	__u32 prefixlen; /* of the 128-bit form: an IPv4 /24 is 120 */
	__u8 bytes[16]; /* not struct addr: its alignment would put padding into the prefix */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32); /* peer id; 0 is never used */
	__type(value, struct peer);
} peers SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct peer_cidr);
	__type(value, __u32); /* peer id */
} peer_cidrs SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct addr); /* outer source address */
	__type(value, __u32); /* peer id */
} peer_nodes SEC(".maps") KEEP;
