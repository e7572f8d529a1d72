/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The index of the flow table: which slot holds the record of a key. Every hook writes and reads it, the sweep takes out and frees,
 * the agent reads it through mmap; it survives the agent (KEEP). What a slot holds is flow.h's matter.
 *
 * One array of cache lines of eight words:
 *
 *   line 0                    header: {magic:32, version:32}, six words of seed, {slots:32, buckets:32}
 *   1 .. slots / 512          bitmap: one bit per slot, set while the slot is taken
 *   from 1 + slots / 512 on   buckets: a word is 0 or {tag:16, generation:16, translated:1, slot:31}
 *
 * A key has two buckets, by a seeded hash. A word enters and leaves by one compare-and-swap and never moves; nothing is locked and
 * no helper is called on the way of a packet. The agent writes the header once, before the first program is attached: the seed stays
 * with the table for its life.
 *
 * Size: buckets are a power of two and half the slots, so a table whose flows are all translated (two words each) has half of its
 * words taken. At that load a key that finds both buckets full is rarer than one in a hundred million. */
#pragma once

#include "addr.h"
#include "config.h"
#include "map.h"

enum table_size {
	TABLE_WORDS = 8, /* words of a line */
	TABLE_LINE_SLOTS = 512, /* bits of a line */
	TABLE_CLAIM_LINES = 32, /* lines of the bitmap that one claim looks at */
};

enum table_magic {
	TABLE_MAGIC = 0x464c5442, /* "FLTB" */
	TABLE_VERSION = 1,
};

struct bucket {
	__u64 w[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65793); /* 1 + 131072 / 512 + 65536 */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct bucket);
} flow_buckets SEC(".maps") KEEP;

/* Line of the bitmap where this CPU found a free slot last. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} flow_hints SEC(".maps");

static __always_inline struct bucket *table_line(__u32 line)
{
	return bpf_map_lookup_elem(&flow_buckets, &line);
}

/* One product of NH (Black et al., UMAC, 1999): two different keys get the same sum of products with a chance of 2^-32, whatever
 * the sender chooses, as long as the seed is secret. A multiply-and-shift chain with a seeded start has collisions that do not
 * depend on the seed. */
static __always_inline __u64 table_product(__u64 x, __u64 seed)
{
	return (__u64)((__u32)x + (__u32)seed) * ((__u32)(x >> 32) + (__u32)(seed >> 32));
}

/* The same for both directions: the lower end comes first. Ends are compared as the machine reads them; only the order counts. */
static __always_inline __u64 table_hash(const struct tuple *t)
{
	const struct bucket *seed = table_line(0);
	__u64 low0 = t->src.halves[0], low1 = t->src.halves[1], high0 = t->dst.halves[0], high1 = t->dst.halves[1];
	__u64 low_port = t->src_port, high_port = t->dst_port, h;
	bool swap = low1 > high1;

	if (!seed)
		return 0;
	if (low1 == high1)
		swap = low0 == high0 ? low_port > high_port : low0 > high0;
	if (swap) {
		low0 = t->dst.halves[0];
		low1 = t->dst.halves[1];
		low_port = t->dst_port;
		high0 = t->src.halves[0];
		high1 = t->src.halves[1];
		high_port = t->src_port;
	}
	h = table_product(low0, seed->w[1]) + table_product(low1, seed->w[2]) + table_product(high0, seed->w[3]) +
	    table_product(high1, seed->w[4]) + table_product(low_port << 32 | high_port << 16 | t->proto, seed->w[5]);
	h ^= seed->w[6];
	h ^= h >> 32;
	h *= 0x9e3779b97f4a7c15ULL;
	return h ^ h >> 32;
}

/* Bucket 0 or 1 of a key; never the same one twice. */
static __always_inline struct bucket *table_bucket(__u64 hash, __u32 choice)
{
	__u32 n = hash;

	if (choice)
		n ^= (__u32)(hash >> 24) | 1;
	return table_line(1 + cfg.flow_slots / TABLE_LINE_SLOTS + (n & (cfg.flow_buckets - 1)));
}

static __always_inline __u64 table_word(__u64 hash, __u16 generation, bool translated, __u32 slot)
{
	return hash >> 48 << 48 | (__u64)generation << 32 | (__u64)translated << 31 | slot;
}

/* Bit j: word j of the bucket has the tag of the hash. An empty word may, too: its generation, 0, is never used. Without branches,
 * for the verifier's sake; the search for a packet has them, since the processor guesses where its flow stands. */
static __always_inline __u32 table_matches(const struct bucket *b, __u64 hash)
{
	__u32 mask = 0;

#pragma unroll
	for (int j = 0; j < TABLE_WORDS; j++) {
		__u64 apart = (READ_ONCE(b->w[j]) ^ hash) >> 48;

		barrier_var(apart); /* keeps clang (19) from making it a comparison and a branch again */
		mask |= (apart - 1) >> 63 << j;
	}
	return mask;
}

/* Position of the lowest set bit of eight, by a de Bruijn sequence. */
static __always_inline __u32 table_first(__u32 mask)
{
	return 0x56374210u >> ((mask & -mask) * 0x17 >> 5 & 7) * 4 & 7;
}

static __always_inline __u16 table_generation(__u64 word)
{
	return word >> 32;
}

static __always_inline bool table_translated(__u64 word)
{
	return word >> 31 & 1;
}

static __always_inline __u32 table_slot(__u64 word)
{
	return word & 0x7fffffff;
}

/* Number of set bits. Written out: clang may make a call or a table of the builtin. */
static __always_inline __u32 table_bits(__u64 x)
{
	x -= x >> 1 & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + (x >> 2 & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return x * 0x0101010101010101ULL >> 56;
}

/* Position of the lowest set bit; 64 when there is none. */
static __always_inline __u32 table_lowest(__u64 x)
{
	return table_bits((x & -x) - 1);
}

/* Takes a free slot: its number, or -1 when none was found in the lines looked at: a row of them, then some all over the table, so that
 * a free sixteenth is always found. The hint moves on either way, so that the next claim looks elsewhere. CPUs start far from each
 * other. */
STAGE int table_claim(void)
{
	__u32 zero = 0, lines = cfg.flow_slots / TABLE_LINE_SLOTS, line;
	__u32 *hint = bpf_map_lookup_elem(&flow_hints, &zero);

	if (!hint || !lines)
		return -1;
	line = *hint;
	if (!line)
		line = bpf_get_smp_processor_id() * 2654435769u;
	for (int i = 0; i < TABLE_CLAIM_LINES; i++, line += i < TABLE_CLAIM_LINES / 2 ? 1 : lines / (TABLE_CLAIM_LINES / 2) + 1) {
		line %= lines;
		struct bucket *b = table_line(1 + line);

		if (!b)
			return -1;
		for (int j = 0; j < TABLE_WORDS; j++) {
			__u64 w = READ_ONCE(b->w[j]);
			__u32 bit;

			if (!~w)
				continue;
			bit = table_lowest(~w) & 63;
			if (__sync_val_compare_and_swap(&b->w[j], w, w | 1ULL << bit) != w)
				continue; /* another CPU is here: try the next word */
			*hint = line + lines; /* never 0, the same line */
			return line * TABLE_LINE_SLOTS + j * 64 + bit;
		}
	}
	*hint = line + lines;
	return -1;
}

/* Gives a slot back. Only for a slot that no reader can hold. */
static __always_inline void table_release(__u32 slot)
{
	struct bucket *b = table_line(1 + slot / TABLE_LINE_SLOTS);

	if (b)
		__sync_fetch_and_and(&b->w[slot / 64 % TABLE_WORDS], ~(1ULL << slot % 64));
}

/* Bit j: word j of the bucket is empty. */
static __always_inline __u32 table_empty(const struct bucket *b)
{
	__u32 mask = 0;

#pragma unroll
	for (int j = 0; j < TABLE_WORDS; j++) {
		__u64 word = READ_ONCE(b->w[j]), negative = -word;

		barrier_var(negative); /* as above */
		word = (word | negative) >> 63;
		barrier_var(word);
		mask |= word << j;
	}
	return mask ^ 0xff;
}

/* Puts a word into bucket 0 or 1 of a key: 0, or -1 when it is full. */
STAGE int table_enter(__u64 hash, __u32 choice, __u64 word)
{
	struct bucket *b = table_bucket(hash, choice);
	__u32 empty;

	if (!b)
		return -1;
	empty = table_empty(b);
	for (int j = 0; j < TABLE_WORDS && empty; j++, empty &= empty - 1)
		if (!__sync_val_compare_and_swap(&b->w[table_first(empty)], 0, word))
			return 0;
	return -1;
}

/* Puts a word into one of its key's buckets: 0, or -1 when both are full. The first bucket while it is at most half full, so that
 * most lookups touch one line; else the emptier one, so that hardly any key finds both full. */
STAGE int table_publish(__u64 hash, __u64 word)
{
	struct bucket *first = table_bucket(hash, 0), *second = table_bucket(hash, 1);
	__u32 empty, choice;

	if (!first || !second)
		return -1;
	empty = table_bits(table_empty(first));
	choice = empty < TABLE_WORDS / 2 && empty < table_bits(table_empty(second));
	if (!table_enter(hash, choice, word))
		return 0;
	return table_enter(hash, choice ^ 1, word);
}

/* Takes a word out. It is nowhere else: a word carries its slot's generation. */
STAGE int table_withdraw(__u64 hash, __u64 word)
{
	for (int i = 0; i < 2; i++) {
		struct bucket *b = table_bucket(hash, i);

		if (!b)
			return -1;
		for (int j = 0; j < TABLE_WORDS; j++)
			if (READ_ONCE(b->w[j]) == word && __sync_val_compare_and_swap(&b->w[j], word, 0) == word)
				return 0;
	}
	return -1;
}
