/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Another source for a flow that a Service leads elsewhere, so that its replies come back to this node. One table decides, after
 * kube-proxy's rules (services.md 1.4). Towards pods the port is the client's own where it is free, towards others one of a range that no
 * socket of the host takes by itself. A port is reserved by the flow's translated key and free again with the flow; the same port serves as many
 * destinations as there are. No port left: the flow is refused and counted (flow-ports). */
#pragma once

#include "choice.h"
#include "config.h"
#include "deliver.h"
#include "flow.h"
#include "pkt.h"

enum snat {
	SNAT_NONE,
	SNAT_POD_SIDE, /* an address of the own pod CIDR: towards pods */
	SNAT_NODE, /* the node's address on the device that leads there */
};

enum snat_range {
	SNAT_PORT_MIN = 61000, /* above the default ephemeral range of Linux (32768 to 60999) */
	SNAT_PORTS = 4000,
	SNAT_POD_PORT_MIN = 1024, /* the second address of the pod CIDR has no sockets */
	SNAT_POD_PORTS = 64512,
	SNAT_TRIES = 16,
};

/* The table. to_self: the backend is the sender; pod: it is a pod, here or elsewhere; own_node: it is on the node's own network. */
static __always_inline enum snat snat_of(enum origin origin, __u8 class, __u32 service_flags, bool to_self, bool pod, bool own_node)
{
	bool wanted;

	if (own_node) /* its stack refuses packets that come in with its own source, and needs no help to answer */
		return SNAT_NONE;
	switch (class) {
	case FRONTEND_CLUSTER_IP:
		wanted = origin == ORIGIN_OUTSIDE || cfg.masquerade_all;
		break;
	case FRONTEND_HOST_PORT:
		wanted = false;
		break;
	default:
		wanted = service_flags & SERVICE_EXTERNAL_LOCAL ? origin == ORIGIN_NODE : true;
	}
	if (!wanted && !to_self)
		return SNAT_NONE;
	if (pod)
		return SNAT_POD_SIDE;
	/* What a pod sends out of the node is masqueraded behind us, and the node's own has the right source already. */
	return origin == ORIGIN_OUTSIDE ? SNAT_NODE : SNAT_NONE;
}

/* The node's address on the device that leads to an address. */
static __noinline int snat_source(struct __sk_buff *skb, const struct addr *dst, struct addr *src)
{
	bool v4 = addr_is_v4(dst);
	struct bpf_fib_lookup fib;
	struct device_addrs *own;
	__u32 ifindex;
	int ret;

	ret = deliver_route(skb, src, dst, &fib);
	*src = v4 ? config_addr(&cfg.node4) : config_addr(&cfg.node6);
	if (ret != BPF_FIB_LKUP_RET_SUCCESS && ret != BPF_FIB_LKUP_RET_NO_NEIGH)
		return 0;
	ifindex = fib.ifindex;
	own = bpf_map_lookup_elem(&net_devices, &ifindex);
	if (own && !addr_is_zero(v4 ? &own->addr4 : &own->addr6))
		*src = v4 ? own->addr4 : own->addr6;
	return 0;
}

/* Makes the flow under another source, as flow_create. lent: the source is an address without sockets, where the client's own port is
 * tried first; else the port is one that no socket of the node takes by itself. */
static __always_inline int snat_create(struct flow_new *n, struct flow_hit *hit, bool lent)
{
	__u32 first = lent ? SNAT_POD_PORT_MIN : SNAT_PORT_MIN, ports = lent ? SNAT_POD_PORTS : SNAT_PORTS;
	int err = -DROP_FLOW_PORTS;

	for (int i = 0; i < SNAT_TRIES; i++) {
		if (!lent || i)
			n->xlat.src_port = bpf_htons(first + bpf_get_prandom_u32() % ports);
		err = flow_create(n, hit);
		if (err != -DROP_FLOW_PORTS)
			break;
	}
	return err;
}
