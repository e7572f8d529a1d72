/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The two programs on the one flow-based VXLAN device: from_overlay sees the inner packets that other nodes send, to_overlay what the
 * node's own stack sends to other nodes' pods. What from_pod redirects here already carries its tunnel key. */
#include "lib/config.h"
#include "lib/deliver.h"
#include "lib/drop.h"
#include "lib/encap.h"
#include "lib/endpoint.h"
#include "lib/flow.h"
#include "lib/fragment.h"
#include "lib/parse.h"
#include "lib/rewrite.h"

/* What does not fit on the 512 bytes of stack. Of this file alone: its programs run with softirqs off and never interrupt each other. */
struct wire_scratch {
	struct pkt pkt;
	struct flow_new new;
	struct flow_facts facts;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wire_scratch);
} wire_scratch SEC(".maps");

static __always_inline struct wire_scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&wire_scratch, &zero);
}

/* The outer source of what arrived. */
static __always_inline int outer_source(struct __sk_buff *skb, struct addr *node)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), cfg.outer_v6 ? BPF_F_TUNINFO_IPV6 : 0) < 0)
		return -DROP_OVERLAY_KEY;
	if (key.tunnel_id != cfg.vni)
		return -DROP_OVERLAY_VNI;
	if (cfg.outer_v6)
		__builtin_memcpy(node, key.remote_ipv6, sizeof(*node));
	else
		*node = addr_from_v4(bpf_htonl(key.remote_ipv4));
	return 0;
}

/* The inner source must be in a pod CIDR of the node that the outer source names: then nobody speaks for another node's pods. */
static __always_inline int check_source(const struct pkt *p, const struct addr *node, struct target *peer)
{
	__u32 *sender = bpf_map_lookup_elem(&peer_nodes, node);
	__u32 flags = 0;

	if (!sender)
		return -DROP_OVERLAY_SOURCE;
	*peer = peer_of(&p->tuple.src, &flags);
	return peer->id && peer->id == *sender ? 0 : -DROP_OVERLAY_INNER;
}

/* For the node itself: its stack takes only frames that carry its device's address. */
static __always_inline int deliver_node(struct __sk_buff *skb)
{
	int err = rewrite_macs(skb, (const volatile __u8 *)cfg.overlay_mac, (const volatile __u8 *)cfg.gateway_mac);

	if (err)
		return err;
	bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
	return TC_OK;
}

static __always_inline int deliver_here(struct __sk_buff *skb, struct pkt *p, __u8 kind, struct target t)
{
	struct addr own4 = config_addr(&cfg.overlay4), own6 = config_addr(&cfg.overlay6);
	__u32 ifindex;
	__u8 mac[6];

	if (kind == TARGET_OUT)
		return deliver_out(skb, p);
	if (kind == TARGET_ENDPOINT && endpoint_read(&t, &ifindex, mac))
		goto pod;
	if (endpoint_of_addr(&p->tuple.dst, &t) && endpoint_read(&t, &ifindex, mac))
		goto pod;
	if (addr_equal(&p->tuple.dst, &own4) || addr_equal(&p->tuple.dst, &own6))
		return deliver_node(skb);
	return -DROP_OVERLAY_NO_POD;
pod:
	bpf_skb_change_type(skb, 0 /* PACKET_HOST */); /* before 6.15 redirect_peer does not say so itself */
	return deliver_endpoint(skb, ifindex, mac);
}

static __always_inline int from_overlay_ip(struct __sk_buff *skb, struct wire_scratch *s)
{
	struct flow_facts *facts = &s->facts;
	struct flow_new *n = &s->new;
	struct pkt *p = &s->pkt;
	struct flow_hit hit = {};
	struct target peer = {}, self = {};
	bool known_flow;
	struct addr node = {}, known;
	__u32 mtu;
	int err;

	err = outer_source(skb, &node);
	if (err)
		return err;
	if ((p->flags & (PKT_LINK_SCOPE | PKT_ICMP_ERROR)) || !fragment_ports(p)) {
		err = check_source(p, &node, &peer);
		return err ? err : deliver_here(skb, p, TARGET_STACK, self);
	}
	known_flow = flow_find(&p->tuple, &hit);
	if (known_flow && flow_over(&hit, p->tcp_flags)) {
		flow_remove(&hit);
		known_flow = false;
	}
	if (known_flow) {
		flow_read(&hit, facts);
		/* The record names the peer that the sender is behind; only when that moved is the whole check needed. */
		if (facts->from_kind != TARGET_PEER || !peer_read(&facts->from, &known, &mtu) || !addr_equal(&known, &node)) {
			err = check_source(p, &node, &peer);
			if (err)
				return err;
		}
	} else {
		err = check_source(p, &node, &peer);
		if (err)
			return err;
		if (!endpoint_of_addr(&p->tuple.dst, &self))
			return deliver_here(skb, p, TARGET_STACK, self);
		__builtin_memset(n, 0, sizeof(*n));
		n->orig = p->tuple;
		n->xlat = p->tuple;
		n->fwd_kind = TARGET_ENDPOINT;
		n->fwd = self;
		n->rev_kind = TARGET_PEER;
		n->rev = peer;
		if (flow_create(n, &hit)) {
			count(COUNT_FLOW_UNRECORDED);
			return deliver_here(skb, p, TARGET_ENDPOINT, self);
		}
		flow_read(&hit, facts);
	}
	if (facts->translated) {
		err = rewrite(skb, p, &facts->to);
		if (err)
			return err;
	}
	flow_seen(&hit, p->tcp_flags);
	return deliver_here(skb, p, facts->kind, facts->target);
}

SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct wire_scratch *s = scratch();
	int ret;

	if (!s)
		return drop(-DROP_SCRATCH);
	ret = parse(skb, &s->pkt);
	if (ret == PARSE_NOT_IP)
		return TC_OK;
	if (ret == 0)
		ret = from_overlay_ip(skb, s);
	return ret < 0 ? drop(ret) : ret;
}

static __always_inline int to_overlay_ip(struct __sk_buff *skb, const struct pkt *p)
{
	struct target peer;
	struct addr node;
	__u32 flags = 0, mtu;

	if (p->flags & PKT_LINK_SCOPE) /* the stack's own chatter has nowhere to go here */
		return -DROP_OVERLAY_LINK_SCOPE;
	peer = peer_of(&p->tuple.dst, &flags);
	if (!peer.id || !peer_read(&peer, &node, &mtu))
		return -DROP_PEER_UNKNOWN;
	return encap(skb, &node);
}

SEC("tc")
int to_overlay(struct __sk_buff *skb)
{
	struct wire_scratch *s = scratch();
	struct bpf_tunnel_key key;
	int ret;

	if (!s)
		return drop(-DROP_SCRATCH);
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), cfg.outer_v6 ? BPF_F_TUNINFO_IPV6 : 0) == 0)
		return TC_OK;
	ret = parse(skb, &s->pkt);
	if (ret == PARSE_NOT_IP)
		return drop(-DROP_OVERLAY_NOT_IP);
	if (ret == 0)
		ret = to_overlay_ip(skb, &s->pkt);
	return ret < 0 ? drop(ret) : ret;
}

char _license[] SEC("license") = "Dual BSD/GPL";
