/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Endpoints: the pods of this node. Written by the agent at ADD and DEL, read by every hook; survive the agent (KEEP).
 *
 * ADD writes the array element with its word last, then the three indexes; DEL removes the indexes, then clears the word. An id is
 * reused only with a new incarnation, and whoever stores an id (flows) stores the incarnation beside it. Size: the pods that a node
 * may have; ADD answers "pool exhausted" when it is full. */
#pragma once

#include "addr.h"
#include "map.h"
#include "target.h"

enum endpoint_flag {
	ENDPOINT_LIVE = 1, /* the element describes a pod */
	ENDPOINT_SOCKET_LB_OFF = 2, /* fairlead.io/socket-lb: "off" */
};

struct endpoint {
	__u64 word; /* {incarnation:32, flags:32}: one aligned word, written last at ADD, cleared first at DEL */
	struct addr addr4; /* :: where the pod lacks the family */
	struct addr addr6;
	__u64 cookie; /* network namespace cookie of the pod */
	__u32 ifindex; /* host side of the veth */
	__u8 mac[6]; /* pod side of the veth */
	__u8 pad[2];
	__u32 reserved[5];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32); /* endpoint id; 0 is never used */
	__type(value, struct endpoint);
} endpoints SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32); /* ifindex of the host side */
	__type(value, __u32); /* endpoint id */
} endpoint_links SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct addr);
	__type(value, __u32); /* endpoint id */
} endpoint_addrs SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* network namespace cookie */
	__type(value, __u32); /* endpoint id */
} endpoint_ns SEC(".maps") KEEP;

/* The pod behind a host-side device, with its word; NULL: none. An index entry may be freed under the reader, so the element must say
 * the same. */
static __always_inline struct endpoint *endpoint_of_link(__u32 ifindex, struct target *t)
{
	__u32 *id = bpf_map_lookup_elem(&endpoint_links, &ifindex);
	struct endpoint *ep;
	__u64 word;

	if (!id)
		return NULL;
	t->id = *id;
	ep = bpf_map_lookup_elem(&endpoints, &t->id);
	if (!ep)
		return NULL;
	word = READ_ONCE(ep->word);
	t->incarnation = word >> 32;
	return (word & ENDPOINT_LIVE) && ep->ifindex == ifindex ? ep : NULL;
}

/* Is there a pod with this address here? Then *t names it. */
static __always_inline bool endpoint_of_addr(const struct addr *addr, struct target *t)
{
	__u32 *id = bpf_map_lookup_elem(&endpoint_addrs, addr);
	struct endpoint *ep;
	__u64 word;

	if (!id)
		return false;
	t->id = *id;
	ep = bpf_map_lookup_elem(&endpoints, &t->id);
	if (!ep)
		return false;
	word = READ_ONCE(ep->word);
	t->incarnation = word >> 32;
	return (word & ENDPOINT_LIVE) && (addr_equal(&ep->addr4, addr) || addr_equal(&ep->addr6, addr));
}

static __always_inline bool endpoint_has(const struct endpoint *ep, const struct addr *addr)
{
	return addr_equal(&ep->addr4, addr) || addr_equal(&ep->addr6, addr);
}

/* Is it still that pod? */
static __always_inline bool endpoint_current(const struct target *t)
{
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &t->id);
	__u64 word = ep ? READ_ONCE(ep->word) : 0;

	return word >> 32 == t->incarnation && (word & ENDPOINT_LIVE);
}

/* Copies where the pod is reached, if the element still is that pod. */
static __always_inline bool endpoint_read(const struct target *t, __u32 *ifindex, __u8 mac[6])
{
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &t->id);
	__u64 word;

	if (!ep)
		return false;
	word = READ_ONCE(ep->word);
	if (word >> 32 != t->incarnation || !(word & ENDPOINT_LIVE))
		return false;
	*ifindex = ep->ifindex;
	__builtin_memcpy(mac, ep->mac, 6);
	barrier();
	return READ_ONCE(ep->word) == word;
}
