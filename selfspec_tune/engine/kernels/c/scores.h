/* Queries against a chunk of the KV cache: scores, exponentials, and values weighed by them. */
#ifndef SCORES_H
#define SCORES_H
#include "vector.h"

#define KV_CHUNK 128   /* positions whose attention is summed before chunks are combined */
#define MAX_HEAD_SIZE 512
#define HEADS_AT_ONCE 8 /* query heads of one KV head */
#define MAX_DOTTED_HEAD 256 /* largest size of a head whose keys are multiplied in bfloat16 */
/* Most heads, and vectors of their columns, that share each load of a value: their sums fit the registers. */
#define WEIGHED_HEADS 6
#if REGISTERS == 32
#define WEIGHED_VECTORS 4
#else
#define WEIGHED_VECTORS 2
#endif

/* The last `count` < LANES numbers, padded with zeros. */
INLINE fv load_last(const void *p, int64_t at, int64_t count, int is_bf16) {
    float numbers[LANES] = {0};
    for (int64_t i = 0; i < count; i++) numbers[i] = load_any1(p, at + i, is_bf16);
    return load_f(numbers);
}

/* `heads` queries [heads][size] times LANES keys [LANES][size] that they share; sums lane by lane: out[head][key].
 * Of the keys only `count` are there; the last stands for those past it. */
INLINE void dot_keys(const int is_bf16, const int heads, const float *q, const void *keys, int64_t base, int64_t size, int64_t count,
                     fv (*out)[LANES]) {
    for (int i = 0; i < LANES; i++) {
        const int64_t at = base + (i < count ? i : count - 1) * size;
        fv sum[HEADS_AT_ONCE];
        UNROLL for (int h = 0; h < heads; h++) sum[h] = splat(0.f);
        int64_t d = 0;
        for (; d + LANES <= size; d += LANES) {
            const fv key = load_any(keys, at + d, is_bf16);
            UNROLL for (int h = 0; h < heads; h++) sum[h] = add_product(sum[h], key, load_f(q + h * size + d));
        }
        if (d < size) {
            const fv key = load_last(keys, at + d, size - d, is_bf16);
            UNROLL for (int h = 0; h < heads; h++) sum[h] = add_product(sum[h], key, load_last(q, h * size + d, size - d, 0));
        }
        UNROLL for (int h = 0; h < heads; h++) out[h][i] = sum[h];
    }
}

#if HAVE_DOT_BF16
/* Vectors that hold a head, the last padded with zeros. */
INLINE int64_t dot_steps(int64_t size) { return (size + 2 * LANES - 1) / (2 * LANES); }

/* The same for bfloat16 queries [heads][dot_steps(size) vectors]. */
INLINE void dot_keys_bf16(const int size, int64_t heads, const uint16_t *q, const uint16_t *keys, int64_t count, fv (*out)[LANES]) {
    const int steps = (int)dot_steps(size), whole = size / (2 * LANES);
    for (int i = 0; i < LANES; i++) {
        const uint16_t *key = keys + (i < count ? i : count - 1) * size;
        dot_vector k[MAX_DOTTED_HEAD / (2 * LANES)];
        UNROLL for (int s = 0; s < whole; s++) k[s] = load_dot(key + s * 2 * LANES);
        if (steps > whole) k[whole] = load_some_dot(key + whole * 2 * LANES, size % (2 * LANES));
        for (int64_t h = 0; h < heads; h++) {
            fv sum = splat(0.f);
            UNROLL for (int s = 0; s < steps; s++) sum = add_dot(sum, k[s], load_dot(q + (h * steps + s) * 2 * LANES));
            out[h][i] = sum;
        }
    }
}

INLINE int is_dotted_head(int64_t size) {
    switch (size) {
    case 32: case 64: case 80: case 96: case 112: case 128: case 160: case 192: case 256: return 1;
    default: return 0;
    }
}
#endif

/* Scores of `heads` queries [heads][size] against the keys from `first` to `count`, LANES at a time, the first of them at a
 * multiple of LANES; those of keys beside these are minus infinity. */
INLINE void score(const int is_bf16, int64_t heads, const float *q, const void *keys, int64_t base, int64_t size, int64_t first,
                  int64_t count, float scale, float (*scores)[KV_CHUNK]) {
    const iv lane = lane_numbers();
    fv sums[HEADS_AT_ONCE][LANES];
#if HAVE_DOT_BF16
    uint16_t narrowed[HEADS_AT_ONCE * MAX_HEAD_SIZE]; /* exact: queries are rounded to the model's type already */
    const int is_dotted = is_bf16 && is_dotted_head(size);
    if (is_dotted) {
        const int64_t stride = dot_steps(size) * 2 * LANES;
        for (int64_t h = 0; h < heads; h++)
            for (int64_t d = 0; d < stride; d++) narrowed[h * stride + d] = d < size ? narrow1(q[h * size + d]) : 0;
    }
#endif
    for (int64_t j = first / LANES * LANES; j < count; j += LANES) {
        const int64_t at = base + j * size, left = count - j;
#if HAVE_DOT_BF16
#define DOTTED_CASE(size) case size: dot_keys_bf16(size, heads, narrowed, (const uint16_t *)keys + at, left, sums); break;
        if (is_dotted) {
            switch (size) {
                DOTTED_CASE(32) DOTTED_CASE(64) DOTTED_CASE(80) DOTTED_CASE(96) DOTTED_CASE(112)
                DOTTED_CASE(128) DOTTED_CASE(160) DOTTED_CASE(192) DOTTED_CASE(256)
            }
        } else
#endif
#define KEYS_CASE(heads) case heads: dot_keys(is_bf16, heads, q, keys, at, size, left, sums); break;
        switch (heads) {
            KEYS_CASE(1) KEYS_CASE(2) KEYS_CASE(3) KEYS_CASE(4) KEYS_CASE(5) KEYS_CASE(6) KEYS_CASE(7) KEYS_CASE(8)
        }
        const iv there = (lane < splat_i((int32_t)left)) & (lane >= splat_i((int32_t)(first - j)));
        for (int64_t h = 0; h < heads; h++)
            store_f(scores[h] + j, choose(there, sums_of(sums[h]) * scale, splat(-INFINITY)));
    }
}

/* Scores to exp(score - highest); returns the highest, and their sum. */
INLINE float exponentiate(float *scores, int64_t count, float *sum) {
    fv highest = splat(-INFINITY), total = splat(0.f);
    for (int64_t j = 0; j < count; j += LANES) {
        const fv s = load_f(scores + j);
        highest = choose(s > highest, s, highest);
    }
    float most = highest[0];
    for (int i = 1; i < LANES; i++) most = highest[i] > most ? highest[i] : most;
    for (int64_t j = 0; j < count; j += LANES) {
        const fv s = load_f(scores + j);
        const fv p = choose(s == splat(-INFINITY), splat(0.f), exp_v(s - most));
        store_f(scores + j, p);
        total += p;
    }
    *sum = sum_of(total);
    return most;
}

/* `vectors` times LANES columns of `weigh`. */
INLINE void weigh_lanes(const int heads, const int vectors, const int is_bf16, const float (*p)[KV_CHUNK], const void *values, int64_t base,
                        int64_t size, int64_t count, float *out) {
    fv sum[WEIGHED_HEADS][WEIGHED_VECTORS];
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int i = 0; i < vectors; i++) sum[h][i] = splat(0.f);
    for (int64_t j = 0; j < count; j++) {
        fv v[WEIGHED_VECTORS];
        UNROLL for (int i = 0; i < vectors; i++) v[i] = load_any(values, base + j * size + i * LANES, is_bf16);
        UNROLL for (int h = 0; h < heads; h++)
            UNROLL for (int i = 0; i < vectors; i++) sum[h][i] = add_product(sum[h][i], splat(p[h][j]), v[i]);
    }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int i = 0; i < vectors; i++) store_f(out + h * size + i * LANES, sum[h][i]);
}

/* out[head] = probabilities[head] x values, for `heads` query heads that share the values. */
INLINE void weigh(const int heads, const int is_bf16, const float (*p)[KV_CHUNK], const void *values, int64_t base, int64_t size,
                  int64_t count, float *out) {
    const int64_t many = WEIGHED_VECTORS * LANES;
    int64_t d = 0;
    for (; d + many <= size; d += many) weigh_lanes(heads, WEIGHED_VECTORS, is_bf16, p, values, base + d, size, count, out + d);
    for (; d + LANES <= size; d += LANES) weigh_lanes(heads, 1, is_bf16, p, values, base + d, size, count, out + d);
    for (; d < size; d++)
        for (int h = 0; h < heads; h++) {
            float sum = 0;
            for (int64_t j = 0; j < count; j++) sum += p[h][j] * load_any1(values, base + j * size + d, is_bf16);
            out[h * size + d] = sum;
        }
}

/* The same for any number of heads up to HEADS_AT_ONCE. */
INLINE void weigh_heads(int64_t heads, const int is_bf16, const float (*p)[KV_CHUNK], const void *values, int64_t base, int64_t size,
                        int64_t count, float *out) {
#define WEIGH_CASE(heads) case heads: weigh(heads, is_bf16, p + h, values, base, size, count, out + h * size); break;
    for (int64_t h = 0; h < heads;) {
        const int64_t left = heads - h, taken = left > WEIGHED_HEADS ? 4 : left;
        switch (taken) {
            WEIGH_CASE(1) WEIGH_CASE(2) WEIGH_CASE(3) WEIGH_CASE(4) WEIGH_CASE(5) WEIGH_CASE(6)
        }
        h += taken;
    }
}
#endif
