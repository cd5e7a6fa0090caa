/* From the rows of one linear layer to queries, and to keys and values in the cache: norms, clamps and rotary positions. */
#ifndef QUERIES_H
#define QUERIES_H
#include "scores.h"
#include "stream.h"

enum { QUERY = 0, KEY = 1, VALUE = 2 };

INLINE int64_t rows_of_heads(const Attention *a) { return a->heads + 2 * a->kv_heads; }

/* Number of a query head, or of a key or value of a KV head, among the rows of heads in qkv. */
INLINE int64_t row_of_head(const Attention *a, int what, int64_t head) {
    const int64_t group = a->heads / a->kv_heads;
    if (!a->is_grouped) return what == QUERY ? head : a->heads + head + (what == VALUE ? a->kv_heads : 0);
    return what == QUERY ? head / group * (group + 2) + head % group : head * (group + 2) + group + (what == VALUE);
}

/* The moments of a token's queries or keys, all heads together, whose sums are added in their order. */
static Moments moments_over_width(const Norm *n, const Attention *a, const float *rows, int what) {
    const int64_t heads = what == QUERY ? a->heads : a->kv_heads, size = a->size;
    float mean = 0, squares = 0;
    for (int64_t h = 0; h < heads && n->kind == NORM_LAYER; h++) mean += mean_of(rows + row_of_head(a, what, h) * size, size) / (float)heads;
    for (int64_t h = 0; h < heads; h++) squares += sum_of_squares(rows + row_of_head(a, what, h) * size, mean, size);
    return (Moments){mean, factor_of(n, squares, heads * size)};
}

/* A query or key normalised. `width`: the moments of all heads of queries and of keys, used where the norm is over them. */
static void norm_head(const Attention *a, const Moments *width, int what, int64_t head, int is_bf16, float *row) {
    const Norm *n = what == QUERY ? &a->query_norm : &a->key_norm;
    if (n->kind == NORM_NONE) return;
    const Moments moments = a->qk_norm == QK_NORM_WIDTH ? width[what] : moments_of(n, row, a->size);
    apply_norm(n, moments, row, a->qk_norm == QK_NORM_HEAD ? 0 : head * a->size, a->size, is_bf16, row);
}

/* The rotation of a head to a position: each dimension times its cosine, plus its partner times its signed sine. */
static void rotate(const RopeTable *table, int64_t position, int is_adjacent, int is_bf16, int is_rope_float, float *row) {
    const int64_t size = table->size, half = is_adjacent ? 1 : size / 2, step = is_adjacent ? 2 : 1;
    const float *c = table->cosine + position * size, *s = table->signed_sine + position * size;
    const int is_rounded = is_bf16 && !is_rope_float; /* products too */
    for (int64_t n = 0; n < size / 2; n++) {
        const int64_t i = n * step, j = i + half;
        const float a = row[i], b = row[j];
        row[i] = rounded1(rounded1(a * c[i], is_rounded) + rounded1(b * s[i], is_rounded), is_bf16);
        row[j] = rounded1(rounded1(b * c[j], is_rounded) + rounded1(a * s[j], is_rounded), is_bf16);
    }
}

/* Head number `head` of what a token's qkv holds, made ready: as a query, or in the cache of the layer. */
static void prepare_head(Engine *e, const SubLayer *s, const Moments *width, int64_t token, int64_t position, int what, int64_t head) {
    const Attention *a = &s->attention;
    const Model *m = &e->m;
    const int64_t size = a->size;
    const int is_bf16 = m->is_bf16;
    float row[MAX_HEAD_SIZE];
    memcpy(row, e->qkv + (token * rows_of_heads(a) + row_of_head(a, what, head)) * size, size * sizeof(float));
    if (what != VALUE && !a->is_qk_norm_late) norm_head(a, width, what, head, is_bf16, row);
    if (a->clip != 0.f) /* behind the norms: nothing is clamped before them */
        for (int64_t i = 0; i < size; i++) row[i] = row[i] > a->clip ? a->clip : row[i] < -a->clip ? -a->clip : row[i];
    if (what != VALUE && a->rope >= 0) rotate(&m->ropes[a->rope], position, a->is_adjacent, is_bf16, a->is_rope_float, row);
    if (what != VALUE && a->is_qk_norm_late) norm_head(a, width, what, head, is_bf16, row);
    if (what == QUERY) {
        if (a->growth >= 0)
            for (int64_t i = 0; i < size; i++) row[i] = rounded1(row[i] * m->tables[a->growth][position], is_bf16);
        memcpy(e->queries + (token * a->heads + head) * size, row, size * sizeof(float));
        return;
    }
    const int64_t at = ((s->layer * m->kv_heads + head) * m->capacity + position) * size;
    for (int64_t i = 0; i < size; i++) store_any1(what == KEY ? m->keys : m->values, at + i, row[i], is_bf16);
}

/* This thread's heads of all tokens, which follow `start` positions. */
static void prepare_heads(Engine *e, const SubLayer *s, int64_t start, int64_t tokens, int thread, int threads) {
    const Attention *a = &s->attention;
    const int64_t all = rows_of_heads(a);
    Moments width[2] = {{0}};
    int64_t from, to;
    share(tokens * all, thread, threads, &from, &to);
    for (int64_t i = from; i < to; i++) {
        const int64_t n = i % all, token = i / all;
        const float *rows = e->qkv + token * all * a->size;
        const int what = n < a->heads ? QUERY : n < a->heads + a->kv_heads ? KEY : VALUE;
        if (a->qk_norm == QK_NORM_WIDTH && (i == from || n == 0)) {
            width[QUERY] = moments_over_width(&a->query_norm, a, rows, QUERY);
            width[KEY] = moments_over_width(&a->key_norm, a, rows, KEY);
        }
        prepare_head(e, s, width, token, start + token, what, what == QUERY ? n : (n - a->heads) % a->kv_heads);
    }
}
#endif
