/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Types only: every header once, so that each C struct and enum has exactly one Go type. No program. */
#include "lib/addr.h"
#include "lib/config.h"
#include "lib/device.h"
#include "lib/drop.h"
#include "lib/endpoint.h"
#include "lib/flow.h"
#include "lib/fragment.h"
#include "lib/id.h"
#include "lib/layout.h"
#include "lib/peer.h"
#include "lib/service.h"
#include "lib/sock.h"
#include "lib/sweep.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* clang describes only types that something refers to. */
struct {
	enum drop_reason drop_reason;
	enum counter counter;
	enum endpoint_flag endpoint_flag;
	enum peer_flag peer_flag;
	enum frontend_class frontend_class;
	enum service_verdict service_verdict;
	enum service_flag service_flag;
	enum backend_flag backend_flag;
	enum node_address_flag node_address_flag;
	enum target_kind target_kind;
	enum flow_dir flow_dir;
	enum flow_state flow_state;
	enum flow_bit flow_bit;
	enum flow_flag flow_flag;
	enum flow_phase flow_phase;
	enum flow_timeout flow_timeout;
	enum flow_tcp flow_tcp;
	enum table_size table_size;
	enum table_magic table_magic;
	struct tuple tuple;
	struct target target;
	struct stale_socket stale_socket;
} vocabulary;
