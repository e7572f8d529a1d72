/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Flows: one record per flow of a pod, made at its first packet. */
#pragma once

#include "addr.h"
#include "map.h"

/* Where packets in one direction go. */
enum target_kind {
	TARGET_STACK, /* the kernel's own routing decides */
	TARGET_ENDPOINT, /* a pod here: id and incarnation in endpoints */
	TARGET_PEER, /* another node over the overlay: id and incarnation in peers */
};

/* An id is never a next hop by itself: it counts only while the element it names has the same incarnation. */
struct target {
	__u32 id;
	__u32 incarnation;
};

enum flow_dir {
	FLOW_FORWARD, /* as the first packet went */
	FLOW_REPLY,
};
