/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Delivery: which way a destination lies, and the last step of a packet there. The direct path (redirect_peer into a pod, tunnel key
 * and redirect to another node) treats the nodes as one switch and leaves TTL and hop limit alone; it cannot loop, since nothing that
 * came from the overlay goes back to it. Whatever it does not know goes to the kernel's own routing. */
#pragma once

#include "device.h"
#include "encap.h"
#include "endpoint.h"
#include "flow.h"
#include "icmp.h"

#define TC_OK 0
#define TC_SHOT 2

#define DELIVER_AF_INET 2
#define DELIVER_AF_INET6 10

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

/* The node's routing, asked for a packet that came in by this device: BPF_FIB_LKUP_RET_*. */
static __always_inline int deliver_route(struct __sk_buff *skb, const struct addr *src, const struct addr *dst, struct bpf_fib_lookup *fib)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = skb->ifindex;
	if (addr_is_v4(dst)) {
		fib->family = DELIVER_AF_INET;
		fib->ipv4_src = src->words[3];
		fib->ipv4_dst = dst->words[3];
	} else {
		fib->family = DELIVER_AF_INET6;
		__builtin_memcpy(fib->ipv6_src, src, sizeof(*src));
		__builtin_memcpy(fib->ipv6_dst, dst, sizeof(*dst));
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

/* Out of the node by its routes, past the stack, which drops what comes in with a source of the node's own. The stack still gets what is
 * for the node itself or needs more than a route. Not inlined: its buffers are not the stack's daily load. */
static __noinline int deliver_out(struct __sk_buff *skb, const struct pkt *p)
{
	struct bpf_redir_neigh hop = {};
	struct bpf_fib_lookup fib;

	switch (deliver_route(skb, &p->tuple.src, &p->tuple.dst, &fib)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return -DROP_NO_ROUTE;
	default:
		count(COUNT_TO_STACK);
		return TC_OK;
	}
	hop.nh_family = fib.family;
	__builtin_memcpy(hop.ipv6_nh, fib.ipv6_dst, sizeof(hop.ipv6_nh));
	return bpf_redirect_neigh(fib.ifindex, &hop, sizeof(hop), 0);
}

/* Sends the packet where its flow's other end is. The flow's target is a hint: when what it names is gone, the address decides
 * anew. Not inlined, so that its stack and that of flow_create do not add up; not for every hook. */
static __noinline __attribute__((unused)) int deliver(struct __sk_buff *skb, const struct pkt *p, __u8 kind, struct target t)
{
	struct addr node;
	__u32 ifindex, mtu;
	__u8 mac[6];

	for (int i = 0; i < 2; i++) {
		if (kind == TARGET_ENDPOINT && endpoint_read(&t, &ifindex, mac))
			return deliver_endpoint(skb, ifindex, mac);
		if (kind == TARGET_PEER && peer_read(&t, &node, &mtu))
			return deliver_peer(skb, p, &node, mtu);
		if (kind == TARGET_OUT)
			return deliver_out(skb, p);
		if (kind == TARGET_STACK)
			break;
		kind = deliver_way(&p->tuple.dst, &t);
	}
	count(COUNT_TO_STACK);
	return TC_OK;
}
