/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Stale sockets: connected UDP whose backend does not serve any more. Nobody would tell the application, whose datagrams go to a dead
 * or, worse, to a reused address; destroyed, it gets ECONNABORTED and asks for the Service again. TCP learns from its peer, unconnected
 * UDP chooses anew at the next datagram.
 *
 * Two iterators, run by the agent a second after a backend left. stale_spaces walks the storage of all sockets on the machine and
 * writes the cookie of each network namespace that holds a stale one, as __u64, one per socket. stale_sockets walks the UDP
 * sockets of the namespace in which the iterator was opened and destroys the stale ones; it writes each as struct stale_socket. Where
 * the kernel has no bpf_sock_destroy (6.1 to 6.4) it only writes them, and the agent destroys by netlink. */
#pragma once

#include "sock.h"

/* What we read of the kernel's own structs; offsets are fixed up at load (CO-RE). */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net {
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};

struct udp_sock;
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

#pragma clang attribute pop

/* Contexts of the iterators: stable, all fields 8 bytes. */
struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	struct sock_peer *value;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
	__u64 uid;
	__u64 bucket;
};

#define STALE_AF_INET 2
#define STALE_AF_INET6 10
#define STALE_UDP 17

/* 1: leave the destruction to netlink on every kernel, so that this way can be tried on all of them. */
volatile const __u8 stale_by_netlink;

extern int bpf_sock_destroy(struct sock_common *sk) __weak __ksym;

static __always_inline struct addr stale_addr6(const struct in6_addr *a)
{
	return (struct addr){ .words = { a->in6_u.u6_addr32[0], a->in6_u.u6_addr32[1], a->in6_u.u6_addr32[2], a->in6_u.u6_addr32[3] } };
}

/* Is it a UDP socket that is still connected to the backend of its pair, and does that not serve any more? One that is not connected has no
 * remote port. */
static __always_inline bool stale(const struct sock *sk, const struct sock_peer *peer, struct stale_socket *s)
{
	__u16 family = sk->__sk_common.skc_family;

	if (sk->sk_protocol != STALE_UDP)
		return false;
	if (family == STALE_AF_INET) {
		s->local = addr_from_v4(sk->__sk_common.skc_rcv_saddr);
		s->remote = addr_from_v4(sk->__sk_common.skc_daddr);
	} else if (family == STALE_AF_INET6) {
		s->local = stale_addr6(&sk->__sk_common.skc_v6_rcv_saddr);
		s->remote = stale_addr6(&sk->__sk_common.skc_v6_daddr);
	} else {
		return false;
	}
	s->family = family;
	s->local_port = bpf_htons(sk->__sk_common.skc_num);
	s->remote_port = sk->__sk_common.skc_dport;
	s->ifindex = sk->__sk_common.skc_bound_dev_if;
	return sock_pair_got(&peer->pair, &s->remote, s->remote_port) && !sock_pair_serves(&peer->pair);
}

SEC("iter/bpf_sk_storage_map") int stale_spaces(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct stale_socket s = {};
	struct sock *sk = ctx->sk;
	struct sock_peer *peer = ctx->value;
	__u64 cookie;

	if (!sk || !peer || !stale(sk, peer, &s))
		return 0;
	cookie = sk->__sk_common.skc_net.net->net_cookie;
	bpf_seq_write(ctx->meta->seq, &cookie, sizeof(cookie)); /* a full buffer shows this socket again at the next read */
	return 0;
}

SEC("iter/udp") int stale_sockets(struct bpf_iter__udp *ctx)
{
	struct sock *sk = (struct sock *)ctx->udp_sk;
	struct stale_socket s = {};
	struct sock_peer *peer;
	bool destroy;

	if (!sk)
		return 0;
	peer = bpf_sk_storage_get(&sock_peers, sk, 0, 0);
	if (!peer || !stale(sk, peer, &s))
		return 0;
	destroy = bpf_sock_destroy && !stale_by_netlink;
	s.cookie = bpf_get_socket_cookie(sk);
	s.destroyed = destroy;
	/* Written before destroyed: what did not fit is shown again, and must still be stale then. */
	if (!bpf_seq_write(ctx->meta->seq, &s, sizeof(s)) && destroy)
		bpf_sock_destroy((struct sock_common *)sk);
	return 0;
}
