/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Packets to Services: finds the flow of a packet as long as it stands, and makes that of a first packet, whoever sent it. Shared by all
 * hooks that see packets, so that they serve alike. */
#pragma once

#include "choice.h"
#include "deliver.h"
#include "endpoint.h"
#include "flow.h"
#include "pkt.h"
#include "snat.h"

/* What does not fit on the 512 bytes of stack. Each hook file has its own: its programs run with softirqs off and never interrupt each
 * other. */
struct serve {
	struct pkt pkt;
	struct flow_new new;
	struct choice choice;
	struct flow_facts facts;
	__u8 origin; /* enum origin of the packet */
	__u8 own_node; /* the backend is on the node's own host network */
	__u8 served; /* a Service or host port leads the flow */
	__u8 snat; /* enum snat */
};

/* Is there a Service or host port at the destination? Not inlined: its keys are not the stack's daily load. */
static __noinline bool serve_wanted(const struct tuple *t)
{
	__u32 answers = node_address(&t->dst);
	struct host_port hp;
	struct frontend f;

	return frontend_find(&t->dst, t->dst_port, t->proto, answers, &f) ||
	       ((answers & NODE_ADDRESS_LOCAL) && host_port_find(&t->dst, t->dst_port, t->proto, &hp));
}

/* Does what the flow was made with still hold for its sender? TCP stays with its backend and drains; UDP chooses again when its backend
 * stopped serving or its pod is gone (services.md 1.5); what began before its Service was there looks again. */
static __always_inline bool serve_stands(const struct flow_hit *hit, const struct pkt *p)
{
	struct flow *f = hit->flow;
	__u32 epoch;

	if (flow_over(hit, p->tcp_flags))
		return false;
	if (hit->dir != FLOW_FORWARD)
		return true;
	if (f->flags & FLOW_TRANSLATED) {
		if (p->tuple.proto != PROTO_UDP)
			return true;
		if (f->flags & FLOW_HOST_PORT)
			return endpoint_current(&f->fwd);
		return !f->backend || backend_current(f->backend, f->backend_incarnation, BACKEND_SERVING);
	}
	epoch = epoch_now();
	if (READ_ONCE(f->epoch) == epoch || (p->tuple.proto != PROTO_UDP && READ_ONCE(f->seen[FLOW_REPLY])))
		return true;
	if (serve_wanted(&p->tuple))
		return false;
	WRITE_ONCE(f->epoch, epoch);
	return true;
}

/* The flow of a packet that its sender just sent. One that ended, or that must choose again, is removed: the packet is a first one. */
static __always_inline bool serve_find(const struct pkt *p, struct flow_hit *hit)
{
	if (!flow_find_sent(&p->tuple, hit))
		return false;
	if (hit->translated && hit->dir == FLOW_FORWARD && !flow_over(hit, p->tcp_flags))
		return false; /* of a Service's flow that this one meets: serve_create */
	if (serve_stands(hit, p))
		return true;
	flow_remove(hit);
	return false;
}

/* A host port's pod, as the backend of the packet. */
static __always_inline bool serve_host_port(struct serve *s, const struct host_port *to)
{
	struct flow_new *n = &s->new;
	struct target t = { .id = to->endpoint, .incarnation = to->incarnation };
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &t.id);

	if (!ep || !endpoint_current(&t))
		return false;
	n->xlat.dst = addr_is_v4(&n->orig.dst) ? ep->addr4 : ep->addr6;
	if (!endpoint_current(&t) || addr_is_zero(&n->xlat.dst))
		return false;
	n->xlat.dst_port = to->port;
	n->flags |= FLOW_HOST_PORT;
	s->choice.class = FRONTEND_HOST_PORT;
	return true;
}

/* Where the first packet of a flow leads and under which source, into s->new: 0 or -enum drop_reason. Sets s->served, s->own_node and
 * s->snat; what comes from outside and is not served gets no way. Not inlined, so that its stack and that of flow_create do not add up. */
static __noinline int serve_resolve(struct __sk_buff *skb, struct serve *s)
{
	struct flow_new *n = &s->new;
	struct choice *c = &s->choice;
	struct host_port hp = {};
	struct frontend f;
	bool pod, to_self;
	__u32 answers;
	int err;

	n->orig = s->pkt.tuple;
	n->xlat = n->orig;
	n->epoch = epoch_now();
	s->served = 0;
	s->own_node = 0;
	s->snat = SNAT_NONE;
	answers = node_address(&n->orig.dst);
	if (frontend_find(&n->orig.dst, n->orig.dst_port, n->orig.proto, answers, &f)) {
		err = service_choose(&f, &n->orig.src, s->origin, c);
		if (err)
			return err;
		n->xlat.dst = c->addr;
		n->xlat.dst_port = c->port;
		n->service = c->service;
		n->service_incarnation = c->service_incarnation;
		n->backend = c->backend;
		n->backend_incarnation = c->backend_incarnation;
		s->served = 1;
	} else if ((answers & NODE_ADDRESS_LOCAL) && host_port_find(&n->orig.dst, n->orig.dst_port, n->orig.proto, &hp) &&
		   serve_host_port(s, &hp)) {
		s->served = 1;
	} else if (bpf_map_lookup_elem(&cluster_ips, &n->orig.dst)) {
		return -DROP_SERVICE_PORT;
	} else if (!answers && service_cidr(&n->orig.dst)) {
		return -DROP_SERVICE_UNALLOCATED;
	}
	if (!s->served && s->origin == ORIGIN_OUTSIDE)
		return 0;
	n->fwd_kind = deliver_way(&n->xlat.dst, &n->fwd);
	if (!s->served)
		return skb ? 0 : -DROP_SCRATCH; /* clang drops an unused context, which the verifier of a subprogram misses */
	pod = n->fwd.id; /* a pod here or behind a peer, over the overlay or not */
	s->own_node = !pod && node_address(&n->xlat.dst);
	to_self = addr_equal(&n->xlat.dst, &n->xlat.src);
	s->snat = snat_of(s->origin, c->class, n->service ? c->service_flags : 0, to_self, pod, s->own_node);
	if (n->fwd_kind == TARGET_STACK && !s->own_node && s->origin == ORIGIN_OUTSIDE)
		n->fwd_kind = TARGET_OUT;
	if (s->snat == SNAT_POD_SIDE && to_self) /* services.md 1.4, hairpin: the pod sees the node */
		n->xlat.src = addr_is_v4(&n->orig.dst) ? config_addr(&cfg.overlay4) : config_addr(&cfg.overlay6);
	else if (s->snat == SNAT_POD_SIDE)
		n->xlat.src = addr_is_v4(&n->orig.dst) ? config_addr(&cfg.snat4) : config_addr(&cfg.snat6);
	else if (s->snat == SNAT_NODE)
		snat_source(skb, &n->xlat.dst, &n->xlat.src);
	return 0;
}

/* Makes the flow that serve_resolve described: 0 or -enum drop_reason. Afterwards the flow exists, or hit->flow is NULL: then nothing
 * depends on the record, and the packet passes without one (DESIGN, invariant 2). */
static __always_inline int serve_create(struct serve *s, struct flow_hit *hit)
{
	struct flow_new *n = &s->new;
	bool to_self = addr_equal(&n->xlat.dst, &n->orig.src);
	int err;

	if (s->snat != SNAT_NONE) {
		count(COUNT_SNAT);
		return snat_create(n, hit, s->snat == SNAT_POD_SIDE && !to_self);
	}
	err = flow_create(n, hit);
	/* The sender speaks to this backend from the same port already: directly or through another Service, or, the other way round,
	 * through a Service before directly. Then this flow takes another source port. */
	if ((err == -DROP_FLOW_PORTS && s->served) || (!err && hit->translated && hit->dir == FLOW_FORWARD))
		return snat_create(n, hit, false);
	if (err && !s->served) {
		count(COUNT_FLOW_UNRECORDED);
		hit->flow = NULL;
		return 0;
	}
	return err;
}
