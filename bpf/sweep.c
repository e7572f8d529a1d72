/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Ends idle flows and frees their slots, by a timer in the kernel. The rule is in lib/flow.h.
 *
 * A pass walks the bitmap of slots word by word, and the slots of each word that is not 0, in bounded slices. Between passes it rests;
 * under pressure it does not. */
#include "lib/config.h"
#include "lib/drop.h"
#include "lib/flow.h"
#include "lib/stale.h"
#include "lib/sweep.h"
#include "lib/table.h"

enum sweep_pace {
	SWEEP_STEPS = 8192, /* words and slots that one tick looks at: some 100 microseconds when all lines are cold */
	SWEEP_SLICE_NS = 10 * 1000 * 1000, /* from one slice to the next of a pass */
	SWEEP_REST_NS = 250 * 1000 * 1000, /* from one pass to the next */
};

enum sweep_clock {
	SWEEP_CLOCK_MONOTONIC = 1,
	SWEEP_EBUSY = 16,
};

/* By enum flow_phase. */
static const struct {
	__u32 limit; /* seconds */
	__u32 least; /* seconds, under pressure */
	bool kept; /* a flood cannot make it */
} phases[FLOW_PHASE_MAX] = {
	[FLOW_HALF_OPEN] = { FLOW_TIMEOUT_HALF_OPEN, FLOW_TIMEOUT_LEAST, false },
	[FLOW_ESTABLISHED] = { FLOW_TIMEOUT_ESTABLISHED, FLOW_TIMEOUT_LEAST_KEPT, true },
	[FLOW_CLOSING] = { FLOW_TIMEOUT_CLOSING, FLOW_TIMEOUT_LEAST_KEPT, true },
	[FLOW_CLOSED] = { FLOW_TIMEOUT_CLOSED, FLOW_TIMEOUT_LEAST, false },
	[FLOW_UNREPLIED] = { FLOW_TIMEOUT_UNREPLIED, FLOW_TIMEOUT_LEAST, false },
	[FLOW_REPLIED] = { FLOW_TIMEOUT_REPLIED, FLOW_TIMEOUT_LEAST_KEPT, true },
	[FLOW_ECHO] = { FLOW_TIMEOUT_ECHO, FLOW_TIMEOUT_LEAST, false },
};

struct slice {
	__u64 bits; /* slots of this word still to look at */
	__u32 word; /* of the bitmap */
	__u32 now;
	__u32 left; /* how much of the last quarter is free, in 1/256: shrinks limits */
	__u32 left_kept; /* the same, if only kept flows counted */
	__u32 used;
	__u32 kept;
	__u32 dying;
};

/* Seconds since b; 0 when b is a moment ahead, as another CPU may have it. */
static __always_inline __u32 since(__u32 now, __u32 b)
{
	return (__s32)(now - b) < 0 ? 0 : now - b;
}

static __always_inline __u32 idle(const struct flow *f, __u32 now)
{
	__u32 forward = since(now, READ_ONCE(f->seen[FLOW_FORWARD])), back = READ_ONCE(f->seen[FLOW_REPLY]);

	if (!back)
		return forward;
	back = since(now, back);
	return back < forward ? back : forward;
}

static __always_inline __u32 quarter_left(__u32 used)
{
	__u32 quarter = cfg.flow_slots / 4;

	if (!quarter || used <= cfg.flow_slots - quarter)
		return 256;
	return used >= cfg.flow_slots ? 0 : (__u64)(cfg.flow_slots - used) * 256 / quarter;
}

static __always_inline void sweep_slot(struct slice *s, __u32 slot)
{
	struct flow *f = flow_at(slot);
	__u32 limit, shrunk, left, quiet;
	enum flow_phase phase;
	__u64 word;

	if (!f)
		return;
	word = READ_ONCE(f->word);
	if (flow_state(word) == FLOW_DYING) {
		if (since(s->now, (__u32)word) < FLOW_GRACE) {
			s->dying++;
			return;
		}
		WRITE_ONCE(f->word, flow_word(flow_generation(word), FLOW_FREE, 0, 0)); /* nobody else changes a dying word */
		table_release(slot);
		s->used--;
		return;
	}
	if (flow_state(word) != FLOW_LIVE)
		return;
	phase = flow_phase(f, word);
	if (phase >= FLOW_PHASE_MAX)
		return;
	left = phases[phase].kept ? s->left_kept : s->left;
	limit = phases[phase].limit;
	shrunk = (__u64)limit * left * left >> 16;
	if (shrunk < phases[phase].least)
		shrunk = phases[phase].least;
	quiet = idle(f, s->now);
	if (quiet >= shrunk && !flow_end(slot, word)) {
		count(quiet >= limit ? COUNT_FLOW_EXPIRED : COUNT_FLOW_PRESSED);
		s->dying++;
		return;
	}
	s->kept += phases[phase].kept;
}

/* One step: the next word, or the next slot of this one. */
static long sweep_step(__u32 i, struct slice *s)
{
	__u32 bit;

	if (!s->bits) {
		struct bucket *b;

		if (s->word >= cfg.flow_slots / 64)
			return 1;
		b = table_line(1 + s->word / TABLE_WORDS);
		if (!b)
			return 1;
		s->bits = READ_ONCE(b->w[s->word % TABLE_WORDS]);
		s->used += table_bits(s->bits);
		s->word++;
		return 0;
	}
	bit = table_lowest(s->bits) & 63;
	s->bits &= s->bits - 1;
	sweep_slot(s, (s->word - 1) * 64 + bit);
	return 0;
}

static int sweep_tick(void *map, __u32 *key, struct sweep *t)
{
	__u32 used = t->used > t->last_used ? t->used : t->last_used;
	__u32 kept = t->kept > t->last_kept ? t->kept : t->last_kept;
	struct slice s = {
		.bits = t->bits,
		.word = t->word,
		.now = flow_now(),
		.left = quarter_left(used),
		.left_kept = quarter_left(kept),
		.used = t->used,
		.kept = t->kept,
		.dying = t->dying,
	};
	__u64 next = SWEEP_SLICE_NS;

	bpf_loop(SWEEP_STEPS, sweep_step, &s, 0);
	t->bits = s.bits;
	t->word = s.word;
	t->used = s.used;
	t->kept = s.kept;
	t->dying = s.dying;
	if (!s.bits && s.word >= cfg.flow_slots / 64) {
		if (quarter_left(s.used) == 256)
			next = SWEEP_REST_NS;
		t->last_used = s.used;
		t->last_kept = s.kept;
		t->last_dying = s.dying;
		t->word = 0;
		t->used = 0;
		t->kept = 0;
		t->dying = 0;
		t->passes++;
	}
	t->ticked = bpf_ktime_get_ns();
	bpf_timer_start(&t->timer, next, 0);
	return 0;
}

/* Run once by each agent. 0, or a negative errno. */
SEC("tc")
int sweep_arm(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct sweep *t = bpf_map_lookup_elem(&sweep_timer, &zero);
	long err;

	if (!t)
		return -1;
	err = bpf_timer_init(&t->timer, &sweep_timer, SWEEP_CLOCK_MONOTONIC);
	if (err && err != -SWEEP_EBUSY) /* it runs already, with another agent's program */
		return err;
	err = bpf_timer_set_callback(&t->timer, sweep_tick);
	if (err)
		return err;
	return bpf_timer_start(&t->timer, SWEEP_SLICE_NS, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
