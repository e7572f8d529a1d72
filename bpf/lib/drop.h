/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Why a packet or a system call was refused: one reason per place in the code, one counter per reason and CPU. Written by every hook,
 * read by the agent at scrape time. A new place gets a new reason at the end of the enum; the numbers are a contract with agents of
 * the previous release. Go names, metric labels and `fairlead drops` are generated from this enum. */
#pragma once

#include "map.h"

enum drop_reason {
	DROP_NONE,
	/* parse.h */
	DROP_ETHERNET_SHORT, /* frame shorter than its Ethernet header */
	DROP_IPV4_SHORT, /* IPv4 header cut off */
	DROP_IPV4_HEADER, /* IPv4 version, header length or total length is wrong */
	DROP_IPV6_SHORT, /* IPv6 header cut off */
	DROP_IPV6_EXTENSION, /* IPv6 extension headers cut off or more than 8 */
	DROP_IPV6_MAPPED, /* IPv6 packet with an IPv4-mapped address */
	DROP_PORTS_SHORT, /* TCP, UDP, SCTP or ICMP header cut off */
	/* pod.c: from_pod */
	DROP_ENDPOINT_UNKNOWN, /* from a pod's device that has no endpoint */
	DROP_SPOOFED_MAC, /* source MAC is not the endpoint's */
	DROP_SPOOFED_ADDRESS, /* source address is not the endpoint's */
	/* pod.c: to_pod */
	DROP_TO_POD_UNKNOWN, /* to a pod's device that has no endpoint */
	DROP_TO_POD_ADDRESS, /* to a pod's device, for an address that is not the endpoint's */
	/* service.h */
	DROP_SERVICE_REFUSED, /* no endpoint anywhere: answered by RST or port unreachable */
	DROP_SERVICE_NO_LOCAL, /* traffic policy Local and no endpoint here: silent */
	DROP_SERVICE_PORT, /* a ClusterIP at a port that no Service has: answered */
	DROP_SERVICE_BACKEND, /* chosen backend vanished between two reads */
	DROP_SERVICE_FRAGMENT, /* fragment of a datagram to a Service whose head was not seen */
	/* flow.h */
	DROP_FLOW_FULL, /* a translated or judged flow found no free slot */
	DROP_FLOW_BUCKETS, /* both buckets of a key are full */
	DROP_FLOW_PORTS, /* no source port left for the translated key */
	DROP_FLOW_RACE, /* another CPU made the same flow at the same moment, twice in a row */
	/* rewrite.h */
	DROP_REWRITE, /* packet could not be made writable */
	DROP_CHECKSUM, /* checksum could not be updated */
	DROP_SCTP_PORT, /* a fragment of SCTP to another port: its CRC is over more than the fragment */
	/* encap.h, overlay.c */
	DROP_PEER_UNKNOWN, /* overlay destination in no peer's pod CIDR */
	DROP_TUNNEL_KEY, /* tunnel key could not be set */
	DROP_OVERLAY_KEY, /* arrived on the overlay without a tunnel key */
	DROP_OVERLAY_VNI, /* arrived on the overlay with another VNI */
	DROP_OVERLAY_SOURCE, /* outer source is no known peer */
	DROP_OVERLAY_INNER, /* inner source is not in the sending peer's pod CIDRs */
	DROP_OVERLAY_NO_POD, /* inner destination that is neither a pod here nor the node's overlay address */
	DROP_OVERLAY_LINK_SCOPE, /* multicast or link-local from the stack to the overlay */
	DROP_OVERLAY_NOT_IP, /* neither IPv4 nor IPv6 from the stack to the overlay */
	/* icmp.h */
	DROP_TOO_BIG, /* larger than the way: answered by fragmentation needed or packet too big */
	DROP_ICMP_ANSWER, /* an answer could not be built */
	/* sock.c */
	DROP_SOCK_REFUSED, /* connect or sendmsg to a Service without endpoint: ECONNREFUSED */
	DROP_SOCK_NO_LOCAL, /* the same under traffic policy Local: EHOSTUNREACH */
	DROP_SOCK_BACKEND, /* chosen backend vanished between two reads */
	DROP_SCRATCH, /* the hook's scratch element is missing: cannot happen, the verifier asks */
	DROP_SERVICE_SOURCE, /* client outside the load balancer's source ranges: silent */
	DROP_SERVICE_UNALLOCATED, /* an address of the service CIDRs that no Service has: silent */
	DROP_NO_ROUTE, /* deliver.h: no route to the destination */
	DROP_SOCK_SOURCE, /* sock.c: connect or sendmsg from outside the load balancer's source ranges: EHOSTUNREACH */
	DROP_BIND, /* sock.c: bind to a port that the node serves as a NodePort or host port: EADDRINUSE */
	DROP_REASON_MAX,
};

/* What is worth counting and drops nothing. */
enum counter {
	COUNT_FLOW_UNRECORDED, /* passed without a record because the table was full */
	COUNT_FLOW_CREATED,
	COUNT_FLOW_EXPIRED,
	COUNT_FLOW_PRESSED, /* expired early, under pressure */
	COUNT_FLOW_COLLISION, /* gave way to an equal key that stood earlier */
	COUNT_TO_STACK, /* handed to the kernel's own routing */
	COUNT_SOCK_TRANSLATED,
	COUNT_SOCK_STORAGE, /* per-socket storage could not be made: left to the packet path */
	COUNT_SNAT, /* flows that got another source */
	COUNT_NET_SERVED, /* flows that came in by a device of the node and were led to a backend */
	COUNTER_MAX,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, enum drop_reason);
	__type(value, __u64);
} drops SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, enum counter);
	__type(value, __u64);
} counters SEC(".maps") KEEP;

static __always_inline void drop_count(enum drop_reason reason)
{
	__u64 *n = bpf_map_lookup_elem(&drops, &reason);

	if (n)
		*n += 1;
}

static __always_inline void count(enum counter what)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &what);

	if (n)
		*n += 1;
}
