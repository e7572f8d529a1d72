/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Words that every map is declared with. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* The map is pinned and outlives the agent: pkg/bpf adopts it, and compares its layout with what the kernel holds. A map without
 * the tag is made anew for each collection. */
#define KEEP __attribute__((btf_decl_tag("keep")))

/* Beside KEEP, from the release on that gives the same bytes of this map another meaning; 1 without. See layout.h. */
#define KEEP_VERSION(n) __attribute__((btf_decl_tag("version:" #n)))

/* A stage with a verification budget of its own. __weak keeps clang from dropping the context argument at the call, which the
 * verifier of a global function insists on (seen with clang 14 to 19). */
#define STAGE __weak __attribute__((noinline))

/* Words of several fields are written from the most significant bits down: {a:8, b:24, c:32} has a in bits 63 to 56. */

/* Plain loads and stores of one aligned word that another CPU or the agent may change at any time. */
#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))
