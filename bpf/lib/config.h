/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What an agent knows when it loads the programs. Frozen at load, so the verifier folds each field to a constant and removes the
 * branches that it decides; there is no preprocessor switch. Written by: the agent, once. A change is a new load and an update of
 * the links in place. */
#pragma once

#include "addr.h"

struct config {
	struct addr node4; /* InternalIP of the own node, :: without the family */
	struct addr node6;
	struct addr overlay4; /* first address of the own pod CIDR: on the VXLAN device */
	struct addr overlay6;
	struct addr snat4; /* second address of the own pod CIDR: the source that others' traffic to pods gets */
	struct addr snat6;
	__u64 host_cookie; /* network namespace cookie of the node */
	__u32 overlay_ifindex; /* the one flow-based VXLAN device; 0: none */
	__u32 overlay_mtu; /* largest inner packet from its IP header on, in bytes */
	__u32 vni; /* VXLAN network identifier, 24 bits */
	__u32 flow_buckets; /* flow table: number of buckets, a power of two */
	__u32 flow_slots; /* flow table: number of slots, a multiple of 512 */
	__u8 gateway_mac[6]; /* host side of every pod's veth */
	__u8 overlay_mac[6]; /* the VXLAN device */
	__u8 socket_lb; /* 1: sock.c chooses backends at the system call */
	__u8 outer_v6; /* 1: nodes talk over IPv6, the outer header is IPv6 */
	__u8 masquerade_all; /* 1: what is sent to a ClusterIP always gets the node's source */
	__u8 loopback; /* 1: NodePorts answer on the node's own loopback addresses, at the system call */
	__be16 overlay_port; /* UDP port of the overlay's outer packets */
	__u8 pad[2];
};

volatile const struct config cfg;

/* An address of cfg, read as volatile: through a pointer without it clang takes the value of the object file, which is zero. */
static __always_inline struct addr config_addr(const volatile struct addr *a)
{
	return (struct addr){ .halves = { a->halves[0], a->halves[1] } };
}
