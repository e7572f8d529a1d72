/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Where packets of a flow go in one direction. */
#pragma once

#include <linux/types.h>

enum target_kind {
	TARGET_STACK, /* the kernel's own routing decides */
	TARGET_ENDPOINT, /* a pod here: id and incarnation in endpoints */
	TARGET_PEER, /* another node over the overlay: id and incarnation in peers */
	TARGET_OUT, /* out of the node by its routes, past its stack, which refuses packets with its own source */
};

/* An id is never a next hop by itself: it counts only while the element it names has the same incarnation. */
struct target {
	__u32 id;
	__u32 incarnation;
};
