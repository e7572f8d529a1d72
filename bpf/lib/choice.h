/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Choice of a backend: from a destination to one address and port. The only reader of the service maps, shared by sock.c and pod.c,
 * so that the socket path and the packet path choose alike. Owns the affinity records' contents, which the agent only sizes.
 *
 * Packed words are written {most significant, ..., least significant}: {verdict:8, length:24, offset:32} has the verdict in bits 63
 * to 56, {incarnation:32, flags:32} has the flags in the low half.
 *
 * Programs run inside one RCU read section, and the agent reuses slots, services and backends only after a grace period: what one
 * read of a set word names stays valid until the program ends. Hash elements are reused at once, so they are copied and verified. */
#pragma once

#include <linux/errno.h>

#include "addr.h"
#include "drop.h"
#include "map.h"
#include "service.h"

struct choice {
	__u32 service;
	__u32 service_incarnation;
	__u32 backend;
	__u32 backend_incarnation;
	struct addr addr;
	__be16 port;
	__u8 class; /* enum frontend_class */
	__u8 verdict; /* enum service_verdict, when the set was empty */
	__u32 flags; /* enum backend_flag of the backend */
};
