/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Endpoints: the pods of this node. Written by the agent at ADD and DEL, read by every hook; survive the agent (KEEP).
 *
 * ADD writes the array element with its word last, then the three indexes; DEL removes the indexes, then clears the word. An id is
 * reused only with a new incarnation, and whoever stores an id (flows) stores the incarnation beside it. Size: the pods that a node
 * may have; ADD answers "pool exhausted" when it is full. */
#pragma once

#include "addr.h"
#include "map.h"

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
