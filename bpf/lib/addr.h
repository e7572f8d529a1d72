/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Addresses: one 16-byte form for both families, IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), in network byte order.
 * One layout, one map, one code path; only parse.h, rewrite.h, icmp.h and the socket hooks know families. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

struct addr {
	union {
		__u8 bytes[16]; /* first, so that Go sees bytes */
		__be32 words[4];
		__u64 halves[2];
	};
};

/* One end to the other as it stands in the packet. Ports in network byte order; ICMP echo has its identifier in both; 0 where the
 * protocol has none. */
struct tuple {
	struct addr src;
	struct addr dst;
	__be16 src_port;
	__be16 dst_port;
	__u8 proto;
	__u8 pad[3];
};

#define ADDR_V4_PREFIX bpf_htonl(0x0000ffff)

static __always_inline struct addr addr_from_v4(__be32 v4)
{
	return (struct addr){ .words = { 0, 0, ADDR_V4_PREFIX, v4 } };
}

static __always_inline bool addr_is_v4(const struct addr *a)
{
	return a->halves[0] == 0 && a->words[2] == ADDR_V4_PREFIX;
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return !((a->halves[0] ^ b->halves[0]) | (a->halves[1] ^ b->halves[1]));
}

static __always_inline bool addr_is_zero(const struct addr *a)
{
	return !(a->halves[0] | a->halves[1]);
}

/* All 40 bytes, the padding included: whoever makes a tuple zeroes it first. */
static __always_inline bool tuple_equal(const struct tuple *a, const struct tuple *b)
{
	const __u64 *p = (const __u64 *)a, *q = (const __u64 *)b;

	return !((p[0] ^ q[0]) | (p[1] ^ q[1]) | (p[2] ^ q[2]) | (p[3] ^ q[3]) | (p[4] ^ q[4]));
}

static __always_inline void tuple_reverse(struct tuple *to, const struct tuple *from)
{
	to->src = from->dst;
	to->dst = from->src;
	to->src_port = from->dst_port;
	to->dst_port = from->src_port;
	to->proto = from->proto;
	__builtin_memset(to->pad, 0, sizeof(to->pad));
}
