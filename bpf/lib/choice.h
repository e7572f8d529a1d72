/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Choice of a backend: from a destination to one address and port. The only reader of the service maps, shared by sock.c and pod.c,
 * so that the socket path and the packet path choose alike; the only writer of affinities.
 *
 * Packed words are written {most significant, ..., least significant}: {verdict:8, length:24, offset:32} has the verdict in bits 63
 * to 56, {incarnation:32, flags:32} has the flags in the low half.
 *
 * A program runs inside one RCU read section, and the agent reuses slots, services and backends only after a grace period: what one
 * read of a set word names stays valid until the program ends. Hash elements are reused at once, and socket programs are preempted:
 * what comes from a hash is copied and verified. */
#pragma once

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
	__u32 service_flags; /* enum service_flag */
};

#define CHOICE_EEXIST 17 /* errno of the kernel's uapi */

static __always_inline __u32 word_high(__u64 word)
{
	return word >> 32;
}

static __always_inline __u32 word_low(__u64 word)
{
	return (__u32)word;
}

static __always_inline bool backend_word_is(__u64 word, __u32 incarnation, __u32 need_flags)
{
	need_flags |= BACKEND_LIVE;
	return word_high(word) == incarnation && (word_low(word) & need_flags) == need_flags;
}

/* Is the id still that backend, and has it all of need_flags (enum backend_flag)? */
static __always_inline bool backend_current(__u32 id, __u32 incarnation, __u32 need_flags)
{
	struct backend *b = bpf_map_lookup_elem(&backends, &id);

	return b && backend_word_is(READ_ONCE(b->word), incarnation, need_flags);
}

/* Who asks: decides over traffic policy and masquerade. */
enum origin {
	ORIGIN_POD, /* a pod of this node */
	ORIGIN_NODE, /* this node itself */
	ORIGIN_OUTSIDE, /* everybody else */
};

/* The frontend at exactly this address, port (network byte order) and protocol, copied to f. */
static __always_inline bool frontend_at(const struct addr *dst, __be16 port, __u8 proto, struct frontend *f)
{
	struct frontend_key key = { .addr = *dst, .port = port, .proto = proto };
	__u64 *before, *after, word;
	int i;

	/* An element may be freed and become another key's between the lookup and the read, but not also become this key's again
	 * with the same word: found twice with the same word means that the word is this key's. Read through the first pointer: 6.1
	 * does not see that one that is equal to it is no null pointer. */
	for (i = 0; i < 3; i++) {
		before = bpf_map_lookup_elem(&frontends, &key);
		if (!before)
			return false;
		word = READ_ONCE(*before);
		after = bpf_map_lookup_elem(&frontends, &key);
		if (!after)
			return false;
		if (before == after && READ_ONCE(*before) == word) {
			__builtin_memcpy(f, &word, sizeof(*f));
			return true;
		}
	}
	return false;
}

/* What answers on this address of the node (enum node_address_flag); 0: it is none. */
static __always_inline __u32 node_address(const struct addr *a)
{
	__u32 *flags = bpf_map_lookup_elem(&node_addresses, a);

	return flags ? READ_ONCE(*flags) : 0;
}

/* The address that stands for all of the node's. */
static __always_inline struct addr addr_any(bool v4)
{
	return v4 ? addr_from_v4(0) : (struct addr){};
}

/* The host port at exactly this key, as the map has it. */
static __always_inline bool host_port_at(const struct frontend_key *key, struct host_port *to)
{
	__u64 *before, *after, word;

	for (int i = 0; i < 3; i++) { /* as in frontend_at */
		before = bpf_map_lookup_elem(&host_ports, key);
		if (!before)
			return false;
		word = READ_ONCE(*before);
		after = bpf_map_lookup_elem(&host_ports, key);
		if (!after)
			return false;
		if (before == after && READ_ONCE(*before) == word) {
			__builtin_memcpy(to, &word, sizeof(*to));
			return true;
		}
	}
	return false;
}

/* The host port of this address, or of all of the node's. */
static __always_inline bool host_port_find(const struct addr *dst, __be16 port, __u8 proto, struct host_port *to)
{
	struct frontend_key key = { .addr = *dst, .port = port, .proto = proto };

	if (host_port_at(&key, to))
		return true;
	key.addr = addr_any(addr_is_v4(dst));
	return host_port_at(&key, to);
}

/* The frontend that serves this destination: at the address itself, or a NodePort on it as `answers` (enum node_address_flag) allows.
 * Host ports come after both and are not frontends: host_port_find. */
static __always_inline bool frontend_find(const struct addr *dst, __be16 port, __u8 proto, __u32 answers, struct frontend *f)
{
	struct addr any;

	if (frontend_at(dst, port, proto, f))
		return true;
	if (!(answers & NODE_ADDRESS_NODE_PORT))
		return false;
	any = addr_any(addr_is_v4(dst));
	return frontend_at(&any, port, proto, f);
}

/* May the client use the addresses of a load balancer with this source range set? */
static __always_inline bool source_allowed(__u32 set, const struct addr *client)
{
	struct source_range key = { .prefixlen = 32 + 128, .set = set };
	__u32 *found;

	if (!set)
		return true;
	__builtin_memcpy(key.bytes, client, sizeof(key.bytes));
	found = bpf_map_lookup_elem(&source_ranges, &key);
	return found && READ_ONCE(*found) == set;
}

/* Is it an address that ClusterIPs come from? */
static __always_inline bool service_cidr(const struct addr *a)
{
	struct service_cidr key = { .prefixlen = 128 };

	__builtin_memcpy(key.bytes, a, sizeof(key.bytes));
	return bpf_map_lookup_elem(&service_cidrs, &key);
}

static __always_inline __u32 epoch_now(void)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&frontend_epoch, &zero);

	return n ? READ_ONCE(*n) : 0;
}

/* Flags of a service (enum service_flag), 0 when the id is not in use. */
static __always_inline __u32 service_flags(__u32 id)
{
	struct service *s = bpf_map_lookup_elem(&services, &id);

	return s ? word_high(READ_ONCE(s->config)) : 0;
}

/* Copies the backend into the choice when it is live, and, for incarnation != 0, still that one. */
static __always_inline bool choice_take(struct choice *c, __u32 id, __u32 incarnation, __u32 need_flags)
{
	struct backend *b = bpf_map_lookup_elem(&backends, &id);
	__u64 word;

	if (!b)
		return false;
	word = READ_ONCE(b->word);
	if (!backend_word_is(word, incarnation ? incarnation : word_high(word), need_flags))
		return false;
	c->addr.halves[0] = READ_ONCE(b->addr.halves[0]);
	c->addr.halves[1] = READ_ONCE(b->addr.halves[1]);
	c->port = READ_ONCE(b->port);
	if (word_high(READ_ONCE(b->word)) != word_high(word))
		return false;
	c->backend = id;
	c->backend_incarnation = word_high(word);
	c->flags = word_low(word);
	return true;
}

/* 1: the client's record named a backend of the set and the choice is made; 0: there is a record, but it is too old or its backend
 * left the set; -1: there is none. */
static __always_inline int affinity_find(const struct affinity_key *key, __u32 seconds, __u32 now, __u32 set_flag, struct choice *c)
{
	struct affinity fresh = { .last = now, .service = key->service };
	__u64 *record = bpf_map_lookup_elem(&affinities, key);
	__u64 chosen, mark;

	if (!record)
		return -1;
	chosen = READ_ONCE(record[0]); /* {incarnation:32, backend:32} */
	mark = READ_ONCE(record[1]); /* {service:32, last:32} */
	if (word_high(mark) != key->service || (__s32)(now - word_low(mark)) > (__s32)seconds)
		return 0;
	if (!choice_take(c, word_low(chosen), word_high(chosen), set_flag))
		return 0;
	if (word_low(mark) != now) {
		/* Not through the pointer: the element may be another key's by now. */
		fresh.backend = c->backend;
		fresh.incarnation = c->backend_incarnation;
		bpf_map_update_elem(&affinities, key, &fresh, BPF_ANY);
	}
	return 1;
}

/* Uniform choice from a set {verdict:8, length:24, offset:32}. */
static __always_inline int choice_draw(__u64 set, struct choice *c)
{
	__u32 length = word_high(set) & 0xffffff;
	__u32 slot, element;
	__u64 *pair;

	if (!length) {
		c->verdict = set >> 56;
		return c->verdict == VERDICT_DROP ? -DROP_SERVICE_NO_LOCAL : -DROP_SERVICE_REFUSED;
	}
	slot = word_low(set) + bpf_get_prandom_u32() % length;
	element = slot >> 1;
	pair = bpf_map_lookup_elem(&slots, &element);
	if (!pair || !choice_take(c, READ_ONCE(*pair) >> ((slot & 1) * 32), 0, 0))
		return -DROP_SERVICE_BACKEND;
	return 0;
}

/* Chooses a backend for a client, whose address is the pod's or the node's own in both paths, and honours the client's affinity. 0, or:
 * -DROP_SERVICE_REFUSED   no endpoint, to be answered (verdict is set);
 * -DROP_SERVICE_NO_LOCAL  no endpoint under traffic policy Local, silent (verdict is set);
 * -DROP_SERVICE_BACKEND   the agent is removing what the frontend or the slot names; the client tries again.
 * -DROP_SERVICE_SOURCE    the client is in none of the load balancer's source ranges, silent.
 * internalTrafficPolicy is the ClusterIP's; externalTrafficPolicy is that of all other addresses, but not for pods of this node and the
 * node itself, who reach every endpoint (kube-proxy, nftables/proxier.go: short circuit). Source ranges hold for everybody. */
static __always_inline int service_choose(const struct frontend *f, const struct addr *client, enum origin origin, struct choice *c)
{
	struct affinity_key key = { .client = *client, .service = f->service };
	struct affinity fresh = { .service = f->service };
	__u64 identity, config, set;
	__u32 set_flag, seconds;
	struct service *s;
	int known, err;

	s = bpf_map_lookup_elem(&services, &key.service);
	if (!s)
		return -DROP_SERVICE_BACKEND;
	identity = READ_ONCE(s->identity);
	if (!word_high(identity))
		return -DROP_SERVICE_BACKEND;
	key.incarnation = word_high(identity);
	c->service = key.service;
	c->service_incarnation = key.incarnation;
	c->class = f->class;
	c->verdict = 0;
	if (f->class == FRONTEND_LOAD_BALANCER && !source_allowed(word_low(identity), client))
		return -DROP_SERVICE_SOURCE;

	config = READ_ONCE(s->config);
	c->service_flags = word_high(config);
	if (f->class == FRONTEND_CLUSTER_IP ? word_high(config) & SERVICE_INTERNAL_LOCAL :
	    origin == ORIGIN_OUTSIDE && word_high(config) & SERVICE_EXTERNAL_LOCAL) {
		set = READ_ONCE(s->local_set);
		set_flag = BACKEND_IN_LOCAL;
	} else {
		set = READ_ONCE(s->cluster_set);
		set_flag = BACKEND_CLUSTER;
	}
	seconds = word_low(config);
	if (!seconds)
		return choice_draw(set, c);

	/* The set's emptiness decides before a record does: flags of backends are cleared after the flip. */
	if (!(word_high(set) & 0xffffff))
		return choice_draw(set, c);
	fresh.last = bpf_ktime_get_boot_ns() / 1000000000;
	known = affinity_find(&key, seconds, fresh.last, set_flag, c);
	if (known > 0)
		return 0;
	err = choice_draw(set, c);
	if (err)
		return err;
	fresh.backend = c->backend;
	fresh.incarnation = c->backend_incarnation;
	/* Two first connections at once: the record of the one that came first holds for both. */
	if (bpf_map_update_elem(&affinities, &key, &fresh, known < 0 ? BPF_NOEXIST : BPF_ANY) == -CHOICE_EEXIST) {
		struct choice first = *c;

		if (affinity_find(&key, seconds, fresh.last, set_flag, &first) > 0)
			*c = first;
	}
	return 0;
}
