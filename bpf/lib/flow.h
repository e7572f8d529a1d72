/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Flows: one record per flow of a pod, made at its first packet, found by both of its keys (before and after translation) in both
 * directions. Made and kept by the hooks, ended by the sweep's timer in the kernel, read by the agent through mmap; survives the
 * agent (KEEP).
 *
 * A record lives through one word {generation:16, state:8, bits:8, stamp:32} that changes by compare-and-swap only:
 *
 *   FREE -> PENDING    a slot was claimed; its generation grows
 *   PENDING -> LIVE    both keys stand in the index and no equal one does; only LIVE records are found
 *   PENDING -> ABORTED another CPU makes the same flow and stands earlier
 *   LIVE -> DYING      ended; its words are taken out, its facts stay for readers that hold it
 *   DYING -> FREE      a second or more later, by the sweep
 *
 * Two CPUs that make one flow both publish their words, then look for the other's. Who sees a LIVE one gives way; of two PENDING
 * ones the earlier position wins, by aborting the other's word. Since each looks after it has published, one of them sees the other,
 * and since the step to LIVE is a compare-and-swap of the word that is aborted, they are never both LIVE.
 *
 * Idle times, in seconds: enum flow_timeout. Overflow: from 3/4 of the slots on, records that a stranger can make at will
 * (half-open, unreplied, echo, closed) end early, idle longest first: their time shrinks with the square of what is left of the last
 * quarter, down to 1 s when the table is full. Established and replied flows shrink by the same rule down to 60 s, but only by the
 * number of their own kind: no flood of half-open ones can touch them. A flow that finds no slot has no record; whether its packet
 * passes is the caller's decision. */
#pragma once

#include "addr.h"
#include "config.h"
#include "drop.h"
#include "map.h"
#include "table.h"
#include "target.h"

enum flow_dir {
	FLOW_FORWARD, /* as the first packet went */
	FLOW_REPLY,
};

enum flow_state {
	FLOW_FREE,
	FLOW_PENDING,
	FLOW_ABORTED,
	FLOW_LIVE,
	FLOW_DYING,
};

/* What TCP packets said, in the word. Facts are kept rather than a state, so that their order does not matter. */
enum flow_bit {
	FLOW_ACK_FORWARD = 1, /* went forward without SYN: the first side has seen an answer, or the record began in midstream */
	FLOW_ACK_REPLY = 2, /* came back with ACK */
	FLOW_FIN_FORWARD = 4,
	FLOW_FIN_REPLY = 8,
	FLOW_RST_FORWARD = 16,
	FLOW_RST_REPLY = 32,
};

/* Facts that never change, in flow.flags. Callers may use the other bits. */
enum flow_flag {
	FLOW_TRANSLATED = 1, /* xlat differs from orig; set by flow_create */
	FLOW_HOST_PORT = 2, /* led to a pod by a host port: ends with the pod */
};

/* Where a flow stands. SCTP is treated like TCP, its chunks mapped to TCP's flags by the parser. */
enum flow_phase {
	FLOW_HALF_OPEN, /* TCP, SCTP: no proof yet that both sides want it */
	FLOW_ESTABLISHED,
	FLOW_CLOSING, /* one FIN */
	FLOW_CLOSED, /* both FIN, or RST */
	FLOW_UNREPLIED, /* others */
	FLOW_REPLIED,
	FLOW_ECHO, /* ICMP */
	FLOW_PHASE_MAX,
};

/* Seconds without a packet in either direction after which a record ends. */
enum flow_timeout {
	FLOW_TIMEOUT_HALF_OPEN = 20,
	FLOW_TIMEOUT_ESTABLISHED = 24 * 60 * 60,
	FLOW_TIMEOUT_CLOSING = 60 * 60,
	FLOW_TIMEOUT_CLOSED = 10,
	FLOW_TIMEOUT_UNREPLIED = 30,
	FLOW_TIMEOUT_REPLIED = 180,
	FLOW_TIMEOUT_ECHO = 30,
	/* under pressure not less than */
	FLOW_TIMEOUT_LEAST = 1, /* half-open, closed, unreplied, echo */
	FLOW_TIMEOUT_LEAST_KEPT = 60, /* established, closing, replied */
	/* from DYING to FREE: two ticks of a clock in seconds are more than one second */
	FLOW_GRACE = 2,
};

enum flow_proto {
	FLOW_PROTO_ICMP = 1,
	FLOW_PROTO_TCP = 6,
	FLOW_PROTO_ICMPV6 = 58,
	FLOW_PROTO_SCTP = 132,
};

enum flow_tcp {
	FLOW_TCP_FIN = 0x01,
	FLOW_TCP_SYN = 0x02,
	FLOW_TCP_RST = 0x04,
	FLOW_TCP_ACK = 0x10,
};

/* Three cache lines: the first is all that a packet of an untranslated flow reads to be known. */
struct flow {
	__u64 word; /* {generation:16, enum flow_state:8, enum flow_bit:8, second of birth or end:32} */
	__u32 seen[2]; /* by enum flow_dir: second of the last packet, 0: none yet; flow_now() */
	struct tuple orig; /* forward packet before translation */
	__u8 fwd_kind; /* enum target_kind of fwd */
	__u8 rev_kind; /* of rev */
	__u8 flags; /* enum flow_flag and the caller's */
	__u8 pad[5];

	struct tuple xlat; /* forward packet after translation; orig when nothing is translated */
	struct target fwd; /* toward the destination */
	struct target rev; /* toward the source */
	__u32 epoch; /* frontend_epoch when made, or when last found to be no Service's */
	__u32 reserved;

	__u32 service; /* 0: none */
	__u32 service_incarnation;
	__u32 backend;
	__u32 backend_incarnation;
	__u64 verdict[2]; /* by judged side {source's pod, destination's pod}: {rule cookie:32, generation:32}; not used yet */
	__u32 peer_generation[2]; /* the same: generation of the other end's class; not used yet */
	__u64 reserved2[3];
};

/* What flow_create writes. Zero it first: the padding is compared and read. */
struct flow_new {
	struct tuple orig;
	struct tuple xlat; /* proto 0, or equal to orig: not translated */
	__u8 fwd_kind;
	__u8 rev_kind;
	__u8 flags;
	__u8 pad;
	struct target fwd;
	struct target rev;
	__u32 service;
	__u32 service_incarnation;
	__u32 backend;
	__u32 backend_incarnation;
	__u32 epoch;
};

/* A record as a packet meets it. Lives on the stack of one program run; do not store it. */
struct flow_hit {
	struct flow *flow;
	__u32 slot;
	__u16 generation;
	__u8 dir; /* enum flow_dir */
	__u8 translated; /* 1: the packet is xlat (or its reverse) of a translated flow: it stands after translation */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072); /* kube-proxy's least number of tracked connections */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flow);
} flow_slots SEC(".maps") KEEP;

/* Seconds of CLOCK_MONOTONIC, never 0, right to 1 in 10 million; without a division. */
static __always_inline __u32 flow_now(void)
{
	return ((bpf_ktime_get_coarse_ns() >> 20) * 4503600 >> 32) + 1;
}

static __always_inline __u64 flow_word(__u16 generation, enum flow_state state, __u8 bits, __u32 stamp)
{
	return (__u64)generation << 48 | (__u64)state << 40 | (__u64)bits << 32 | stamp;
}

static __always_inline __u16 flow_generation(__u64 word)
{
	return word >> 48;
}

static __always_inline enum flow_state flow_state(__u64 word)
{
	return word >> 40 & 0xff;
}

static __always_inline __u8 flow_bits(__u64 word)
{
	return word >> 32;
}

static __always_inline struct flow *flow_at(__u32 slot)
{
	return bpf_map_lookup_elem(&flow_slots, &slot);
}

static __always_inline bool flow_closed(__u8 bits)
{
	return bits & (FLOW_RST_FORWARD | FLOW_RST_REPLY) || (bits & FLOW_FIN_FORWARD && bits & FLOW_FIN_REPLY);
}

static __always_inline bool flow_connected(__u8 proto)
{
	return proto == FLOW_PROTO_TCP || proto == FLOW_PROTO_SCTP;
}

static __always_inline enum flow_phase flow_phase(const struct flow *f, __u64 word)
{
	__u8 bits = flow_bits(word), proto = f->orig.proto;

	if (flow_connected(proto)) {
		if (flow_closed(bits))
			return FLOW_CLOSED;
		if (!(bits & FLOW_ACK_FORWARD && bits & FLOW_ACK_REPLY))
			return FLOW_HALF_OPEN;
		return bits & (FLOW_FIN_FORWARD | FLOW_FIN_REPLY) ? FLOW_CLOSING : FLOW_ESTABLISHED;
	}
	if (proto == FLOW_PROTO_ICMP || proto == FLOW_PROTO_ICMPV6)
		return FLOW_ECHO;
	return READ_ONCE(f->seen[FLOW_REPLY]) ? FLOW_REPLIED : FLOW_UNREPLIED;
}

static __always_inline const struct tuple *flow_key(const struct flow *f, bool translated)
{
	return translated ? &f->xlat : &f->orig;
}

/* enum flow_dir, or -1: t is not of this flow. A tuple that is its own reverse goes forward. */
static __always_inline int flow_match(const struct tuple *own, const struct tuple *t)
{
	/* The barriers keep clang (19) from holding both tuples on the stack, which all stages share. */
	barrier();
	if (tuple_equal(own, t))
		return FLOW_FORWARD;
	barrier();
	if (addr_equal(&own->src, &t->dst) && addr_equal(&own->dst, &t->src) && own->src_port == t->dst_port &&
	    own->dst_port == t->src_port && own->proto == t->proto)
		return FLOW_REPLY;
	return -1;
}

/* What the stages below hand out: the word in the index, with enum flow_dir + 1 in place of the tag. Never 0, never negative. */
static __always_inline __u64 flow_found(__u64 at, int dir)
{
	return (at & 0xffffffffffffULL) | (__u64)(dir + 1) << 48;
}

static __always_inline bool flow_take(__u64 found, struct flow_hit *hit)
{
	hit->slot = table_slot(found);
	hit->generation = table_generation(found);
	hit->dir = (found >> 48) - 1;
	hit->translated = table_translated(found);
	hit->flow = flow_at(hit->slot);
	return hit->flow;
}

/* Two translated flows may meet in one tuple: what one was before its translation, the other is behind it (a client speaks to a backend
 * directly and through a Service, from one port). A packet fresh from its sender is the first's, any other packet, replies included, is
 * the second's. */
static __always_inline bool flow_expected(const struct flow *f, bool translated, int dir, bool sent)
{
	return !(f->flags & FLOW_TRANSLATED) || translated == !(sent && dir == FLOW_FORWARD);
}

/* flow_find without the pointer: 0 or flow_found(). The loads of a record are ordered behind that of its word in the index by the
 * address, which comes from the word. */
STAGE __u64 flow_search(const struct tuple *t, bool sent)
{
	__u64 hash, other = 0;

	if (!t)
		return 0;
	hash = table_hash(t);
	for (int i = 0; i < 2; i++) {
		struct bucket *b = table_bucket(hash, i);

		if (!b)
			return 0;
		for (int j = 0; j < TABLE_WORDS; j++) {
			__u64 at = READ_ONCE(b->w[j]), word;
			struct flow *f;
			int dir;

			if ((at ^ hash) >> 48)
				continue;
			f = flow_at(table_slot(at));
			if (!f)
				continue;
			word = READ_ONCE(f->word);
			if (flow_generation(word) != table_generation(at) || flow_state(word) != FLOW_LIVE)
				continue;
			dir = flow_match(flow_key(f, table_translated(at)), t);
			if (dir < 0)
				continue;
			if (flow_expected(f, table_translated(at), dir, sent))
				return flow_found(at, dir);
			other = flow_found(at, dir);
		}
	}
	return other;
}

/* Finds the flow of a packet as it stands: in either direction, before or after translation. The facts may be used as they are: a
 * record that was live is not written anew for at least a second. */
static __always_inline bool flow_find(const struct tuple *t, struct flow_hit *hit)
{
	__u64 found = flow_search(t, false);

	return found && flow_take(found, hit);
}

/* The same for a packet that its sender just sent. */
static __always_inline bool flow_find_sent(const struct tuple *t, struct flow_hit *hit)
{
	__u64 found = flow_search(t, true);

	return found && flow_take(found, hit);
}

/* The record is still the one that was found. For those who kept a hit longer than one packet takes. */
static __always_inline bool flow_still(const struct flow_hit *hit)
{
	__u64 word = READ_ONCE(hit->flow->word);

	return flow_generation(word) == hit->generation && flow_state(word) >= FLOW_LIVE;
}

enum flow_rival {
	RIVAL_NONE,
	RIVAL_PENDING, /* another CPU stands earlier: give way */
	/* anything else is flow_found(): a live one, give way */
};

/* The hash of one key of the record in a slot. */
STAGE __u64 flow_hash(__u32 slot, bool translated)
{
	const struct flow *f = flow_at(slot);

	return f ? table_hash(flow_key(f, translated)) : 0;
}

/* Looks in both buckets of one key of a pending record for an equal key of another. A pending one that stands behind is aborted. enum
 * flow_rival. */
STAGE __u64 flow_rival(__u32 slot, bool translated, __u64 hash)
{
	const struct flow *own = flow_at(slot);
	bool earlier = true;

	if (!own)
		return RIVAL_PENDING;
	for (int i = 0; i < 2; i++) {
		struct bucket *b = table_bucket(hash, i);
		__u32 matches;

		if (!b)
			return RIVAL_PENDING;
		matches = table_matches(b, hash);
		for (int j = 0; j < TABLE_WORDS && matches; j++, matches &= matches - 1) {
			__u64 at = READ_ONCE(b->w[table_first(matches)]), word;
			struct flow *f;
			int dir;

			if (table_slot(at) == slot) {
				if (table_translated(at) == translated)
					earlier = false;
				continue;
			}
			f = flow_at(table_slot(at));
			if (!f)
				continue;
			word = READ_ONCE(f->word);
			if (flow_generation(word) != table_generation(at))
				continue;
			dir = flow_match(flow_key(f, table_translated(at)), flow_key(own, translated));
			if (dir < 0)
				continue;
			/* Before one translation, behind another: flow_expected() tells them apart. */
			if (own->flags & f->flags & FLOW_TRANSLATED && table_translated(at) != translated)
				continue;
			if (flow_state(word) == FLOW_PENDING) {
				__u64 was;

				if (earlier)
					return RIVAL_PENDING;
				was = __sync_val_compare_and_swap(&f->word, word, flow_word(flow_generation(word), FLOW_ABORTED, 0, 0));
				if (was == word)
					continue;
				word = was; /* it went live, or gave up */
			}
			if (flow_generation(word) == table_generation(at) && flow_state(word) == FLOW_LIVE)
				return flow_found(at, dir);
		}
	}
	return RIVAL_NONE;
}

/* Claims a slot and writes the record: its number, or -1 when none is free. */
STAGE int flow_write(const struct flow_new *n, __u32 stamp)
{
	struct flow *f;
	__u16 generation;
	int slot;

	if (!n)
		return -1;
	slot = table_claim();
	if (slot < 0)
		return -1;
	f = flow_at(slot);
	if (!f)
		return -1;
	generation = flow_generation(f->word) + 1;
	if (!generation)
		generation = 1;
	WRITE_ONCE(f->word, flow_word(generation, FLOW_PENDING, 0, stamp));
	f->seen[FLOW_FORWARD] = stamp;
	f->seen[FLOW_REPLY] = 0;
	f->orig = n->orig;
	f->fwd_kind = n->fwd_kind;
	f->rev_kind = n->rev_kind;
	f->flags = n->flags & ~FLOW_TRANSLATED;
	f->xlat = n->orig;
	if (n->xlat.proto && !tuple_equal(&n->orig, &n->xlat)) {
		f->flags |= FLOW_TRANSLATED;
		f->xlat = n->xlat;
	}
	f->fwd = n->fwd;
	f->rev = n->rev;
	f->epoch = n->epoch;
	f->service = n->service;
	f->service_incarnation = n->service_incarnation;
	f->backend = n->backend;
	f->backend_incarnation = n->backend_incarnation;
	f->verdict[0] = 0;
	f->verdict[1] = 0;
	f->peer_generation[0] = 0;
	f->peer_generation[1] = 0;
	return slot;
}

/* Publishes one key of a pending record and looks for rivals: enum flow_rival, or -DROP_FLOW_BUCKETS. */
static __always_inline __s64 flow_publish(__u32 slot, __u16 generation, bool translated)
{
	__u64 hash = flow_hash(slot, translated);

	if (table_publish(hash, table_word(hash, generation, translated, slot)))
		return -DROP_FLOW_BUCKETS;
	return flow_rival(slot, translated, hash);
}

/* Takes out one key of a record; it may not have been published. */
static __always_inline void flow_withdraw(__u32 slot, __u16 generation, bool translated)
{
	__u64 hash = flow_hash(slot, translated);

	table_withdraw(hash, table_word(hash, generation, translated, slot));
}

/* A live record has the translated key: it is the same flow, or only holds its port. */
static __always_inline __s64 flow_same(const struct flow_new *n, __u64 found)
{
	const struct flow *f = flow_at(table_slot(found));

	if (!f || !tuple_equal(&f->orig, &n->orig))
		return -DROP_FLOW_PORTS;
	return flow_found(found & ~(1ULL << 31), FLOW_FORWARD);
}

/* flow_create without the pointer: flow_found() or -enum drop_reason. */
STAGE __s64 flow_make(const struct flow_new *n)
{
	if (!n)
		return -DROP_FLOW_FULL;
	for (int i = 0; i < 2; i++) {
		int slot = flow_write(n, flow_now());
		__s64 ret = RIVAL_NONE;
		bool translated;
		struct flow *f;
		__u64 word;

		if (slot < 0)
			return -DROP_FLOW_FULL;
		f = flow_at(slot);
		if (!f)
			return -DROP_FLOW_FULL;
		word = READ_ONCE(f->word); /* pending; nobody else knows of it yet */
		translated = f->flags & FLOW_TRANSLATED;
		if (translated) { /* this key first: it reserves the port */
			ret = flow_publish(slot, flow_generation(word), true);
			if (ret > RIVAL_PENDING)
				ret = flow_same(n, ret);
		}
		if (ret == RIVAL_NONE)
			ret = flow_publish(slot, flow_generation(word), false);
		if (ret == RIVAL_NONE &&
		    __sync_val_compare_and_swap(&f->word, word, word ^ flow_word(0, FLOW_PENDING ^ FLOW_LIVE, 0, 0)) == word) {
			count(COUNT_FLOW_CREATED);
			return flow_found(table_word(0, flow_generation(word), false, slot), FLOW_FORWARD);
		}
		/* Never live, so no reader holds it: its slot is free at once. */
		if (translated)
			flow_withdraw(slot, flow_generation(word), true);
		flow_withdraw(slot, flow_generation(word), false);
		WRITE_ONCE(f->word, flow_word(flow_generation(word), FLOW_FREE, 0, 0));
		table_release(slot);
		if (ret < 0)
			return ret;
		count(COUNT_FLOW_COLLISION);
		if (ret > RIVAL_PENDING)
			return ret;
		/* The other CPU needs some ten nanoseconds more. */
		for (int j = 0; j < 4; j++) {
			ret = flow_search(&n->orig, true);
			if (ret)
				return ret;
		}
	}
	return -DROP_FLOW_RACE;
}

/* Makes the record of a flow whose first packet is n->orig: 0, or -enum drop_reason (FULL, BUCKETS; PORTS: xlat belongs to another
 * flow, take another source port; RACE). When another CPU was faster, or n->orig belongs to a flow already: 0, and hit is what
 * flow_find would find for n->orig, with facts that may differ from n's. */
static __always_inline int flow_create(const struct flow_new *n, struct flow_hit *hit)
{
	__s64 made = flow_make(n);
	int err = made;

	if (made > 0 && flow_take(made, hit))
		return 0;
	/* The verifier (6.18) does not know that the low half of a negative number here is one. */
	return err < 0 ? err : -DROP_FLOW_FULL;
}

/* Ends a record whose word is still `word`: 0, or -1 when it has changed since. Its slot is freed by the sweep. */
STAGE int flow_end(__u32 slot, __u64 word)
{
	struct flow *f = flow_at(slot);
	__u16 generation = flow_generation(word);

	if (!f || flow_state(word) != FLOW_LIVE)
		return -1;
	if (__sync_val_compare_and_swap(&f->word, word, flow_word(generation, FLOW_DYING, flow_bits(word), flow_now())) != word)
		return -1;
	flow_withdraw(slot, generation, false);
	if (f->flags & FLOW_TRANSLATED)
		flow_withdraw(slot, generation, true);
	return 0;
}

/* Ends the flow now: its next packet is a first packet. False when another CPU ended it, or keeps changing it. */
static __always_inline bool flow_remove(const struct flow_hit *hit)
{
	for (int i = 0; i < 4; i++) {
		__u64 word = READ_ONCE(hit->flow->word);

		if (flow_generation(word) != hit->generation)
			return false;
		if (!flow_end(hit->slot, word))
			return true;
	}
	return false;
}

/* A SYN on a record whose connection is over: a new connection between the same ends. It wants a new record (flow_remove, then as a
 * first packet), since backend and direction may differ. */
static __always_inline bool flow_over(const struct flow_hit *hit, __u8 tcp_flags)
{
	return (tcp_flags & (FLOW_TCP_SYN | FLOW_TCP_ACK)) == FLOW_TCP_SYN && flow_closed(flow_bits(READ_ONCE(hit->flow->word)));
}

/* The bits after a packet. A RST is taken back by a later packet of the other side without one: a real one has no such packet that is
 * not answered by the next RST, a forged one must not end a living connection. */
static __always_inline __u8 flow_bits_after(__u8 bits, __u8 dir, __u8 tcp_flags)
{
	bool reply = dir == FLOW_REPLY;

	if (tcp_flags & FLOW_TCP_RST)
		return bits | (reply ? FLOW_RST_REPLY : FLOW_RST_FORWARD);
	if ((tcp_flags & (FLOW_TCP_SYN | FLOW_TCP_ACK)) == FLOW_TCP_SYN)
		return flow_closed(bits) && !reply ? 0 : bits; /* flow_over() was not asked: the same record again */
	bits &= ~(reply ? FLOW_RST_FORWARD : FLOW_RST_REPLY);
	if (reply ? tcp_flags & FLOW_TCP_ACK : !(tcp_flags & FLOW_TCP_SYN))
		bits |= reply ? FLOW_ACK_REPLY : FLOW_ACK_FORWARD;
	if (tcp_flags & FLOW_TCP_FIN)
		bits |= reply ? FLOW_FIN_REPLY : FLOW_FIN_FORWARD;
	return bits;
}

/* Notes a packet: the second, and for TCP what its flags say. An established flow's line is written once a second. SCTP without
 * flags counts as ACK. */
static __always_inline void flow_seen(const struct flow_hit *hit, __u8 tcp_flags)
{
	struct flow *f = hit->flow;
	__u8 dir = hit->dir & 1;
	__u32 now = flow_now();

	if (READ_ONCE(f->seen[dir]) != now)
		WRITE_ONCE(f->seen[dir], now);
	if (!flow_connected(f->orig.proto))
		return;
	if (f->orig.proto == FLOW_PROTO_SCTP && !tcp_flags)
		tcp_flags = FLOW_TCP_ACK;
	for (int i = 0; i < 4; i++) {
		__u64 word = READ_ONCE(f->word);
		__u8 bits = flow_bits(word), after = flow_bits_after(bits, dir, tcp_flags);

		if (bits == after || flow_state(word) != FLOW_LIVE || flow_generation(word) != hit->generation)
			return;
		if (__sync_val_compare_and_swap(&f->word, word, word ^ (__u64)(bits ^ after) << 32) == word)
			return;
	}
}
