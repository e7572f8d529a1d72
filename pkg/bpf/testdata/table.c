/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Drives the flow table for tests and for the benchmark, many flows in one run. What to do comes in the packet, so that two CPUs can do
 * different things at once; what came of it goes into `results` and `places`. */
#include "lib/flow.h"

enum form {
	FORM_REVERSED = 1, /* the reply */
	FORM_TRANSLATED = 2, /* after translation */
};

enum shape {
	SHAPE_TRANSLATED = 1, /* xlat differs from orig */
	SHAPE_V6 = 2,
	SHAPE_REVERSED = 4, /* made from the other side */
	SHAPE_OTHER = 8, /* another backend for the same orig */
	SHAPE_SNAT = 16, /* every job translates its own clients to the same addresses and ports */
};

struct job {
	__u32 id; /* 0 or 1: result, turn and, with SHAPE_SNAT, the clients */
	__u32 first; /* number of the first flow */
	__u32 count; /* of flows, or of steps */
	enum shape shape;
	enum form form;
	__u32 flows; /* random flows: first to first + flows */
	__u8 proto;
	__u8 tcp_flags;
	__u8 pad[2];
	__u32 slot;
	__u32 generation;
};

struct result {
	__u64 ok; /* made, found, removed */
	__u64 wrong; /* facts, direction or flow are not what they must be */
	__u64 missed; /* not found */
	__u64 refused[DROP_REASON_MAX]; /* by flow_create */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct result);
} results SEC(".maps");

/* {1:1, dir:8, generation:16, slot:32} of the flow that job `id` got at step `i` of a race: index 65536 * id + i. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} places SEC(".maps");

/* How far each side of a race is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64[8]); /* a cache line each */
} turns SEC(".maps");

/* The usual way, to compare with: one kernel hash, the record as its value. */
struct plain {
	__u64 word;
	__u32 seen[2];
	__u64 facts[14];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct tuple);
	__type(value, struct plain);
} plain SEC(".maps");

struct run {
	struct job job;
	struct result *result;
	__u64 x;
	__u64 found;
};

static __always_inline bool start(struct __sk_buff *skb, struct run *r)
{
	if (bpf_skb_load_bytes(skb, 0, &r->job, sizeof(r->job)) < 0)
		return false;
	r->result = bpf_map_lookup_elem(&results, &r->job.id);
	r->x = 88172645463325252ULL;
	r->found = 0;
	return r->result;
}

static __always_inline struct addr address(__u32 shape, __u32 net, __u32 host)
{
	if (shape & SHAPE_V6)
		return (struct addr){ .words = { bpf_htonl(0xfd000000 | net), 0, 0, bpf_htonl(host) } };
	return addr_from_v4(bpf_htonl(net << 24 | host));
}

/* Flow number i before and after translation. */
static __always_inline void tuples(const struct job *j, __u32 i, struct tuple *orig, struct tuple *xlat)
{
	__builtin_memset(orig, 0, sizeof(*orig));
	orig->src = address(j->shape, 10, i >> 14);
	orig->dst = address(j->shape, 11, i & 0xffff);
	orig->src_port = bpf_htons(30000 + (i & 0x3fff));
	orig->dst_port = bpf_htons(80);
	orig->proto = j->proto;
	*xlat = *orig;
	if (j->shape & SHAPE_TRANSLATED) {
		xlat->dst = address(j->shape, 12 + !!(j->shape & SHAPE_OTHER), i * 7 & 0xffff);
		xlat->dst_port = bpf_htons(8080);
	}
	if (j->shape & SHAPE_SNAT) {
		orig->src = address(j->shape, 20 + j->id, i >> 14);
		xlat->src = address(j->shape, 9, i >> 14);
	}
}

static __always_inline void flow_number(const struct job *j, __u32 i, struct flow_new *n)
{
	tuples(j, i, &n->orig, &n->xlat);
	if (j->shape & SHAPE_REVERSED) {
		struct tuple back;

		tuple_reverse(&back, &n->orig);
		n->orig = back;
		n->xlat = back;
	}
	n->fwd_kind = TARGET_PEER;
	n->rev_kind = TARGET_ENDPOINT;
	n->fwd = (struct target){ i, i + 1 };
	n->rev = (struct target){ i + 2, i + 3 };
	n->service = i;
	n->service_incarnation = i + 4;
	n->backend = i + 5;
	n->backend_incarnation = i + 6;
}

/* The facts are those of flow i, whoever made it, and all of one writing. */
static __always_inline bool right(const struct flow *f, __u32 i)
{
	return f->service == i && f->fwd.id == i && f->fwd.incarnation == i + 1 && f->rev.id == i + 2 && f->rev.incarnation == i + 3 &&
	       f->service_incarnation == i + 4 && f->backend == i + 5 && f->backend_incarnation == i + 6;
}

/* On a stack of its own: 512 bytes are for all frames of a call. */
static __noinline bool find(const struct job *j, __u32 i, __u32 form, struct flow_hit *hit)
{
	struct tuple orig, t;

	tuples(j, i, &orig, &t);
	if (!(form & FORM_TRANSLATED))
		t = orig;
	if (!(form & FORM_REVERSED))
		return flow_find(&t, hit);
	tuple_reverse(&orig, &t);
	return flow_find(&orig, hit);
}

static __always_inline void refused(struct run *r, int err)
{
	__u64 reason = -(__s64)err;

	barrier_var(reason); /* 6.1 knows nothing of a negated register of 32 bits */
	if (reason < DROP_REASON_MAX)
		r->result->refused[reason]++;
}

static long create_one(__u32 i, struct run *r)
{
	struct flow_new n = {};
	struct flow_hit hit = {};
	int err;

	flow_number(&r->job, r->job.first + i, &n);
	err = flow_create(&n, &hit);
	if (err) {
		refused(r, err);
		return 0;
	}
	if (r->job.tcp_flags)
		flow_seen(&hit, r->job.tcp_flags);
	if (!right(hit.flow, r->job.first + i))
		r->result->wrong++;
	r->result->ok++;
	return 0;
}

SEC("tc")
int t_create(struct __sk_buff *skb)
{
	struct run r;

	if (!start(skb, &r))
		return -1;
	bpf_loop(r.job.count, create_one, &r, 0);
	return 0;
}

static long find_one(__u32 i, struct run *r)
{
	__u32 number = r->job.first + i, form = r->job.form;
	bool split = r->job.shape & (SHAPE_TRANSLATED | SHAPE_SNAT);
	struct flow_hit hit = {};

	if (!find(&r->job, number, form, &hit)) {
		r->result->missed++;
		return 0;
	}
	if (!right(hit.flow, number) || !flow_still(&hit) || hit.dir != (form & FORM_REVERSED ? FLOW_REPLY : FLOW_FORWARD) ||
	    hit.translated != (split && form & FORM_TRANSLATED))
		r->result->wrong++;
	r->result->ok++;
	return 0;
}

SEC("tc")
int t_find(struct __sk_buff *skb)
{
	struct run r;

	if (!start(skb, &r))
		return -1;
	bpf_loop(r.job.count, find_one, &r, 0);
	return 0;
}

static long remove_one(__u32 i, struct run *r)
{
	struct flow_hit hit = {};

	if (!find(&r->job, r->job.first + i, r->job.form, &hit))
		r->result->missed++;
	else if (flow_remove(&hit))
		r->result->ok++;
	else
		r->result->wrong++;
	return 0;
}

SEC("tc")
int t_remove(struct __sk_buff *skb)
{
	struct run r;

	if (!start(skb, &r))
		return -1;
	bpf_loop(r.job.count, remove_one, &r, 0);
	return 0;
}

static __noinline int churn_create(struct run *r, __u32 number)
{
	struct flow_new n = {};
	struct flow_hit hit = {};
	int err;

	flow_number(&r->job, number, &n);
	err = flow_create(&n, &hit);
	if (err)
		refused(r, err);
	else if (!right(hit.flow, number))
		r->result->wrong++;
	return err;
}

/* A packet of a random flow in a random form: find or make it, check every fact, end one in eight. */
static long churn_one(__u32 i, struct run *r)
{
	__u32 dice = bpf_get_prandom_u32(), number = r->job.first + bpf_get_prandom_u32() % r->job.flows;
	struct flow_hit hit = {};

	if (!find(&r->job, number, dice & (FORM_REVERSED | FORM_TRANSLATED), &hit)) {
		r->result->missed++;
		churn_create(r, number);
		return 0;
	}
	if (!right(hit.flow, number) || !flow_still(&hit))
		r->result->wrong++;
	flow_seen(&hit, FLOW_TCP_ACK);
	r->result->ok++;
	if ((dice >> 8) % 8 == 0)
		flow_remove(&hit);
	return 0;
}

SEC("tc")
int t_churn(struct __sk_buff *skb)
{
	struct run r;

	if (!start(skb, &r) || !r.job.flows)
		return -1;
	bpf_loop(r.job.count, churn_one, &r, 0);
	return 0;
}

struct wait {
	__u64 until;
	__u32 other;
	bool met;
};

static long wait_one(__u32 i, struct wait *w)
{
	__u64 *turn = bpf_map_lookup_elem(&turns, &w->other);

	w->met = !turn || READ_ONCE(*turn) >= w->until;
	return w->met;
}

/* Both CPUs make the flow of step i at the same moment. */
static long race_one(__u32 i, struct run *r)
{
	struct wait w = { .until = i + 1, .other = !r->job.id };
	__u64 *turn = bpf_map_lookup_elem(&turns, &r->job.id), *place;
	struct flow_new n = {};
	struct flow_hit hit = {};
	__u32 at = 65536 * r->job.id + i;
	int err;

	place = bpf_map_lookup_elem(&places, &at);
	if (!turn || !place)
		return 1;
	flow_number(&r->job, r->job.first + i, &n);
	__sync_fetch_and_add(turn, 1);
	bpf_loop(1 << 22, wait_one, &w, 0);
	if (!w.met) {
		r->result->missed++;
		return 1;
	}
	err = flow_create(&n, &hit);
	if (err) {
		refused(r, err);
		return 0;
	}
	r->result->ok++;
	*place = 1ULL << 63 | (__u64)hit.dir << 48 | (__u64)hit.generation << 32 | hit.slot;
	return 0;
}

SEC("tc")
int t_race(struct __sk_buff *skb)
{
	struct run r;

	if (!start(skb, &r))
		return -1;
	bpf_loop(r.job.count, race_one, &r, 0);
	return 0;
}

/* A packet of flow `first`: 1, or 2 when flow_over() says that it starts another connection; 0 without a flow. */
SEC("tc")
int t_seen(struct __sk_buff *skb)
{
	struct flow_hit hit = {};
	struct run r;
	int over;

	if (!start(skb, &r) || !find(&r.job, r.job.first, r.job.form, &hit))
		return 0;
	over = flow_over(&hit, r.job.tcp_flags);
	flow_seen(&hit, r.job.tcp_flags);
	return 1 + over;
}

/* Somebody holds a hit from long ago. */
SEC("tc")
int t_still(struct __sk_buff *skb)
{
	struct flow_hit hit = {};
	struct run r;

	if (!start(skb, &r))
		return -1;
	hit.slot = r.job.slot;
	hit.generation = r.job.generation;
	hit.flow = flow_at(hit.slot);
	if (!hit.flow)
		return -1;
	return flow_still(&hit) | (flow_remove(&hit) ? 2 : 0);
}

/* A flow at random. The number depends on what the last one gave, so that misses do not overlap. */
static __always_inline __u32 next(struct run *r)
{
	r->x = r->x * 6364136223846793005ULL + 1442695040888963407ULL;
	return r->job.first + ((r->x >> 33) * r->job.flows >> 31);
}

static long base_one(__u32 i, struct run *r)
{
	struct tuple orig, xlat;

	tuples(&r->job, next(r), &orig, &xlat);
	r->x += orig.src.words[3] == 7 && orig.src_port == 7;
	return 0;
}

static long table_one(__u32 i, struct run *r)
{
	struct tuple orig, xlat;
	struct flow_hit hit;

	tuples(&r->job, next(r), &orig, &xlat);
	if (flow_find(&orig, &hit)) {
		r->found++;
		r->x += hit.flow->fwd_kind - TARGET_PEER;
	}
	return 0;
}

static long seen_one(__u32 i, struct run *r)
{
	struct tuple orig, xlat;
	struct flow_hit hit;

	tuples(&r->job, next(r), &orig, &xlat);
	if (flow_find(&orig, &hit)) {
		r->found++;
		r->x += hit.flow->fwd_kind - TARGET_PEER;
		flow_seen(&hit, FLOW_TCP_ACK);
	}
	return 0;
}

static long plain_one(__u32 i, struct run *r)
{
	struct tuple orig, xlat;
	struct plain *v;

	tuples(&r->job, next(r), &orig, &xlat);
	v = bpf_map_lookup_elem(&plain, &orig);
	if (v) {
		r->found++;
		r->x += v->word - 1;
	}
	return 0;
}

static long put_one(__u32 i, struct run *r)
{
	struct tuple orig, xlat;
	struct plain v = { .word = 1 };

	tuples(&r->job, r->job.first + i, &orig, &xlat);
	r->found += !bpf_map_update_elem(&plain, &orig, &v, BPF_NOEXIST);
	return 0;
}

static long delete_one(__u32 i, struct run *r)
{
	struct tuple orig, xlat;

	tuples(&r->job, r->job.first + i, &orig, &xlat);
	r->found += !bpf_map_delete_elem(&plain, &orig);
	return 0;
}

static __always_inline int bench(struct __sk_buff *skb, void *one)
{
	struct run r;

	if (!start(skb, &r))
		return -1;
	bpf_loop(r.job.count, one, &r, 0);
	r.result->ok += r.found;
	return 0;
}

SEC("tc")
int b_base(struct __sk_buff *skb)
{
	return bench(skb, base_one);
}

SEC("tc")
int b_table(struct __sk_buff *skb)
{
	return bench(skb, table_one);
}

SEC("tc")
int b_seen(struct __sk_buff *skb)
{
	return bench(skb, seen_one);
}

SEC("tc")
int b_plain(struct __sk_buff *skb)
{
	return bench(skb, plain_one);
}

SEC("tc")
int b_put(struct __sk_buff *skb)
{
	return bench(skb, put_one);
}

SEC("tc")
int b_delete(struct __sk_buff *skb)
{
	return bench(skb, delete_one);
}

char _license[] SEC("license") = "Dual BSD/GPL";
