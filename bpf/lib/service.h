/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Services: one service is one Service port in one family; a backend is one (service, address, port). Written by the agent through
 * mmap and the map calls, read by sock.c and pod.c; survive the agent (KEEP).
 *
 * A change writes new slots and backends beside the old ones, then flips one aligned word of the service, and reuses the old range
 * and ids only after a grace period. Whoever stores a service or backend id stores its incarnation. */
#pragma once

#include "addr.h"
#include "map.h"

enum frontend_class {
	FRONTEND_CLUSTER_IP,
	FRONTEND_NODE_PORT,
	FRONTEND_LOAD_BALANCER,
	FRONTEND_EXTERNAL_IP,
	FRONTEND_HOST_PORT,
};

/* What an empty set answers. */
enum service_verdict {
	VERDICT_REFUSE, /* no endpoint anywhere: ECONNREFUSED, RST, port unreachable */
	VERDICT_DROP, /* traffic policy Local and none here: silence */
};

enum service_flag {
	SERVICE_INTERNAL_LOCAL = 1, /* internalTrafficPolicy: Local */
	SERVICE_EXTERNAL_LOCAL = 2, /* externalTrafficPolicy: Local */
	SERVICE_SOCKET_OFF = 4, /* left to the packet path */
};

enum backend_flag {
	BACKEND_LIVE = 1, /* the element describes a backend */
	BACKEND_SERVING = 2,
	BACKEND_CLUSTER = 4, /* in the cluster set */
	BACKEND_IN_LOCAL = 8, /* in the local set */
	BACKEND_LOCAL = 16, /* on this node */
	BACKEND_HOST = 32, /* on a host network: its address is a node's */
};

struct frontend_key {
	struct addr addr; /* NodePort: ::ffff:0.0.0.0 or :: */
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

struct frontend {
	__u32 service;
	__u8 class; /* enum frontend_class */
	__u8 pad[3];
};

/* Four aligned words; each is read once and is complete by itself. */
struct service {
	__u64 cluster_set; /* {verdict:8, length:24, offset:32}, the offset in slots */
	__u64 local_set; /* the same for traffic policy Local */
	__u64 config; /* {flags:32, affinity seconds:32} */
	__u64 identity; /* {incarnation:32, source range set:32}; incarnation 0: not in use */
};

struct backend {
	__u64 word; /* {incarnation:32, flags:32} */
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

/* Addresses of this node. */
enum node_address_flag {
	NODE_ADDRESS_LOCAL = 1, /* of any device here: host ports answer on it */
	NODE_ADDRESS_NODE_PORT = 2, /* NodePorts answer on it */
};

/* Where a host port leads, in one word. */
struct host_port {
	__u32 incarnation; /* of the endpoint */
	__u16 endpoint; /* id */
	__be16 port; /* of the container */
};

/* Prefixes in the 128-bit form: an IPv4 /24 has a length of 96 + 24. */
struct service_cidr {
	__u32 prefixlen; /* bits of bytes */
	__u8 bytes[16];
};

struct source_range {
	__u32 prefixlen; /* 32 for the set + bits of bytes */
	__u32 set; /* from service.identity */
	__u8 bytes[16];
};

struct affinity_key {
	struct addr client;
	__u32 service;
	__u32 incarnation; /* of the service */
};

struct affinity {
	__u32 backend;
	__u32 incarnation; /* of the backend */
	__u32 last; /* seconds since boot */
	__u32 service; /* as in the key: a reader holds a pointer into an LRU, whose element may already be another key's */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} frontends SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32); /* service id; 0 is never used */
	__type(value, struct service);
} services SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32); /* slot / 2 */
	__type(value, __u64); /* two backend ids: the even slot in the low half */
} slots SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32); /* backend id; 0 is never used */
	__type(value, struct backend);
} backends SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps") KEEP;

/* Every ClusterIP: a packet to one at a port without frontend is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, __u32); /* number of services that have it */
} cluster_ips SEC(".maps") KEEP;

/* Every address of the node's own devices. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct addr);
	__type(value, __u32); /* enum node_address_flag */
} node_addresses SEC(".maps") KEEP;

/* Clients that may use a load balancer's addresses. A set is interned and never changes: a service flips to another one. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_range);
	__type(value, __u32); /* the set, as in the key: a reader holds a pointer whose element may already be another key's */
} source_ranges SEC(".maps") KEEP;

/* Where ClusterIPs come from: what no Service has of them is dropped. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_cidr);
	__type(value, __u32); /* 1 */
} service_cidrs SEC(".maps") KEEP;

/* Host ports of this node's pods, written with the pod by ADD and DEL. The address is 0.0.0.0 or :: for all addresses of the node. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct frontend_key);
	__type(value, struct host_port);
} host_ports SEC(".maps") KEEP;

/* Raised after a frontend was added: flows that began before look again whether they are one's. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64); /* number of additions */
} frontend_epoch SEC(".maps") KEEP;
