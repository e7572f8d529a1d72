/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Fragments: the head of a datagram carries the ports, its tails do not. Heads leave their ports here, tails find them. Written and
 * read by pod.c and overlay.c; survives the agent (KEEP) so that a restart cuts no datagram. Overflow: the oldest datagram goes.
 * IPv6 keys have no protocol: a tail names its next header, which need not be the transport's (RFC 8200, 4.5). */
#pragma once

#include "map.h"
#include "pkt.h"

struct fragment_key {
	struct addr src;
	struct addr dst;
	__u32 id;
	__u32 proto;
};

struct fragment {
	__be16 src_port;
	__be16 dst_port;
	__u8 proto;
	__u8 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps") KEEP;

/* True when the packet's ports are known: it is whole, or a head, or a tail whose head was seen. */
static __always_inline bool fragment_ports(struct pkt *p)
{
	struct fragment_key key = { .src = p->tuple.src, .dst = p->tuple.dst, .id = p->id };
	struct fragment head = {}, *found;

	if (!(p->flags & PKT_FRAGMENT))
		return true;
	key.proto = p->v6 ? 0 : p->tuple.proto;
	if (!(p->flags & PKT_TAIL)) {
		head.src_port = p->tuple.src_port;
		head.dst_port = p->tuple.dst_port;
		head.proto = p->tuple.proto;
		bpf_map_update_elem(&fragments, &key, &head, BPF_ANY);
		return true;
	}
	found = bpf_map_lookup_elem(&fragments, &key);
	if (!found)
		return false;
	p->tuple.src_port = found->src_port;
	p->tuple.dst_port = found->dst_port;
	p->tuple.proto = found->proto;
	return true;
}
