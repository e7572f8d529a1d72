/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Answers that the dataplane gives itself: the packet becomes the ICMP error that its sender must see (RFC 792, RFC 4443). Never an
 * error for an error, for a tail, or for a packet that is not routed (RFC 1122, 3.2.2; RFC 4443, 2.4 e). */
#pragma once

#include "config.h"
#include "parse.h"
#include "rewrite.h"

#define ICMP_QUOTE_MAX 64 /* bytes of the offending packet that an answer carries: an IPv6 header, its ports and sequence number */

struct icmp_answer {
	struct addr from; /* ::: the node, as its pods know it */
	__u8 type4, code4;
	__u8 type6, code6;
	__u32 mtu; /* bytes; 0 unless too big */
};

static __always_inline struct icmp_answer icmp_too_big(__u32 mtu)
{
	return (struct icmp_answer){ .type4 = 3, .code4 = 4, .type6 = 2, .mtu = mtu };
}

/* Port unreachable refuses all three protocols: a TCP socket in SYN-SENT reports ECONNREFUSED for it (RFC 5461, 2.1). */
static __always_inline struct icmp_answer icmp_refuse(void)
{
	return (struct icmp_answer){ .type4 = 3, .code4 = 3, .type6 = 1, .code6 = 4 };
}

static __always_inline __sum16 icmp_fold(__s64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32 & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline bool icmp_may_answer(const struct pkt *p)
{
	return !(p->flags & (PKT_ICMP_ERROR | PKT_TAIL | PKT_LINK_SCOPE));
}

struct icmp_headers4 {
	struct ipv4 ip;
	__u8 type, code;
	__sum16 checksum;
	__be32 rest;
};

struct icmp_headers6 {
	struct ipv6 ip;
	__u8 type, code;
	__sum16 checksum;
	__be32 rest;
};

/* The quote: the start of the offending packet, a multiple of 4 bytes long. Returns its length, or 0. */
static __always_inline __u32 icmp_quote(struct __sk_buff *skb, __u8 *quote)
{
	__u32 n = skb->len - ETH_LEN;

	if (n > ICMP_QUOTE_MAX)
		n = ICMP_QUOTE_MAX;
	n &= ~3U;
	asm volatile("" : "+r"(n)); /* else clang leaves out the check that the verifier wants to see (clang 19) */
	if (n < 28 || n > ICMP_QUOTE_MAX)
		return 0;
	return bpf_skb_load_bytes(skb, ETH_LEN, quote, n) < 0 ? 0 : n;
}

static __always_inline int icmp_build4(struct __sk_buff *skb, const struct pkt *p, const struct icmp_answer *a, const __u8 *quote, __u32 n)
{
	struct icmp_headers4 h = {
		.ip = { .version_length = 0x45, .ttl = 64, .proto = PROTO_ICMP, .dst = p->tuple.src.words[3] },
		.type = a->type4, .code = a->code4, .rest = bpf_htonl(a->mtu),
	};

	h.ip.src = a->from.words[3];
	if (!h.ip.src)
		h.ip.src = cfg.overlay4.words[3] ? cfg.overlay4.words[3] : cfg.node4.words[3];
	h.ip.total_length = bpf_htons(sizeof(h) + n);
	h.ip.checksum = icmp_fold(bpf_csum_diff(0, 0, (__be32 *)&h.ip, sizeof(h.ip), 0));
	h.checksum = icmp_fold(bpf_csum_diff(0, 0, (__be32 *)quote, n, bpf_csum_diff(0, 0, (__be32 *)&h.type, 8, 0)));
	if (bpf_skb_change_tail(skb, ETH_LEN + sizeof(h) + n, 0) < 0)
		return -DROP_ICMP_ANSWER;
	if (bpf_skb_store_bytes(skb, ETH_LEN, &h, sizeof(h), 0) < 0)
		return -DROP_ICMP_ANSWER;
	return bpf_skb_store_bytes(skb, ETH_LEN + sizeof(h), quote, n, 0) < 0 ? -DROP_ICMP_ANSWER : 0;
}

static __always_inline int icmp_build6(struct __sk_buff *skb, const struct pkt *p, const struct icmp_answer *a, const __u8 *quote, __u32 n)
{
	struct icmp_headers6 h = {
		.ip = { .version_class_flow = bpf_htonl(0x60000000), .next = PROTO_ICMPV6, .hops = 64 },
		.type = a->type6, .code = a->code6, .rest = bpf_htonl(a->mtu),
	};
	__be32 pseudo[2] = { bpf_htonl(8 + n), bpf_htonl(PROTO_ICMPV6) };
	struct addr from = addr_is_zero(&a->from) ? config_addr(&cfg.overlay6) : a->from;
	__s64 sum;

	__builtin_memcpy(h.ip.src, &from, 16);
	__builtin_memcpy(h.ip.dst, &p->tuple.src, 16);
	h.ip.payload_length = bpf_htons(8 + n);
	sum = bpf_csum_diff(0, 0, (__be32 *)h.ip.src, 32, 0);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)&h.type, 8, sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)quote, n, sum);
	h.checksum = icmp_fold(sum);
	if (bpf_skb_change_tail(skb, ETH_LEN + sizeof(h) + n, 0) < 0)
		return -DROP_ICMP_ANSWER;
	if (bpf_skb_store_bytes(skb, ETH_LEN, &h, sizeof(h), 0) < 0)
		return -DROP_ICMP_ANSWER;
	return bpf_skb_store_bytes(skb, ETH_LEN + sizeof(h), quote, n, 0) < 0 ? -DROP_ICMP_ANSWER : 0;
}

/* Turns the packet into the answer to its sender, link addresses included. The caller sends it back where it came from. Not inlined:
 * its buffers are not the stack's daily load. */
static __noinline int icmp_answer(struct __sk_buff *skb, const struct pkt *p, const struct icmp_answer *a)
{
	__u8 quote[ICMP_QUOTE_MAX] = {}, macs[12];
	__u32 n;
	int err;

	if (!icmp_may_answer(p))
		return -DROP_ICMP_ANSWER;
	n = icmp_quote(skb, quote);
	asm volatile("" : "+r"(n)); /* the same */
	if (n < 28 || n > ICMP_QUOTE_MAX)
		return -DROP_ICMP_ANSWER;
	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)) < 0)
		return -DROP_ICMP_ANSWER;
	err = p->v6 ? icmp_build6(skb, p, a, quote, n) : icmp_build4(skb, p, a, quote, n);
	if (err)
		return err;
	return rewrite_macs(skb, macs + 6, macs);
}
