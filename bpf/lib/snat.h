/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Another source for a flow that a Service leads elsewhere, so that its replies come back to this node. One table decides, after
 * kube-proxy's rules (services.md 1.4); the source port is the client's own where it is free, else one of a range that no socket of
 * the host takes by itself. A port is reserved by the flow's translated key and free again with the flow; the same port serves as many
 * destinations as there are. No port left: the flow is refused and counted (flow-ports). */
#pragma once

#include "choice.h"
#include "config.h"
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

/* The table. way: enum target_kind toward the backend, and whether it is a pod. */
static __always_inline enum snat snat_of(enum origin origin, __u8 class, __u32 service_flags, bool to_self, bool pod, bool own_node)
{
	bool wanted;

	if (own_node) /* its stack refuses packets that come in with its own source, and needs no help to answer */
		return SNAT_NONE;
	switch (class) {
	case FRONTEND_CLUSTER_IP:
		wanted = origin == ORIGIN_OUTSIDE;
		break;
	case FRONTEND_HOST_PORT:
		wanted = false;
		break;
	default:
		wanted = service_flags & SERVICE_EXTERNAL_LOCAL ? origin == ORIGIN_NODE : true;
	}
	if (!wanted && !to_self && !cfg.masquerade_all)
		return SNAT_NONE;
	if (pod)
		return SNAT_POD_SIDE;
	/* What a pod sends out of the node is masqueraded behind us, and the node's own has the right source already. */
	return origin == ORIGIN_OUTSIDE ? SNAT_NODE : SNAT_NONE;
}

/* Makes the flow under its own source port, or, where another flow has that, under one of the range: as flow_create. `fresh`: not under
 * its own. */
static __always_inline int snat_create(struct flow_new *n, struct flow_hit *hit, bool pod_side, bool fresh)
{
	__u32 first = pod_side ? SNAT_POD_PORT_MIN : SNAT_PORT_MIN, ports = pod_side ? SNAT_POD_PORTS : SNAT_PORTS;
	int err = -DROP_FLOW_PORTS;

	for (int i = 0; i < SNAT_TRIES; i++) {
		if (fresh || i)
			n->xlat.src_port = bpf_htons(first + bpf_get_prandom_u32() % ports);
		err = flow_create(n, hit);
		if (err != -DROP_FLOW_PORTS)
			break;
	}
	return err;
}
