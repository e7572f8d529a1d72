/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* VXLAN (RFC 7348) through one flow-based device: the tunnel key set here says where the kernel sends the frame. The outer source
 * address is left to routing, the outer UDP port hashes the inner flow. */
#pragma once

#include "config.h"
#include "drop.h"
#include "peer.h"
#include "target.h"

/* Copies the peer's outer address if the element still is that peer. */
static __always_inline bool peer_read(const struct target *t, struct addr *node, __u32 *mtu)
{
	struct peer *peer = bpf_map_lookup_elem(&peers, &t->id);
	__u64 word;

	if (!peer)
		return false;
	word = READ_ONCE(peer->word);
	if (word >> 32 != t->incarnation || !(word & PEER_LIVE))
		return false;
	*node = peer->node;
	*mtu = peer->mtu;
	barrier();
	return READ_ONCE(peer->word) == word;
}

/* The peer that owns a pod address; id 0: none. */
static __always_inline struct target peer_of(const struct addr *addr, __u32 *flags)
{
	struct peer_cidr key = { .prefixlen = 128 };
	struct target t = {};
	struct peer *peer;
	__u32 *id, *again;
	__u64 word;

	__builtin_memcpy(key.bytes, addr, sizeof(key.bytes));
	id = bpf_map_lookup_elem(&peer_cidrs, &key);
	if (!id)
		return t;
	t.id = READ_ONCE(*id);
	again = bpf_map_lookup_elem(&peer_cidrs, &key); /* a freed node may be another prefix's by now */
	if (again != id || READ_ONCE(*id) != t.id) /* not *again: 6.1 does not see that it is no null pointer */
		return (struct target){};
	peer = bpf_map_lookup_elem(&peers, &t.id);
	if (!peer)
		return (struct target){};
	word = READ_ONCE(peer->word);
	if (!(word & PEER_LIVE))
		return (struct target){};
	t.incarnation = word >> 32;
	*flags = word;
	return t;
}

/* Sets the tunnel key towards the node. IPv4 outer headers go without UDP checksum (RFC 7348, 5), IPv6 ones have it. */
static __always_inline int encap(struct __sk_buff *skb, const struct addr *node)
{
	struct bpf_tunnel_key key = { .tunnel_id = cfg.vni, .tunnel_ttl = 64 };
	__u64 flags = BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT;

	if (cfg.outer_v6) {
		flags = BPF_F_TUNINFO_IPV6 | BPF_F_DONT_FRAGMENT;
		__builtin_memcpy(key.remote_ipv6, node, sizeof(key.remote_ipv6));
	} else {
		key.remote_ipv4 = bpf_ntohl(node->words[3]);
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags) < 0 ? -DROP_TUNNEL_KEY : 0;
}
