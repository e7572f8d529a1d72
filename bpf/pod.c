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
#include "lib/serve.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct serve);
} pod_scratch SEC(".maps");

static __always_inline struct serve *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&pod_scratch, &zero);
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

/* First packet of a flow that the pod opens: 0 or -enum drop_reason, as serve_create. */
static __always_inline int open_from_pod(struct __sk_buff *skb, struct serve *s, const struct target *self, struct flow_hit *hit)
{
	struct flow_new *n = &s->new;
	int err;

	__builtin_memset(n, 0, sizeof(*n));
	n->rev_kind = TARGET_ENDPOINT;
	n->rev = *self;
	s->origin = ORIGIN_POD;
	err = serve_resolve(skb, s);
	return err ? err : serve_create(s, hit);
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

static __always_inline int from_pod_ip(struct __sk_buff *skb, struct serve *s, const struct endpoint *ep, const struct target *self)
{
	struct flow_facts *facts = &s->facts;
	struct pkt *p = &s->pkt;
	struct flow_hit hit = {};
	int err;

	if (spoofed(skb, p, ep))
		return -DROP_SPOOFED_ADDRESS;
	if ((p->flags & (PKT_LINK_SCOPE | PKT_ICMP_ERROR)) || !fragment_ports(p))
		return deliver_stateless(skb, p);
	if (!serve_find(p, &hit)) {
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
	struct serve *s = scratch();
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

static __always_inline int to_pod_ip(struct __sk_buff *skb, struct serve *s, const struct endpoint *ep, const struct target *self)
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
	if (!serve_find(p, &hit)) {
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
	struct serve *s = scratch();
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
