/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Devices that lead to other machines: those that carry net.c. */
#pragma once

#include "addr.h"
#include "map.h"

/* The node's own addresses on a device that leads to other machines; :: where it has none of the family. */
struct device_addrs {
	struct addr addr4;
	struct addr addr6;
};

/* Devices that carry net.c. Written by the agent, which replaces elements as a whole. Size: further devices lend the node's InternalIP. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32); /* ifindex */
	__type(value, struct device_addrs);
} net_devices SEC(".maps") KEEP;
