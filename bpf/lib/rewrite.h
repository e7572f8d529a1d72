/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Address and port translation of one packet, with its checksums. The mapped prefix of IPv4 addresses is equal on both sides and
 * drops out of the difference, so both families share one sum over 32 bytes. */
#pragma once

#include "crc32c.h"
#include "drop.h"
#include "parse.h"
#include "pkt.h"

/* Offset of the checksum that covers the pseudo header; 0: the protocol has none there (SCTP, ICMPv4). */
static __always_inline __u16 rewrite_sum_at(const struct pkt *p)
{
	switch (p->tuple.proto) {
	case PROTO_TCP:
		return p->l4 + 16;
	case PROTO_UDP:
		return p->l4 + 6;
	case PROTO_ICMPV6:
		return p->l4 + 2;
	}
	return 0;
}

/* The SCTP checksum covers the whole packet, but not its addresses (RFC 9260, 6.8). Where a device is to compute it later, this does no
 * harm. Fragments keep their ports: how long the whole is, their head does not say. */
static __always_inline int rewrite_sctp(struct __sk_buff *skb, struct pkt *p, const __be16 *from, const __be16 *to)
{
	__u32 sum, first = ((__u32)from[0] | (__u32)from[1] << 16) ^ ((__u32)to[0] | (__u32)to[1] << 16);

	if (p->flags & PKT_FRAGMENT)
		return -DROP_SCTP_PORT;
	if (bpf_skb_load_bytes(skb, p->l4 + 8, &sum, sizeof(sum)) < 0)
		return -DROP_REWRITE;
	sum ^= crc32c_difference(first, (__u16)(p->l3_len + ETH_LEN - p->l4));
	return bpf_skb_store_bytes(skb, p->l4 + 8, &sum, sizeof(sum), 0) < 0 ? -DROP_REWRITE : 0;
}

static __always_inline int rewrite_transport(struct __sk_buff *skb, struct pkt *p, const struct tuple *to, __s64 diff)
{
	__u64 mangled = p->tuple.proto == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0; /* a zero UDP checksum stays zero */
	__u16 sum = rewrite_sum_at(p);
	__be16 from_ports[2] = { p->tuple.src_port, p->tuple.dst_port };
	__be16 to_ports[2] = { to->src_port, to->dst_port };
	int err;

	if (sum && diff && bpf_l4_csum_replace(skb, sum, 0, diff, BPF_F_PSEUDO_HDR | mangled) < 0)
		return -DROP_CHECKSUM;
	if (from_ports[0] == to_ports[0] && from_ports[1] == to_ports[1])
		return 0;
	if (p->tuple.proto == PROTO_SCTP) {
		err = rewrite_sctp(skb, p, from_ports, to_ports);
		if (err)
			return err;
	}
	diff = bpf_csum_diff((__be32 *)from_ports, sizeof(from_ports), (__be32 *)to_ports, sizeof(to_ports), 0);
	if (sum && bpf_l4_csum_replace(skb, sum, 0, diff, mangled) < 0)
		return -DROP_CHECKSUM;
	if (bpf_skb_store_bytes(skb, p->l4, to_ports, sizeof(to_ports), 0) < 0)
		return -DROP_REWRITE;
	return 0;
}

/* Makes the packet say *to. A fragment's tail has no ports and no checksum: only its addresses change. */
static __always_inline int rewrite(struct __sk_buff *skb, struct pkt *p, const struct tuple *to)
{
	__s64 diff = bpf_csum_diff((__be32 *)&p->tuple, 2 * sizeof(struct addr), (__be32 *)to, 2 * sizeof(struct addr), 0);
	int err;

	if (!(p->flags & PKT_TAIL)) {
		err = rewrite_transport(skb, p, to, diff);
		if (err)
			return err;
	}
	if (p->v6) {
		if (bpf_skb_store_bytes(skb, ETH_LEN + 8, to, 2 * sizeof(struct addr), 0) < 0)
			return -DROP_REWRITE;
	} else {
		__be32 addrs[2] = { to->src.words[3], to->dst.words[3] };

		if (bpf_l3_csum_replace(skb, ETH_LEN + 10, 0, diff, 0) < 0)
			return -DROP_CHECKSUM;
		if (bpf_skb_store_bytes(skb, ETH_LEN + 12, addrs, sizeof(addrs), 0) < 0)
			return -DROP_REWRITE;
	}
	p->tuple = *to;
	return 0;
}

/* Both link addresses in one store. */
static __always_inline int rewrite_macs(struct __sk_buff *skb, const volatile __u8 dst[6], const volatile __u8 src[6])
{
	__u8 macs[12];

	for (int i = 0; i < 6; i++) {
		macs[i] = dst[i];
		macs[6 + i] = src[i];
	}
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0) < 0 ? -DROP_REWRITE : 0;
}
