/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* One packet, parsed once. Holds offsets and values, never packet pointers: helpers that change the packet make pointers stale. */
#pragma once

#include "addr.h"

#define ETH_LEN 14
#define ETH_IPV4 bpf_htons(0x0800)
#define ETH_IPV6 bpf_htons(0x86dd)

enum {
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ICMPV6 = 58,
	PROTO_SCTP = 132,
};

enum tcp_flag {
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
	TCP_ACK = 16,
};

enum pkt_flag {
	PKT_FRAGMENT = 1, /* part of a fragmented datagram */
	PKT_TAIL = 2, /* a fragment without the transport header */
	PKT_ICMP_ERROR = 4, /* carries the head of another packet */
	PKT_DONT_FRAGMENT = 8, /* IPv4 DF; always set for IPv6 */
	PKT_LINK_SCOPE = 16, /* multicast, broadcast or IPv6 link-local destination: never routed. (IPv4 link-local is: metadata servers) */
};

struct pkt {
	struct tuple tuple; /* ports are 0 where the packet has none */
	__u16 l4; /* offset of the transport header from the frame's start; the network header is at ETH_LEN */
	__u16 l4_len; /* length of the transport header in bytes: TCP with options, UDP 8, else 0 */
	__u16 l3_len; /* length of the packet from its IP header on, as the header says; 0 for jumbograms */
	__u8 v6;
	__u8 flags; /* enum pkt_flag */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 pad[2];
	__u32 id; /* identification of the datagram, for fragments */
};
