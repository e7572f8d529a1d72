/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The two filters on the host side of every pod's veth. Directions are the host's: from_pod sees what the pod sends, to_pod what the
 * node's own stack sends to it. Packets that another program redirects into a pod have been judged by that program. */
#include "lib/choice.h"
#include "lib/config.h"
#include "lib/deliver.h"
#include "lib/drop.h"
#include "lib/endpoint.h"
#include "lib/flow.h"
#include "lib/fragment.h"
#include "lib/icmp.h"
#include "lib/parse.h"
#include "lib/rewrite.h"

#define SNAT_PORT_MIN 61000U /* above the default ephemeral range of Linux (32768 to 60999) */
#define SNAT_PORTS 4000U
#define SNAT_TRIES 8

/* What does not fit on the 512 bytes of stack. Of this file alone: its programs run with softirqs off and never interrupt each other. */
struct pod_scratch {
	struct pkt pkt;
	struct flow_new new;
	struct choice choice;
	struct flow_facts facts;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pod_scratch);
} pod_scratch SEC(".maps");

static __always_inline struct pod_scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&pod_scratch, &zero);
}

/* Sends the packet where its flow's other end is. The flow's target is a hint: when what it names is gone, the address decides
 * anew. Not inlined, so that its stack and that of flow_create do not add up. */
static __noinline int deliver(struct __sk_buff *skb, const struct pkt *p, __u8 kind, struct target t)
{
	struct addr node;
	__u32 ifindex, mtu;
	__u8 mac[6];

	for (int i = 0; i < 2; i++) {
		if (kind == TARGET_ENDPOINT && endpoint_read(&t, &ifindex, mac))
			return deliver_endpoint(skb, ifindex, mac);
		if (kind == TARGET_PEER && peer_read(&t, &node, &mtu))
			return deliver_peer(skb, p, &node, mtu);
		if (kind == TARGET_STACK)
			break;
		kind = deliver_way(&p->tuple.dst, &t);
	}
	count(COUNT_TO_STACK);
	return TC_OK;
}

/* Answers a refused packet on the device it came from. */
static __noinline int refuse(struct __sk_buff *skb, struct pkt *p, int reason)
{
	struct icmp_answer answer = icmp_refuse();
	int err;

	if (!icmp_may_answer(p))
		return reason;
	err = icmp_answer(skb, p, &answer);
	if (err)
		return err;
	drop_count(-reason);
	return bpf_redirect_peer(skb->ifindex, 0);
}

/* Makes the flow with a source port that no other flow to its backend has. */
static __always_inline int create_ported(struct flow_new *n, struct flow_hit *hit)
{
	int err = -DROP_FLOW_PORTS;

	for (int i = 0; i < SNAT_TRIES; i++) {
		n->xlat.src_port = bpf_htons(SNAT_PORT_MIN + bpf_get_prandom_u32() % SNAT_PORTS);
		err = flow_create(n, hit);
		if (err != -DROP_FLOW_PORTS)
			break;
	}
	return err;
}

/* What the first packet of a flow that the pod opens becomes, into s->new: 0 or -enum drop_reason. Not inlined, so that its stack and
 * that of flow_create do not add up. */
static __noinline int resolve(struct __sk_buff *skb, struct pod_scratch *s)
{
	struct flow_new *n = &s->new;
	struct choice *c = &s->choice;
	struct frontend f;
	int err;

	n->orig = s->pkt.tuple;
	n->xlat = n->orig;
	if (frontend_find(&n->orig.dst, n->orig.dst_port, n->orig.proto, &f)) {
		err = service_choose(&f, &n->orig.src, c);
		if (err)
			return err;
		n->xlat.dst = c->addr;
		n->xlat.dst_port = c->port;
		n->service = c->service;
		n->service_incarnation = c->service_incarnation;
		n->backend = c->backend;
		n->backend_incarnation = c->backend_incarnation;
	} else if (bpf_map_lookup_elem(&cluster_ips, &n->orig.dst)) {
		return -DROP_SERVICE_PORT;
	}
	n->fwd_kind = deliver_way(&n->xlat.dst, &n->fwd);
	return skb ? 0 : -DROP_SCRATCH; /* clang drops an unused context, which the verifier of a subprogram misses */
}

/* First packet of a flow that the pod opens: 0 or -enum drop_reason. Afterwards the flow exists, or hit->flow is NULL: then it is not
 * translated, and passes without a record. */
static __always_inline int open_from_pod(struct __sk_buff *skb, struct pod_scratch *s, const struct target *self, struct flow_hit *hit)
{
	struct flow_new *n = &s->new;
	int err;

	__builtin_memset(n, 0, sizeof(*n));
	n->rev_kind = TARGET_ENDPOINT;
	n->rev = *self;
	err = resolve(skb, s);
	if (err)
		return err;
	/* A pod that its own Service sends to itself must not see its own address as the client's (services.md 1.4, hairpin): it sees
	 * the node's overlay address. */
	if (n->backend && addr_equal(&n->xlat.dst, &n->xlat.src)) {
		n->xlat.src = addr_is_v4(&n->orig.dst) ? config_addr(&cfg.overlay4) : config_addr(&cfg.overlay6);
		return create_ported(n, hit);
	}
	err = flow_create(n, hit);
	/* The pod speaks to this backend from the same port already: directly or through another Service, or, the other way round,
	 * through a Service before directly. Then this flow takes another source port. */
	if ((err == -DROP_FLOW_PORTS && n->backend) || (!err && hit->translated && hit->dir == FLOW_FORWARD))
		return create_ported(n, hit);
	if (err && !n->backend) { /* nothing depends on the record: DESIGN, invariant 2 */
		count(COUNT_FLOW_UNRECORDED);
		hit->flow = NULL;
		return 0;
	}
	return err;
}

/* Packets that no flow describes: IPv6 neighbour discovery and multicast, ICMP errors, tails of unknown datagrams. */
static __always_inline int deliver_stateless(struct __sk_buff *skb, struct pkt *p)
{
	struct target t = {};
	__u8 kind;

	if (p->flags & PKT_LINK_SCOPE)
		return TC_OK;
	if (bpf_map_lookup_elem(&cluster_ips, &p->tuple.dst))
		return -DROP_SERVICE_FRAGMENT;
	kind = deliver_way(&p->tuple.dst, &t);
	return deliver(skb, p, kind, t);
}

static __always_inline bool spoofed(struct __sk_buff *skb, const struct pkt *p, const struct endpoint *ep)
{
	if (endpoint_has(ep, &p->tuple.src))
		return false;
	/* Link-local sources speak on their link only: neighbour discovery, multicast listener reports (:: is its first). */
	return !(p->v6 && (p->flags & PKT_LINK_SCOPE) &&
		 (addr_is_zero(&p->tuple.src) || (p->tuple.src.words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000)));
}

/* Finds the flow of a packet, unless it is over or its backend no longer serves: then it has ended, and the packet is a first one.
 * UDP chooses again at once (services.md 1.5); TCP stays with its backend and drains. */
static __always_inline bool find_current(const struct pkt *p, struct flow_hit *hit)
{
	if (!flow_find_sent(&p->tuple, hit))
		return false;
	if (hit->translated && hit->dir == FLOW_FORWARD && !flow_over(hit, p->tcp_flags))
		return false; /* of a Service's flow that this one meets: open_from_pod */
	if (!flow_over(hit, p->tcp_flags) &&
	    (p->tuple.proto != PROTO_UDP || hit->dir != FLOW_FORWARD || !hit->flow->backend ||
	     backend_current(hit->flow->backend, hit->flow->backend_incarnation, BACKEND_SERVING)))
		return true;
	flow_remove(hit);
	return false;
}

static __always_inline int from_pod_ip(struct __sk_buff *skb, struct pod_scratch *s, const struct endpoint *ep, const struct target *self)
{
	struct flow_facts *facts = &s->facts;
	struct pkt *p = &s->pkt;
	struct flow_hit hit = {};
	int err;

	if (spoofed(skb, p, ep))
		return -DROP_SPOOFED_ADDRESS;
	if ((p->flags & (PKT_LINK_SCOPE | PKT_ICMP_ERROR)) || !fragment_ports(p))
		return deliver_stateless(skb, p);
	if (!find_current(p, &hit)) {
		err = open_from_pod(skb, s, self, &hit);
		if (err == -DROP_SERVICE_REFUSED || err == -DROP_SERVICE_PORT)
			return refuse(skb, p, err);
		if (err)
			return err;
		if (!hit.flow)
			return deliver(skb, p, s->new.fwd_kind, s->new.fwd);
	}
	flow_read(&hit, facts);
	if (facts->translated) {
		err = rewrite(skb, p, &facts->to);
		if (err)
			return err;
	}
	flow_seen(&hit, p->tcp_flags);
	return deliver(skb, p, facts->kind, facts->target);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct pod_scratch *s = scratch();
	struct target self = {};
	struct endpoint *ep;
	__u8 mac[6];
	int ret;

	if (!s)
		return drop(-DROP_SCRATCH);
	ep = endpoint_of_link(skb->ifindex, &self);
	if (!ep)
		return drop(-DROP_ENDPOINT_UNKNOWN);
	ret = parse(skb, &s->pkt);
	if (ret == PARSE_NOT_IP)
		return TC_OK; /* LLC, ARP and the like are not ours to judge */
	if (ret < 0)
		return drop(ret);
	if (bpf_skb_load_bytes(skb, 6, mac, sizeof(mac)) < 0 || __builtin_memcmp(mac, ep->mac, sizeof(mac)))
		return drop(-DROP_SPOOFED_MAC);
	ret = from_pod_ip(skb, s, ep, &self);
	return ret < 0 ? drop(ret) : ret;
}

static __always_inline int to_pod_ip(struct __sk_buff *skb, struct pod_scratch *s, const struct endpoint *ep, const struct target *self)
{
	struct flow_facts *facts = &s->facts;
	struct flow_new *n = &s->new;
	struct pkt *p = &s->pkt;
	struct flow_hit hit = {};
	int err;

	if (p->flags & PKT_LINK_SCOPE)
		return TC_OK;
	if (!endpoint_has(ep, &p->tuple.dst))
		return -DROP_TO_POD_ADDRESS;
	if ((p->flags & PKT_ICMP_ERROR) || !fragment_ports(p))
		return TC_OK;
	if (!find_current(p, &hit)) {
		__builtin_memset(n, 0, sizeof(*n));
		n->orig = p->tuple;
		n->xlat = p->tuple;
		n->fwd_kind = TARGET_ENDPOINT;
		n->fwd = *self;
		n->rev_kind = TARGET_STACK;
		if (flow_create(n, &hit)) {
			count(COUNT_FLOW_UNRECORDED);
			return TC_OK;
		}
	}
	flow_read(&hit, facts);
	if (facts->translated) {
		err = rewrite(skb, p, &facts->to);
		if (err)
			return err;
	}
	flow_seen(&hit, p->tcp_flags);
	return TC_OK;
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct pod_scratch *s = scratch();
	struct target self = {};
	struct endpoint *ep;
	int ret;

	if (!s)
		return drop(-DROP_SCRATCH);
	ep = endpoint_of_link(skb->ifindex, &self);
	if (!ep)
		return drop(-DROP_TO_POD_UNKNOWN);
	ret = parse(skb, &s->pkt);
	if (ret == PARSE_NOT_IP)
		return TC_OK;
	if (ret == 0)
		ret = to_pod_ip(skb, s, ep, &self);
	return ret < 0 ? drop(ret) : ret;
}

char _license[] SEC("license") = "Dual BSD/GPL";
