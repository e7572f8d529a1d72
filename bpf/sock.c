/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Hooks on the node's cgroup root, at the system call: connect and sendmsg lead TCP and UDP from a Service or host port to a backend,
 * before a packet or a flow exists; recvmsg and getpeername give its name back; bind refuses the node's ports that are served already. What the hooks leave alone meets pod.c as packets. */
#include "lib/sock.h"

char _license[] SEC("license") = "Dual BSD/GPL";

enum sock_answer {
	SOCK_DENY, /* with the errno of bpf_set_retval */
	SOCK_ALLOW,
};

/* errno of the kernel's uapi */
#define EADDRINUSE 98
#define ECONNREFUSED 111
#define EHOSTUNREACH 113

#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

/* An IPv4-mapped destination of an IPv6 socket arrives at the IPv6 hooks of connect and recvmsg, in the form that struct addr has. */
static __always_inline struct addr addr_from_user6(const struct bpf_sock_addr *ctx)
{
	return (struct addr){ .words = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
}

static __always_inline void addr_to_user6(struct bpf_sock_addr *ctx, const struct addr *a, __be16 port)
{
	ctx->user_ip6[0] = a->words[0];
	ctx->user_ip6[1] = a->words[1];
	ctx->user_ip6[2] = a->words[2];
	ctx->user_ip6[3] = a->words[3];
	ctx->user_port = port;
}

static __always_inline void addr_to_user4(struct bpf_sock_addr *ctx, const struct addr *a, __be16 port)
{
	ctx->user_ip4 = a->words[3];
	ctx->user_port = port;
}

/* Raw, ping, UDP-Lite and SCTP sockets take the packet path. */
static __always_inline bool served(const struct bpf_sock_addr *ctx)
{
	return cfg.socket_lb && ((ctx->protocol == IPPROTO_TCP && ctx->type == SOCK_STREAM) ||
				 (ctx->protocol == IPPROTO_UDP && ctx->type == SOCK_DGRAM));
}

static __always_inline int deny(int err)
{
	switch (-err) {
	case DROP_SERVICE_REFUSED:
		drop_count(DROP_SOCK_REFUSED);
		bpf_set_retval(-ECONNREFUSED);
		break;
	case DROP_SERVICE_SOURCE:
		drop_count(DROP_SOCK_SOURCE);
		bpf_set_retval(-EHOSTUNREACH);
		break;
	case DROP_SERVICE_NO_LOCAL:
		drop_count(DROP_SOCK_NO_LOCAL);
		bpf_set_retval(-EHOSTUNREACH);
		break;
	default:
		drop_count(DROP_SOCK_BACKEND);
		bpf_set_retval(-ECONNREFUSED);
	}
	return SOCK_DENY;
}

static __always_inline int forward(struct bpf_sock_addr *ctx, bool v6, bool connect)
{
	struct addr dst = v6 ? addr_from_user6(ctx) : addr_from_v4(ctx->user_ip4);
	__be16 port = ctx->user_port;
	int err;

	if (!served(ctx))
		return SOCK_ALLOW;
	err = connect ? sock_connect(ctx, &dst, &port) : sock_send(ctx, &dst, &port);
	if (err < 0)
		return deny(err);
	if (!err)
		return SOCK_ALLOW;
	count(COUNT_SOCK_TRANSLATED);
	if (v6)
		addr_to_user6(ctx, &dst, port);
	else
		addr_to_user4(ctx, &dst, port);
	return SOCK_ALLOW;
}

/* Also with the socket path off: sockets that were led to a backend before keep their names. */
static __always_inline int reverse(struct bpf_sock_addr *ctx, bool v6, bool received)
{
	struct addr addr = v6 ? addr_from_user6(ctx) : addr_from_v4(ctx->user_ip4);
	__be16 port = ctx->user_port;

	if (received ? !sock_received(ctx, &addr, &port) : !sock_peer_name(ctx, &addr, &port))
		return SOCK_ALLOW;
	if (v6)
		addr_to_user6(ctx, &addr, port);
	else
		addr_to_user4(ctx, &addr, port);
	return SOCK_ALLOW;
}

SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx)
{
	return forward(ctx, false, true);
}

SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx)
{
	return forward(ctx, true, true);
}

SEC("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward(ctx, false, false);
}

SEC("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *ctx)
{
	return forward(ctx, true, false);
}

SEC("cgroup/recvmsg4") int recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, false, true);
}

SEC("cgroup/recvmsg6") int recvmsg6(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, true, true);
}

SEC("cgroup/getpeername4") int getpeername4(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, false, false);
}

SEC("cgroup/getpeername6") int getpeername6(struct bpf_sock_addr *ctx)
{
	return reverse(ctx, true, false);
}

static __always_inline int bind(struct bpf_sock_addr *ctx, const struct addr *addr)
{
	if (!served(ctx) || !sock_taken(ctx, addr, ctx->user_port))
		return SOCK_ALLOW;
	drop_count(DROP_BIND);
	bpf_set_retval(-EADDRINUSE);
	return SOCK_DENY;
}

SEC("cgroup/bind4") int bind4(struct bpf_sock_addr *ctx)
{
	struct addr addr = addr_from_v4(ctx->user_ip4);

	return bind(ctx, &addr);
}

SEC("cgroup/bind6") int bind6(struct bpf_sock_addr *ctx)
{
	struct addr addr = addr_from_user6(ctx);

	return bind(ctx, &addr);
}
