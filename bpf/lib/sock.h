/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Sockets that were led to a backend at the system call: what they asked for and what they got, kept with the socket. Written by
 * sock.c, read by it and by stale.h; freed with the socket by the kernel; survive the agent (KEEP), so that names stay right and
 * sockets of dead backends are found after a restart.
 *
 * All hooks run under the socket's lock (BPF_CGROUP_RUN_*_LOCK, __inet_stream_connect, inet_getname), so one socket's storage has one
 * writer at a time; iterators read it without the lock and treat it as a hint. No scratch map: stack and storage only, since socket
 * programs are preempted and interrupted by tc programs.
 *
 * A connected socket has one pair. An unconnected UDP socket keeps SOCK_PAIRS of them, one per Service that it sends to; further
 * ones go to sock_overflow, an LRU whose forgotten pairs are chosen anew. When two Services led one socket to one and the same
 * backend, an answer carries the name of the Service asked last: nothing in the packet tells them apart. */
#pragma once

#include "choice.h"
#include "config.h"
#include "endpoint.h"

#define SOCK_PAIRS 4

/* What was asked for and what it became. */
struct sock_pair {
	struct addr frontend;
	struct addr backend;
	__be16 frontend_port;
	__be16 backend_port;
	__u32 service; /* 0: a host port, whose backend is an endpoint */
	__u32 backend_id; /* 0: no pair */
	__u32 backend_incarnation;
	__u32 used; /* sock_pairs.clock when last sent to */
	__u32 pad;
};

struct sock_peer {
	struct sock_pair pair;
	__u32 reserved[2];
};

struct sock_pairs {
	struct sock_pair pair[SOCK_PAIRS];
	__u32 clock; /* datagrams sent through pairs */
	__u32 overflowed; /* 1: sock_overflow has pairs of this socket */
	__u32 reserved[2];
};

enum sock_side {
	SOCK_FRONTEND,
	SOCK_BACKEND,
};

struct sock_overflow_key {
	struct addr addr; /* of the frontend or of the backend */
	__u64 cookie; /* of the socket */
	__be16 port;
	__u8 side; /* enum sock_side: which end of the pair the address is */
	__u8 pad[5];
};

/* Carries its key: an LRU element may become another key's under a reader. */
struct sock_overflow {
	struct sock_pair pair;
	__u64 cookie;
};

/* What the iterator of stale.h tells the agent of a connected UDP socket whose backend does not serve any more. */
struct stale_socket {
	struct addr local;
	struct addr remote; /* of the backend */
	__u64 cookie; /* of the socket */
	__be16 local_port;
	__be16 remote_port;
	__u32 ifindex; /* device the socket is bound to, 0: none */
	__u8 family; /* AF_INET or AF_INET6 of the socket; an IPv4-mapped pair has AF_INET6 */
	__u8 destroyed; /* 1: by the iterator */
	__u8 pad[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_peer);
} sock_peers SEC(".maps") KEEP;

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_pairs);
} sock_pairs SEC(".maps") KEEP;

/* Two entries per pair. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct sock_overflow_key);
	__type(value, struct sock_overflow);
} sock_overflow SEC(".maps") KEEP;

/* The address under which the packet path would know the sender. False for a namespace that is neither the node's nor a pod's, and for a
 * pod that wants its Service addresses on the wire. */
static __always_inline bool sock_client(struct bpf_sock_addr *ctx, bool v4, struct addr *client)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	struct endpoint *ep;
	__u64 word;
	__u32 *id, at;

	if (cookie == cfg.host_cookie) {
		*client = v4 ? config_addr(&cfg.node4) : config_addr(&cfg.node6);
		return true;
	}
	id = bpf_map_lookup_elem(&endpoint_ns, &cookie);
	if (!id)
		return false;
	at = *id;
	ep = bpf_map_lookup_elem(&endpoints, &at);
	if (!ep)
		return false;
	word = READ_ONCE(ep->word);
	if ((word & (ENDPOINT_LIVE | ENDPOINT_SOCKET_LB_OFF)) != ENDPOINT_LIVE)
		return false;
	*client = v4 ? ep->addr4 : ep->addr6;
	return READ_ONCE(ep->cookie) == cookie && READ_ONCE(ep->word) == word;
}

static __always_inline void sock_pair_make(struct sock_pair *p, const struct addr *dst, __be16 port, const struct choice *c)
{
	p->frontend = *dst;
	p->frontend_port = port;
	p->backend = c->addr;
	p->backend_port = c->port;
	p->service = c->service;
	p->backend_id = c->backend;
	p->backend_incarnation = c->backend_incarnation;
	p->used = 0;
	p->pad = 0;
}

static __always_inline bool sock_pair_asked(const struct sock_pair *p, const struct addr *dst, __be16 port)
{
	return p->backend_id && p->frontend_port == port && addr_equal(&p->frontend, dst);
}

static __always_inline bool sock_pair_got(const struct sock_pair *p, const struct addr *src, __be16 port)
{
	return p->backend_id && p->backend_port == port && addr_equal(&p->backend, src);
}

static __always_inline bool sock_pair_serves(const struct sock_pair *p)
{
	struct target pod = { .id = p->backend_id, .incarnation = p->backend_incarnation };

	if (!p->backend_id)
		return false;
	return p->service ? backend_current(pod.id, pod.incarnation, BACKEND_SERVING) : endpoint_current(&pod);
}

/* Copies the socket's pair with this end. Found at one place before and after the copy means that the element was not another key's
 * meanwhile, and its own key says so once more. */
static __always_inline bool sock_overflow_find(__u64 cookie, const struct addr *addr, __be16 port, __u8 side, struct sock_pair *p)
{
	struct sock_overflow_key key = { .addr = *addr, .cookie = cookie, .port = port, .side = side };
	struct sock_overflow *o = bpf_map_lookup_elem(&sock_overflow, &key);

	if (!o)
		return false;
	*p = o->pair;
	if (READ_ONCE(o->cookie) != cookie || bpf_map_lookup_elem(&sock_overflow, &key) != o)
		return false;
	return side == SOCK_FRONTEND ? sock_pair_asked(p, addr, port) : sock_pair_got(p, addr, port);
}

static __always_inline void sock_overflow_put(__u64 cookie, const struct sock_pair *p, __u8 side)
{
	struct sock_overflow_key key = { .cookie = cookie, .side = side };
	struct sock_overflow o = { .pair = *p, .cookie = cookie };

	key.addr = side == SOCK_FRONTEND ? p->frontend : p->backend;
	key.port = side == SOCK_FRONTEND ? p->frontend_port : p->backend_port;
	bpf_map_update_elem(&sock_overflow, &key, &o, BPF_ANY);
}

static __always_inline enum origin sock_origin(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == cfg.host_cookie ? ORIGIN_NODE : ORIGIN_POD;
}

static __always_inline bool sock_loopback(const struct addr *a)
{
	if (addr_is_v4(a))
		return (a->words[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !a->halves[0] && !a->words[2] && a->words[3] == bpf_htonl(1);
}

/* What answers on the destination (enum node_address_flag). Loopback is the node's own only for the node: a pod's is the pod's. */
static __always_inline __u32 sock_answers(struct bpf_sock_addr *ctx, const struct addr *dst)
{
	if (!sock_loopback(dst))
		return node_address(dst);
	if (bpf_get_netns_cookie(ctx) != cfg.host_cookie)
		return 0;
	return cfg.loopback ? NODE_ADDRESS_LOCAL | NODE_ADDRESS_NODE_PORT : NODE_ADDRESS_LOCAL;
}

/* The pod behind a host port, as a choice without service. */
static __always_inline bool sock_host_port(const struct addr *dst, __be16 port, __u8 proto, struct choice *c)
{
	struct host_port to = {};
	struct target t = {};
	struct endpoint *ep;

	if (!host_port_find(dst, port, proto, &to))
		return false;
	t.id = to.endpoint;
	t.incarnation = to.incarnation;
	ep = bpf_map_lookup_elem(&endpoints, &t.id);
	if (!ep)
		return false;
	c->addr = addr_is_v4(dst) ? ep->addr4 : ep->addr6;
	c->port = to.port;
	c->backend = t.id;
	c->backend_incarnation = t.incarnation;
	return endpoint_current(&t) && !addr_is_zero(&c->addr);
}

/* What serves the destination: 1 and f for a Service, whose backend is still to be chosen; 2 and c for a host port; 0: nothing. */
static __always_inline int sock_find(struct bpf_sock_addr *ctx, const struct addr *dst, __be16 port, struct frontend *f, struct choice *c)
{
	__u32 answers = sock_answers(ctx, dst);

	if (frontend_find(dst, port, ctx->protocol, answers, f))
		return service_flags(f->service) & SERVICE_SOCKET_OFF ? 0 : 1;
	return answers & NODE_ADDRESS_LOCAL && sock_host_port(dst, port, ctx->protocol, c) ? 2 : 0;
}

/* connect: one pair, in place of the one of an earlier connect. 1: *dst and *port are the backend's; 0: not ours; or -enum
 * drop_reason of service_choose. */
static __always_inline int sock_connect(struct bpf_sock_addr *ctx, struct addr *dst, __be16 *port)
{
	struct sock_peer *peer;
	struct choice c = {};
	struct frontend f = {};
	struct addr client;
	int kind, err = 0;

	kind = sock_find(ctx, dst, *port, &f, &c);
	if (!kind || !sock_client(ctx, addr_is_v4(dst), &client))
		goto leave;
	if (kind == 1) {
		err = service_choose(&f, &client, sock_origin(ctx), &c);
		if (err)
			goto leave;
	}
	peer = bpf_sk_storage_get(&sock_peers, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer) {
		count(COUNT_SOCK_STORAGE);
		return 0;
	}
	sock_pair_make(&peer->pair, dst, *port, &c);
	*dst = c.addr;
	*port = c.port;
	return 1;
leave:
	bpf_sk_storage_delete(&sock_peers, ctx->sk);
	return err;
}

/* sendmsg on an unconnected socket: the pair of this Service as long as its backend serves, so that one socket's datagrams stay
 * together; otherwise a new choice. Returns like sock_connect. */
static __always_inline int sock_send(struct bpf_sock_addr *ctx, struct addr *dst, __be16 *port)
{
	struct sock_pair made, old;
	struct sock_pairs *s;
	struct choice c = {};
	struct frontend f = {};
	struct addr client;
	int i, kind, err, at = -1;
	__u64 cookie;

	kind = sock_find(ctx, dst, *port, &f, &c);
	if (!kind || !sock_client(ctx, addr_is_v4(dst), &client))
		return 0;
	s = bpf_sk_storage_get(&sock_pairs, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s) {
		count(COUNT_SOCK_STORAGE);
		return 0;
	}
	for (i = 0; i < SOCK_PAIRS; i++) {
		struct sock_pair *p = &s->pair[i];

		if (!sock_pair_asked(p, dst, *port))
			continue;
		if (p->service == f.service && sock_pair_serves(p)) {
			p->used = ++s->clock;
			*dst = p->backend;
			*port = p->backend_port;
			return 1;
		}
		at = i;
		break;
	}
	cookie = bpf_get_socket_cookie(ctx);
	if (at < 0 && s->overflowed && sock_overflow_find(cookie, dst, *port, SOCK_FRONTEND, &old) && old.service == f.service &&
	    sock_pair_serves(&old)) {
		if (old.used != s->clock) { /* no longer the last one asked: it is again */
			old.used = ++s->clock;
			sock_overflow_put(cookie, &old, SOCK_FRONTEND);
			sock_overflow_put(cookie, &old, SOCK_BACKEND);
		}
		*dst = old.backend;
		*port = old.backend_port;
		return 1;
	}
	if (kind == 1) {
		err = service_choose(&f, &client, sock_origin(ctx), &c);
		if (err)
			return err;
	}
	sock_pair_make(&made, dst, *port, &c);
	made.used = ++s->clock;
	for (i = 0; i < SOCK_PAIRS && at < 0; i++)
		if (!s->pair[i].backend_id)
			at = i;
	for (i = 0; i < SOCK_PAIRS && at < 0; i++)
		if (!sock_pair_serves(&s->pair[i]))
			at = i;
	if (at >= 0 && at < SOCK_PAIRS) {
		struct sock_pair *p = &s->pair[at];

		if (p->backend_id) { /* an answer that is still on its way finds its name */
			old = *p;
			sock_overflow_put(cookie, &old, SOCK_BACKEND);
			s->overflowed = 1;
		}
		*p = made;
	} else {
		sock_overflow_put(cookie, &made, SOCK_FRONTEND);
		sock_overflow_put(cookie, &made, SOCK_BACKEND);
		s->overflowed = 1;
	}
	*dst = c.addr;
	*port = c.port;
	return 1;
}

/* The name under which the socket knows its connected peer. False: the address stands. */
static __always_inline bool sock_peer_name(struct bpf_sock_addr *ctx, struct addr *addr, __be16 *port)
{
	struct sock_peer *peer = bpf_sk_storage_get(&sock_peers, ctx->sk, 0, 0);

	/* After connect(AF_UNSPEC) the pair is still there and means nothing. */
	if (!peer || ctx->sk->state == BPF_TCP_CLOSE || !sock_pair_got(&peer->pair, addr, *port))
		return false;
	*addr = peer->pair.frontend;
	*port = peer->pair.frontend_port;
	return true;
}

/* recvmsg: the name under which the socket asked for what it receives. False: the address stands. */
static __always_inline bool sock_received(struct bpf_sock_addr *ctx, struct addr *src, __be16 *port)
{
	struct sock_pairs *s;
	struct sock_pair old;
	__u32 best = 0, age;
	int i, at = -1;

	if (sock_peer_name(ctx, src, port))
		return true;
	s = bpf_sk_storage_get(&sock_pairs, ctx->sk, 0, 0);
	if (!s)
		return false;
	for (i = 0; i < SOCK_PAIRS; i++) {
		struct sock_pair *p = &s->pair[i];

		if (!sock_pair_got(p, src, *port))
			continue;
		age = s->clock - p->used;
		if (at < 0 || age < best) {
			at = i;
			best = age;
		}
	}
	if (s->overflowed && sock_overflow_find(bpf_get_socket_cookie(ctx), src, *port, SOCK_BACKEND, &old) &&
	    (at < 0 || s->clock - old.used < best)) {
		*src = old.frontend;
		*port = old.frontend_port;
		return true;
	}
	if (at < 0 || at >= SOCK_PAIRS)
		return false;
	*src = s->pair[at].frontend;
	*port = s->pair[at].frontend_port;
	return true;
}

/* bind: would the node's socket never see what comes for its port, because a NodePort or a host port has it? */
static __always_inline bool sock_taken(struct bpf_sock_addr *ctx, const struct addr *addr, __be16 port)
{
	struct host_port to = {};
	struct addr any = addr_any(addr_is_v4(addr));
	bool wildcard = addr_equal(addr, &any);
	struct frontend f;
	__u32 answers;

	if (!port || bpf_get_netns_cookie(ctx) != cfg.host_cookie)
		return false;
	answers = wildcard ? NODE_ADDRESS_LOCAL | NODE_ADDRESS_NODE_PORT : sock_answers(ctx, addr);
	if (answers & NODE_ADDRESS_NODE_PORT && frontend_at(&any, port, ctx->protocol, &f))
		return true;
	return answers & NODE_ADDRESS_LOCAL && host_port_find(addr, port, ctx->protocol, &to);
}
