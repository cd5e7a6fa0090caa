/* Linear layers of int4 weights.
 *
 * Tiles of UNIT rows; per GROUP inputs 16 bfloat16 scales, 16 centres where there are any, then 4 x 16 words of 8
 * nibbles: word r of quarter q holds inputs 8q … 8q+7 of row r, even ones in its low half.
 */
#ifndef INT4_H
#define INT4_H
#include "inputs.h"

#define INT4_PREFETCH 8192 /* bytes that the memory is asked for ahead of their use */
#define SCALE_BYTES (2 * UNIT)        /* of the scales, or the centres, of one group of a tile */
#define CODE_BYTES (UNIT * GROUP / 2) /* of its codes */
#define HAVE_INT4_DOT (HAVE_DOT_BF16 && LANES == 16)
#if REGISTERS == 32
#define INT4_TOKENS 5 /* at most, that share each load of a weight: their sums fit the registers */
#else
#define INT4_TOKENS 3
#endif

/* The 16 levels of an int4 weight without a centre, in units of its group's greatest weight.
 * Lloyd's algorithm on weights of a 1.5B model, each group of 32 divided by its extreme. */
static const float CODEBOOK[16] = {-0.87890625f, -0.69140625f, -0.5390625f, -0.41015625f, -0.298828125f, -0.1982421875f,
                                   -0.10693359375f, -0.019775390625f, 0.06689453125f, 0.15625f, 0.251953125f, 0.357421875f,
                                   0.4765625f, 0.6171875f, 0.78515625f, 1.f};

INLINE float level_of(int has_centre, int code) { return has_centre ? (float)(code - 8) : CODEBOOK[code]; }
INLINE int64_t group_bytes(const Linear *l) { return CODE_BYTES + (l->has_centre ? 2 : 1) * SCALE_BYTES; }

/* The levels as a kernel looks them up; each is a bfloat16 value. */
#if HAVE_INT4_DOT
typedef __m512i Levels;
INLINE Levels levels_of(int has_centre) {
    uint16_t values[32]; /* twice over: a permutation reads five bits, and the fifth is another code's */
    for (int i = 0; i < 32; i++) values[i] = narrow1(level_of(has_centre, i % 16));
    return _mm512_loadu_si512(values);
}
#elif LANES == 16
typedef fv Levels;
INLINE Levels levels_of(int has_centre) {
    fv levels;
    for (int i = 0; i < 16; i++) levels[i] = level_of(has_centre, i);
    return levels;
}
#else
typedef struct {
    wide_bytes low, high;
} Levels;
INLINE Levels levels_of(int has_centre) {
    uint8_t low[16], high[16];
    for (int i = 0; i < 16; i++) {
        const uint16_t bits = narrow1(level_of(has_centre, i));
        low[i] = (uint8_t)bits;
        high[i] = (uint8_t)(bits >> 8);
    }
    return (Levels){byte_table(low), byte_table(high)};
}
/* Adds the products of four of a quarter's inputs, x and the four after them (`step` apart), to the sums of LANES rows,
 * half of whose sums lie in each vector, two lanes a row. */
INLINE void add_nibbles(Levels levels, wide_bytes index, const int tokens, const float *x, int64_t stride, fv sum[][2]) {
    const wide_bytes low = look_up_bytes(levels.low, index), high = look_up_bytes(levels.high, index);
    const uv first = zip_low(low, high), second = zip_high(low, high);
    const fv even[2] = {widen_even(first), widen_even(second)}, odd[2] = {widen_odd(first), widen_odd(second)};
    UNROLL for (int t = 0; t < tokens; t++) {
        const fv two = splat_pair(x + t * stride), next = splat_pair(x + t * stride + 4);
        UNROLL for (int half = 0; half < 2; half++)
            sum[t][half] = add_product(add_product(sum[t][half], even[half], two), odd[half], next);
    }
}
#endif

/* The products of one group's levels and inputs: sum[t][part]. inputs: the first token's. */
INLINE void dot_group(Levels levels, const uint8_t *nibbles, const int count, const void *inputs, int64_t stride, fv sum[][PARTS]) {
#if HAVE_INT4_DOT
    __m512 sums[INT4_TOKENS][2];
    UNROLL for (int t = 0; t < count; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    for (int q = 0; q < 4; q++) {
        const __m512i w = _mm512_loadu_si512(nibbles + 64 * q);
        UNROLL for (int s = 0; s < 4; s++) {
            const __m512bh two = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(w, 4 * s), levels);
            UNROLL for (int t = 0; t < count; t++) {
                int32_t both;
                memcpy(&both, (const uint16_t *)inputs + t * stride + 8 * q + 2 * s, sizeof both);
                sums[t][s % 2] = _mm512_dpbf16_ps(sums[t][s % 2], two, (__m512bh)_mm512_set1_epi32(both));
            }
        }
    }
    UNROLL for (int t = 0; t < count; t++) sum[t][0] = (fv)_mm512_add_ps(sums[t][0], sums[t][1]);
#elif LANES == 16
    UNROLL for (int t = 0; t < count; t++) sum[t][0] = splat(0.f);
    for (int q = 0; q < 4; q++) {
        uv w;
        memcpy(&w, nibbles + 64 * q, sizeof w);
        UNROLL for (int s = 0; s < 4; s++) {
            const fv low = look_up(levels, (iv)(w >> (4 * s))), high = look_up(levels, (iv)(w >> (16 + 4 * s)));
            UNROLL for (int t = 0; t < count; t++) {
                const float *x = (const float *)inputs + t * stride + 8 * q + 2 * s;
                sum[t][0] = add_product(add_product(sum[t][0], low, splat(x[0])), high, splat(x[1]));
            }
        }
    }
#else
    UNROLL for (int part = 0; part < PARTS; part++) {
        fv halves[INT4_TOKENS][2];
        UNROLL for (int t = 0; t < count; t++) halves[t][0] = halves[t][1] = splat(0.f);
        UNROLL for (int q = 0; q < 4; q++) {
            uv w;
            memcpy(&w, nibbles + 64 * q + 4 * LANES * part, sizeof w);
            const float *x = (const float *)inputs + 8 * q;
            add_nibbles(levels, (wide_bytes)(w & 0x0f0f0f0fu), count, x, stride, halves);
            add_nibbles(levels, (wide_bytes)((w >> 4) & 0x0f0f0f0fu), count, x + 2, stride, halves);
        }
        UNROLL for (int t = 0; t < count; t++) sum[t][part] = FOLD(halves[t][0], halves[t][1], LOW1, HIGH1);
    }
#endif
}

INLINE void dot_int4(const int has_centre, const int count, const Linear *l, int64_t unit, const Input *x, int64_t first,
                     fv out[][PARTS]) {
    const int64_t groups = l->cols / GROUP, bytes = group_bytes(l);
    const uint8_t *p = (const uint8_t *)l->data + unit * groups * bytes;
    const Levels levels = levels_of(has_centre);
    fv total[INT4_TOKENS][PARTS];
    UNROLL for (int t = 0; t < count; t++)
        UNROLL for (int part = 0; part < PARTS; part++) total[t][part] = splat(0.f);
    for (int64_t g = 0; g < groups; g++, p += bytes) {
        fv sum[INT4_TOKENS][PARTS];
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + INT4_PREFETCH + i, 0, 2);
#if HAVE_INT4_DOT
        dot_group(levels, p + bytes - CODE_BYTES, count, x->narrow + (g * x->tokens + first) * BLOCK, BLOCK, sum);
#else
        dot_group(levels, p + bytes - CODE_BYTES, count, x->values + first * x->cols + g * GROUP, x->cols, sum);
#endif
        UNROLL for (int t = 0; t < count; t++)
            UNROLL for (int part = 0; part < PARTS; part++) {
                total[t][part] = add_product(total[t][part], sum[t][part], widen((const uint16_t *)p + part * LANES));
                if (has_centre)
                    total[t][part] = add_product(total[t][part], widen((const uint16_t *)(p + SCALE_BYTES) + part * LANES),
                                                 splat(x->sums[(first + t) * groups + g]));
            }
    }
    UNROLL for (int t = 0; t < count; t++)
        UNROLL for (int part = 0; part < PARTS; part++) out[t][part] = total[t][part];
}

#define INT4_CASE(has_centre, count) case has_centre * 16 + count: dot_int4(has_centre, count, l, unit, x, first, out + first); break;
#define INT4_CASES(count) INT4_CASE(0, count) INT4_CASE(1, count)
static void dot_int4_unit(const Linear *l, int64_t unit, const Input *x, int64_t tokens, fv out[][PARTS]) {
    for (int64_t first = 0; first < tokens; first += INT4_TOKENS) {
        const int64_t left = tokens - first;
        switch ((l->has_centre ? 16 : 0) + (left < INT4_TOKENS ? left : INT4_TOKENS)) {
            INT4_CASES(1) INT4_CASES(2) INT4_CASES(3)
#if INT4_TOKENS > 3
            INT4_CASES(4) INT4_CASES(5)
#endif
        }
    }
}

/* What int4 weights with centres need of their inputs besides: the sum of each group, of the numbers that they multiply. */
static void sum_groups(const Linear *l, Input *x) {
    if (l->format != FORMAT_INT4 || !l->has_centre) return;
    for (int64_t t = 0; t < x->tokens; t++)
        for (int64_t g = 0; g < x->cols / GROUP; g++) {
            fv sum = splat(0.f);
            for (int i = 0; i < GROUP; i += LANES)
#if HAVE_INT4_DOT
                sum += widen(x->narrow + (g * x->tokens + t) * BLOCK + i);
#else
                sum += load_f(x->values + t * x->cols + g * GROUP + i);
#endif
            x->sums[t * (x->cols / GROUP) + g] = sum_of(sum);
        }
}
#endif
