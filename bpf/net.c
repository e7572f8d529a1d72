/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The two programs on every device of the node that leads to other machines: from_net leads what comes from outside for a Service or a
 * host port to its backend, and replies of backends elsewhere back; to_net gives what the node's own backends answer the Service's name.
 * All else is the kernel's. */
#include "lib/config.h"
#include "lib/deliver.h"
#include "lib/drop.h"
#include "lib/flow.h"
#include "lib/fragment.h"
#include "lib/icmp.h"
#include "lib/parse.h"
#include "lib/rewrite.h"
#include "lib/serve.h"

/* What the kernel goes on with is also for others' programs on the device (TCX_NEXT, TC_ACT_UNSPEC). */
#define NET_NEXT -1

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct serve);
} net_scratch SEC(".maps");

/* The overlay's outer packets are no Service's, and they are many. */
static __always_inline bool outer(const struct pkt *p)
{
	return p->tuple.proto == PROTO_UDP && p->tuple.dst_port == cfg.overlay_port;
}

static __always_inline struct serve *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&net_scratch, &zero);
}

/* Answers a refused packet out of the device that it came in by. */
static __noinline int refuse(struct __sk_buff *skb, struct pkt *p, int reason)
{
	struct icmp_answer answer = icmp_refuse();
	int err;

	if (!icmp_may_answer(p))
		return reason;
	answer.from = p->tuple.dst;
	err = icmp_answer(skb, p, &answer);
	if (err)
		return err;
	drop_count(-reason);
	return bpf_redirect(skb->ifindex, 0);
}

/* First packet of a flow from outside. 0: the flow exists; 1: not ours; or -enum drop_reason. */
static __always_inline int open_from_net(struct __sk_buff *skb, struct serve *s, struct flow_hit *hit)
{
	struct flow_new *n = &s->new;
	struct pkt *p = &s->pkt;
	int err;

	/* Only a SYN opens: what else comes for a NodePort is the reply to somebody who happens to have its number as source port, or of a
	 * connection that conntrack knows from before us. */
	if (p->tuple.proto == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN)
		return 1;
	__builtin_memset(n, 0, sizeof(*n));
	n->rev_kind = TARGET_OUT;
	s->origin = ORIGIN_OUTSIDE;
	err = serve_resolve(skb, s);
	if (err)
		return err;
	if (!s->served)
		return 1;
	err = serve_create(s, hit);
	if (!err)
		count(COUNT_NET_SERVED);
	return err;
}

static __always_inline int from_net_ip(struct __sk_buff *skb, struct serve *s)
{
	struct flow_facts *facts = &s->facts;
	struct flow_hit hit = {};
	struct pkt *p = &s->pkt;
	int err;

	if ((p->flags & (PKT_LINK_SCOPE | PKT_ICMP_ERROR)) || outer(p) || !fragment_ports(p))
		return TC_OK;
	if (!serve_find(p, &hit)) {
		err = open_from_net(skb, s, &hit);
		if (err == -DROP_SERVICE_REFUSED || err == -DROP_SERVICE_PORT)
			return refuse(skb, p, err);
		if (err < 0)
			return err;
		if (err || !hit.flow)
			return TC_OK;
	}
	flow_read(&hit, facts);
	if (!facts->translated)
		return TC_OK; /* a pod's that the node routes */
	err = rewrite(skb, p, &facts->to);
	if (err)
		return err;
	flow_seen(&hit, p->tcp_flags);
	return deliver(skb, p, facts->kind, facts->target);
}

SEC("tc")
int from_net(struct __sk_buff *skb)
{
	struct serve *s = scratch();
	int ret;

	if (!s)
		return drop(-DROP_SCRATCH);
	if (parse(skb, &s->pkt))
		return NET_NEXT; /* what is malformed is the stack's to judge */
	ret = from_net_ip(skb, s);
	return ret < 0 ? drop(ret) : ret == TC_OK ? NET_NEXT : ret;
}

/* Only replies of backends on the node's own host network: all else was translated where it was redirected. */
static __always_inline int to_net_ip(struct __sk_buff *skb, struct serve *s)
{
	struct flow_facts *facts = &s->facts;
	struct flow_hit hit = {};
	struct pkt *p = &s->pkt;
	int err;

	if ((p->flags & (PKT_LINK_SCOPE | PKT_ICMP_ERROR)) || outer(p) || !fragment_ports(p))
		return TC_OK;
	if (!flow_find(&p->tuple, &hit) || hit.dir != FLOW_REPLY || !hit.translated)
		return TC_OK;
	flow_read(&hit, facts);
	if (facts->from_kind != TARGET_STACK)
		return TC_OK;
	err = rewrite(skb, p, &facts->to);
	if (err)
		return err;
	flow_seen(&hit, p->tcp_flags);
	return TC_OK;
}

SEC("tc")
int to_net(struct __sk_buff *skb)
{
	struct serve *s = scratch();
	int ret;

	if (!s)
		return drop(-DROP_SCRATCH);
	if (parse(skb, &s->pkt))
		return NET_NEXT;
	ret = to_net_ip(skb, s);
	return ret < 0 ? drop(ret) : NET_NEXT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
