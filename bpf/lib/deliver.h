/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Delivery: which way a destination lies, and the last step of a packet there. The direct path (redirect_peer into a pod, tunnel key
 * and redirect to another node) treats the nodes as one switch and leaves TTL and hop limit alone; it cannot loop, since nothing that
 * came from the overlay goes back to it. Whatever it does not know goes to the kernel's own routing. */
#pragma once

#include "encap.h"
#include "endpoint.h"
#include "flow.h"
#include "icmp.h"

#define TC_OK 0
#define TC_SHOT 2

/* The end of every refused packet: counted under its one reason. */
static __always_inline int drop(int reason)
{
	drop_count(-reason);
	return TC_SHOT;
}

/* What a flow's record says of one packet, copied out of it. */
struct flow_facts {
	struct tuple to; /* what the packet must become, when translated */
	struct target target; /* where its destination is */
	struct target from; /* where its source is */
	__u8 translated;
	__u8 kind; /* enum target_kind of target */
	__u8 from_kind;
};

static __always_inline void flow_read(const struct flow_hit *hit, struct flow_facts *facts)
{
	const struct flow *f = hit->flow;

	if (hit->dir == FLOW_FORWARD) {
		facts->kind = f->fwd_kind;
		facts->target = f->fwd;
		facts->from_kind = f->rev_kind;
		facts->from = f->rev;
		facts->translated = (f->flags & FLOW_TRANSLATED) && !hit->translated;
		if (facts->translated)
			facts->to = f->xlat;
	} else {
		facts->kind = f->rev_kind;
		facts->target = f->rev;
		facts->from_kind = f->fwd_kind;
		facts->from = f->fwd;
		facts->translated = hit->translated;
		if (facts->translated)
			tuple_reverse(&facts->to, &f->orig);
	}
}

/* The way to an address: a pod here, another node's pod, or the stack. */
static __always_inline __u8 deliver_way(const struct addr *dst, struct target *t)
{
	__u32 flags = 0;

	if (endpoint_of_addr(dst, t))
		return TARGET_ENDPOINT;
	if (!cfg.overlay_ifindex)
		return TARGET_STACK;
	*t = peer_of(dst, &flags);
	if (t->id && !(flags & PEER_DIRECT))
		return TARGET_PEER;
	return TARGET_STACK;
}

/* Length of the largest packet that this buffer becomes on the wire, from the IP header on: a GSO buffer is cut into segments. */
static __always_inline __u32 deliver_length(const struct __sk_buff *skb, const struct pkt *p)
{
	if (skb->gso_size)
		return skb->gso_size + p->l4 + p->l4_len - ETH_LEN;
	return skb->len - ETH_LEN;
}

/* Into the pod's namespace without a second pass through the stack. TC action or negative drop reason. */
static __always_inline int deliver_endpoint(struct __sk_buff *skb, __u32 ifindex, const __u8 mac[6])
{
	int err = rewrite_macs(skb, mac, (const volatile __u8 *)cfg.gateway_mac);

	if (err)
		return err;
	return bpf_redirect_peer(ifindex, 0);
}

static __noinline int deliver_too_big(struct __sk_buff *skb, const struct pkt *p, __u32 mtu)
{
	struct icmp_answer answer = icmp_too_big(mtu);
	int err = icmp_answer(skb, p, &answer);

	if (err)
		return err;
	drop_count(DROP_TOO_BIG);
	return bpf_redirect_peer(skb->ifindex, 0);
}

/* Over the overlay. A packet that is too big is answered on the device it came from, unless it may be fragmented: then the stack does. */
static __always_inline int deliver_peer(struct __sk_buff *skb, const struct pkt *p, const struct addr *node, __u32 mtu)
{
	int err;

	if (!mtu || mtu > cfg.overlay_mtu)
		mtu = cfg.overlay_mtu;
	if (deliver_length(skb, p) > mtu)
		return p->flags & PKT_DONT_FRAGMENT ? deliver_too_big(skb, p, mtu) : TC_OK;
	err = encap(skb, node);
	if (err)
		return err;
	return bpf_redirect(cfg.overlay_ifindex, 0);
}
