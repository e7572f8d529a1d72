/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* From the frame to struct pkt. What cannot be parsed has a reason of its own; what is not IP is not ours and passes. */
#pragma once

#include "drop.h"
#include "pkt.h"

#define PARSE_NOT_IP 1
#define PARSE_PULL (ETH_LEN + 60 + 20) /* longest IPv4 header and a bare TCP header */

struct ipv4 {
	__u8 version_length;
	__u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 proto;
	__sum16 checksum;
	__be32 src;
	__be32 dst;
};

struct ipv6 {
	__be32 version_class_flow;
	__be16 payload_length;
	__u8 next;
	__u8 hops;
	__u8 src[16];
	__u8 dst[16];
};

#define IPV4_DF bpf_htons(0x4000)
#define IPV4_MF bpf_htons(0x2000)
#define IPV4_OFFSET bpf_htons(0x1fff)

static __always_inline void *frame(const struct __sk_buff *skb) { return (void *)(long)skb->data; }
static __always_inline void *frame_end(const struct __sk_buff *skb) { return (void *)(long)skb->data_end; }

/* Ports, flags and length of the transport header, which begins at p->l4. */
static __always_inline int parse_ports(struct __sk_buff *skb, struct pkt *p)
{
	__u16 at = p->l4 & 0x1ff; /* the verifier wants a bound (seen on 6.1) */
	__u8 *h = frame(skb) + at, *end = frame_end(skb);

	switch (p->tuple.proto) {
	case PROTO_TCP:
		if (h + 20 > end)
			return -DROP_PORTS_SHORT;
		p->tcp_flags = h[13];
		p->l4_len = (h[12] >> 4) * 4;
		p->tuple.src_port = *(__be16 *)h;
		p->tuple.dst_port = *(__be16 *)(h + 2);
		return 0;
	case PROTO_UDP:
	case PROTO_SCTP:
		if (h + 8 > end)
			return -DROP_PORTS_SHORT;
		p->l4_len = 8;
		p->tuple.src_port = *(__be16 *)h;
		p->tuple.dst_port = *(__be16 *)(h + 2);
		return 0;
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		if (h + 8 > end)
			return -DROP_PORTS_SHORT;
		p->icmp_type = h[0];
		/* Echo request and reply carry an identifier, which tells pings apart in both directions. */
		if (p->v6 ? (h[0] == 128 || h[0] == 129) : (h[0] == 8 || h[0] == 0)) {
			p->tuple.src_port = *(__be16 *)(h + 4);
			p->tuple.dst_port = *(__be16 *)(h + 4);
		} else if (p->v6 ? h[0] < 128 : (h[0] == 3 || h[0] == 11 || h[0] == 12)) {
			p->flags |= PKT_ICMP_ERROR;
		}
		return 0;
	}
	return 0;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct pkt *p)
{
	struct ipv4 *ip = frame(skb) + ETH_LEN;
	__u32 length;

	if ((void *)(ip + 1) > frame_end(skb))
		return -DROP_IPV4_SHORT;
	length = (ip->version_length & 0xf) * 4;
	p->l3_len = bpf_ntohs(ip->total_length);
	if (ip->version_length >> 4 != 4 || length < sizeof(*ip) || p->l3_len < length)
		return -DROP_IPV4_HEADER;
	p->tuple.src = addr_from_v4(ip->src);
	p->tuple.dst = addr_from_v4(ip->dst);
	p->tuple.proto = ip->proto;
	p->l4 = ETH_LEN + length;
	if (ip->fragment & IPV4_DF)
		p->flags |= PKT_DONT_FRAGMENT;
	if ((ip->dst & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || ip->dst == 0xffffffff)
		p->flags |= PKT_LINK_SCOPE;
	if (ip->fragment & (IPV4_MF | IPV4_OFFSET)) {
		p->id = ip->id;
		p->flags |= ip->fragment & IPV4_OFFSET ? PKT_FRAGMENT | PKT_TAIL : PKT_FRAGMENT;
		if (p->flags & PKT_TAIL)
			return 0;
	}
	return parse_ports(skb, p);
}

/* RFC 8200, 4: walks hop-by-hop, routing, destination and authentication headers to the transport header. */
static __always_inline int parse_ipv6(struct __sk_buff *skb, struct pkt *p)
{
	struct ipv6 *ip = frame(skb) + ETH_LEN;
	__u32 at = ETH_LEN + sizeof(*ip);
	__u8 next, h[8];

	if ((void *)(ip + 1) > frame_end(skb))
		return -DROP_IPV6_SHORT;
	__builtin_memcpy(&p->tuple.src, ip->src, 16);
	__builtin_memcpy(&p->tuple.dst, ip->dst, 16);
	if (addr_is_v4(&p->tuple.src) || addr_is_v4(&p->tuple.dst))
		return -DROP_IPV6_MAPPED;
	p->v6 = 1;
	p->flags |= PKT_DONT_FRAGMENT;
	if (ip->dst[0] == 0xff || (ip->dst[0] == 0xfe && (ip->dst[1] & 0xc0) == 0x80))
		p->flags |= PKT_LINK_SCOPE;
	p->l3_len = ip->payload_length ? bpf_ntohs(ip->payload_length) + sizeof(*ip) : 0;
	next = ip->next;
	for (int i = 0; i < 8; i++) {
		__u8 header = next;

		if (header != 0 && header != 43 && header != 44 && header != 51 && header != 60) {
			p->tuple.proto = header;
			p->l4 = at;
			if (at > ETH_LEN + sizeof(*ip)) /* the extension headers took what was pulled */
				bpf_skb_pull_data(skb, at + 20 <= skb->len ? at + 20 : skb->len);
			return parse_ports(skb, p);
		}
		if (bpf_skb_load_bytes(skb, at, h, sizeof(h)) < 0)
			return -DROP_IPV6_EXTENSION;
		next = h[0];
		if (header == 44) {
			__u16 offset = (__u16)h[2] << 8 | h[3];

			if (!(offset & 0xfff9)) { /* an atomic fragment is a whole packet: RFC 6946 */
				at += 8;
				continue;
			}
			p->id = (__u32)h[4] << 24 | (__u32)h[5] << 16 | (__u32)h[6] << 8 | h[7];
			p->flags |= PKT_FRAGMENT;
			if (offset & 0xfff8) {
				p->flags |= PKT_TAIL;
				p->tuple.proto = next;
				p->l4 = at + 8;
				return 0;
			}
			at += 8;
		} else {
			at += header == 51 ? ((__u32)h[1] + 2) * 4 : ((__u32)h[1] + 1) * 8;
		}
		if (at > 0x1c0) /* bounds every later offset for the verifier; no real packet comes near */
			return -DROP_IPV6_EXTENSION;
	}
	return -DROP_IPV6_EXTENSION;
}

/* Fills *p. 0, PARSE_NOT_IP, or the negative drop reason. */
STAGE int parse(struct __sk_buff *skb, struct pkt *p)
{
	__u8 *h = frame(skb);

	if (!p)
		return -DROP_SCRATCH;
	__builtin_memset(p, 0, sizeof(*p));
	if (h + PARSE_PULL > (__u8 *)frame_end(skb)) { /* headers may sit in fragments of the buffer */
		bpf_skb_pull_data(skb, skb->len < PARSE_PULL ? skb->len : PARSE_PULL);
		h = frame(skb);
	}
	if (h + ETH_LEN > (__u8 *)frame_end(skb))
		return -DROP_ETHERNET_SHORT;
	switch (*(__be16 *)(h + 12)) {
	case ETH_IPV4:
		return parse_ipv4(skb, p);
	case ETH_IPV6:
		return parse_ipv6(skb, p);
	}
	return PARSE_NOT_IP;
}
