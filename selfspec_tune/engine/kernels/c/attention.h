/* Attention over the KV cache, a chunk of positions at a time.
 *
 * Chunks are the same whatever the number of tokens and threads, and are put together in their order.
 */
#ifndef ATTENTION_H
#define ATTENTION_H
#include "queries.h"

/* The first position that the token at `position` sees. */
INLINE int64_t first_seen(const Attention *a, int64_t position) {
    if (a->reach == REACH_WINDOW) return position < a->reach_size ? 0 : position - a->reach_size + 1;
    return a->reach == REACH_CHUNK ? position / a->reach_size * a->reach_size : 0;
}

/* Scores of the keys that follow position `from`: plus what their positions add, and capped. */
static void bend(const Model *m, const Attention *a, int64_t head, int64_t from, int64_t first, int64_t count, float *scores) {
    const float *added = a->bias < 0 ? NULL : m->tables[a->bias] + head * m->capacity;
    for (int64_t j = first / LANES * LANES; j < count; j += LANES) {
        const fv s = load_f(scores + j);
        fv bent = added ? s + load_some(added + from + j, m->capacity - from - j) : s;
        if (a->rounds_scores) bent = rounded(bent, m->is_bf16);
        if (a->cap != 0.f) bent = a->cap * tanh_v(bent / a->cap);
        store_f(scores + j, choose(s == splat(-INFINITY), s, bent));
    }
}

/* The query heads of one KV head against one chunk of positions, for every token that sees any of them. */
INLINE void attend_chunk(Engine *e, const int is_bf16, const SubLayer *s, int64_t start, int64_t tokens, int64_t kv_head, int64_t chunk) {
    const Attention *a = &s->attention;
    const Model *m = &e->m;
    const int64_t size = a->size, group = a->heads / a->kv_heads;
    const int64_t from = chunk * KV_CHUNK, base = ((s->layer * m->kv_heads + kv_head) * m->capacity + from) * size;
    float p[HEADS_AT_ONCE][KV_CHUNK];
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t seen = start + t + 1 - from, skipped = first_seen(a, start + t) - from;
        const int64_t count = seen < KV_CHUNK ? seen : KV_CHUNK, begin = skipped > 0 ? skipped : 0;
        if (begin >= count) continue;
        const int64_t at = begin / LANES * LANES;
        for (int64_t first = 0; first < group; first += HEADS_AT_ONCE) {
            const int64_t heads = group - first < HEADS_AT_ONCE ? group - first : HEADS_AT_ONCE;
            const int64_t head = kv_head * group + first, slot = (chunk * MAX_TOKENS + t) * m->heads + head;
            score(is_bf16, heads, e->queries + (t * a->heads + head) * size, m->keys, base, size, begin, count, a->scale, p);
            if (a->bias >= 0 || a->cap != 0.f)
                for (int64_t h = 0; h < heads; h++) bend(m, a, head + h, from, begin, count, p[h]);
            for (int64_t h = 0; h < heads; h++) e->part_max[slot + h] = exponentiate(p[h] + at, count - at, &e->part_sum[slot + h]);
            weigh_heads(heads, is_bf16, (const float(*)[KV_CHUNK])(p[0] + at), m->values, base + at * size, size, count - at,
                        e->part + slot * m->head_size);
        }
    }
}

/* The chunks that a token sees of one head put together: out [size]. */
static void combine(const Engine *e, const Attention *a, int64_t position, int64_t t, int64_t head, float *out) {
    const int64_t first = first_seen(a, position) / KV_CHUNK, last = position / KV_CHUNK;
    float most = a->sinks ? a->sinks[head] : -INFINITY;
    for (int64_t c = first; c <= last; c++) {
        const float v = e->part_max[(c * MAX_TOKENS + t) * e->m.heads + head];
        most = v > most ? v : most;
    }
    float sum = a->sinks ? expf(a->sinks[head] - most) : 0.f;
    memset(out, 0, a->size * sizeof(float));
    for (int64_t c = first; c <= last; c++) {
        const int64_t slot = (c * MAX_TOKENS + t) * e->m.heads + head;
        const float factor = expf(e->part_max[slot] - most);
        sum += e->part_sum[slot] * factor;
        const float *part = e->part + slot * e->m.head_size;
        for (int64_t d = 0; d < a->size; d++) out[d] += part[d] * factor;
    }
    for (int64_t d = 0; d < a->size; d++) out[d] = rounded1(out[d] / sum, e->m.is_bf16);
}

/* The attended values of all heads, gated and normalised, as the output layer's input. */
static void gather(const Engine *e, const SubLayer *s, int64_t start, int64_t tokens, Input *x) {
    const Attention *a = &s->attention;
    const int64_t width = a->heads * a->size;
    const int is_bf16 = e->m.is_bf16;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t head = 0; head < a->heads; head++)
            combine(e, a, start + t, t, head, x->values + t * width + head * a->size);
    if (s->third.rows)
        for (int64_t k = 0; k < tokens * width; k += LANES) {
            const fv open = rounded(1.f / (1.f + exp_v(-load_some(e->gate + k, tokens * width - k))), is_bf16);
            const fv v = load_some(x->values + k, tokens * width - k);
            store_some(x->values + k, rounded(v * open, is_bf16), tokens * width - k);
        }
    set_normed(e, &s->inner, x->values, tokens, width, x);
}

static void attention(Engine *e, const SubLayer *s, int64_t start, int64_t tokens, int thread, int threads) {
    const Attention *a = &s->attention;
    const Model *m = &e->m;
    Input *x = &e->local[thread];
    int64_t from, to;
    if (s->is_parallel) { /* kept for the MLP, for the stream is added to before that reads it */
        share(tokens * m->hidden, thread, threads, &from, &to);
        memcpy(e->input + from, e->hidden + from, (to - from) * sizeof(float));
    }
    set_normed(e, &s->norm, e->hidden, tokens, m->hidden, x);
    store_rows(e->qkv, s->first.rows, &s->first, x, tokens, m->is_bf16, thread, threads);
    if (s->third.rows) store_rows(e->gate, s->third.rows, &s->third, x, tokens, m->is_bf16, thread, threads);
    barrier(&e->barrier, threads);
    prepare_heads(e, s, start, tokens, thread, threads);
    barrier(&e->barrier, threads);
    const int64_t first = first_seen(a, start) / KV_CHUNK, chunks = (start + tokens - 1) / KV_CHUNK + 1 - first;
    /* In turns: the last chunks, seldom full, come to different threads. */
    for (int64_t i = thread; i < a->kv_heads * chunks; i += threads) {
        if (m->is_bf16) attend_chunk(e, 1, s, start, tokens, i % a->kv_heads, first + i / a->kv_heads);
        else attend_chunk(e, 0, s, start, tokens, i % a->kv_heads, first + i / a->kv_heads);
    }
    barrier(&e->barrier, threads);
    gather(e, s, start, tokens, x);
    finish(e, s, &s->second, x, tokens, thread, threads);
}
#endif
