/* Linear layers of int4 weights, by products of int8.
 *
 * A weight is its row's scale times its group's scale, an int8, times one of 16 levels. Inputs are rounded to int8 too, with
 * a step for every GROUP of them: of a group only whole numbers are multiplied and added, so every processor gets the same sums.
 * Tiles of UNIT rows: for each group of inputs UNIT scales, then for each 4 x UNIT words of 8 codes: word r of quarter q
 * holds inputs 8q … 8q+7 of row r, the first four in the low halves of its bytes.
 */
#ifndef INT4_H
#define INT4_H
#include "inputs.h"

#define INT4_PREFETCH 8192 /* bytes that the memory is asked for ahead of their use */
#define SCALE_BYTES UNIT              /* of the scales of one group of a tile */
#define CODE_BYTES (UNIT * GROUP / 2) /* of its codes */
#define GROUP_BYTES (SCALE_BYTES + CODE_BYTES)
#define LEAST_INPUT 1e-30f /* less is nothing: its inverse may be no number */
#define LOWEST_LEVEL 59 /* below zero */
/* Tokens at most that share each load of a weight: their sums fit the registers. */
#if LANES == 16
#define INT4_TOKENS 12
#elif REGISTERS == 32
#define INT4_TOKENS 5
#else
#define INT4_TOKENS 4
#endif

/* The levels of an int4 weight, in parts of its group's scale.
 * Lloyd's algorithm on weights of a 1.5B model, each group of 32 divided by its extreme, then rounded: from the lowest to the
 * highest are less than 128 steps, so that no sum of two products with int8 leaves int16. */
static const int8_t LEVELS[16] = {-LOWEST_LEVEL, -46, -36, -27, -20, -13, -7, -1, 4, 10, 17, 24, 32, 41, 53, 67};
#define HIGHEST_LEVEL 67

INLINE int64_t tile_bytes(const Linear *l) { return l->cols / GROUP * GROUP_BYTES; }
INLINE const int8_t *scales_of(const Linear *l, int64_t tile) { return (const int8_t *)l->data + tile * tile_bytes(l); }
INLINE const uint8_t *codes_of(const Linear *l, int64_t tile) {
    return (const uint8_t *)l->data + tile * tile_bytes(l) + l->cols / GROUP * SCALE_BYTES;
}

/* Each level above the lowest, as kernels look it up. */
INLINE wide_bytes levels_above(void) {
    uint8_t above[16];
    for (int i = 0; i < 16; i++) above[i] = (uint8_t)(LEVELS[i] + LOWEST_LEVEL);
    return byte_table(above);
}

INLINE wide_bytes splat_four(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (wide_bytes)splat_i(four);
}

/* Adds the products of one group of LANES rows, `part` of the tile, to the totals of `count` tokens from the `first`. */
INLINE void add_group(const wide_bytes levels, const int count, const uint8_t *codes, fv scale, const Input *x, int64_t at, int part,
                      fv total[][PARTS]) {
    iv sum[INT4_TOKENS];
    UNROLL for (int t = 0; t < count; t++) sum[t] = splat_i(-LOWEST_LEVEL * x->code_sums[at + t]);
    UNROLL for (int q = 0; q < 4; q++) {
        uv words;
        memcpy(&words, codes + 4 * UNIT * q + 4 * LANES * part, sizeof words);
        const wide_bytes low = look_up_bytes(levels, (wide_bytes)(words & 0x0f0f0f0fu));
        const wide_bytes high = look_up_bytes(levels, (wide_bytes)((words >> 4) & 0x0f0f0f0fu));
        UNROLL for (int t = 0; t < count; t++) {
            const int8_t *inputs = x->codes + (at + t) * GROUP + 8 * q;
            sum[t] = add_bytes_dot(add_bytes_dot(sum[t], low, splat_four(inputs)), high, splat_four(inputs + 4));
        }
    }
    UNROLL for (int t = 0; t < count; t++)
        total[t][part] = add_product(total[t][part], __builtin_convertvector(sum[t], fv), scale * splat(x->steps[at + t]));
}

INLINE void dot_int4(const int count, const Linear *l, int64_t unit, const Input *x, int64_t first, fv out[][PARTS]) {
    const int8_t *scales = scales_of(l, unit);
    const uint8_t *codes = codes_of(l, unit);
    const wide_bytes levels = levels_above();
    fv total[INT4_TOKENS][PARTS];
    UNROLL for (int t = 0; t < count; t++)
        UNROLL for (int part = 0; part < PARTS; part++) total[t][part] = splat(0.f);
    for (int64_t g = 0; g < l->cols / GROUP; g++) {
        for (int64_t i = 0; i < GROUP_BYTES; i += 64) __builtin_prefetch((const uint8_t *)scales + g * GROUP_BYTES + INT4_PREFETCH + i, 0, 2);
        UNROLL for (int part = 0; part < PARTS; part++)
            add_group(levels, count, codes + g * CODE_BYTES, widen_int8(scales + g * SCALE_BYTES + part * LANES), x, g * x->tokens + first,
                      part, total);
    }
    UNROLL for (int t = 0; t < count; t++)
        UNROLL for (int part = 0; part < PARTS; part++) out[t][part] = total[t][part];
}

#define INT4_CASE(count) case count: dot_int4(count, l, unit, x, first, out + first); break;
/* What is left is to be multiplied with the scales of the rows. */
static void dot_int4_unit(const Linear *l, int64_t unit, const Input *x, int64_t tokens, fv out[][PARTS]) {
    const int64_t pieces = (tokens + INT4_TOKENS - 1) / INT4_TOKENS;
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t first = tokens * piece / pieces;
        switch (tokens * (piece + 1) / pieces - first) {
            INT4_CASE(1) INT4_CASE(2) INT4_CASE(3) INT4_CASE(4)
#if INT4_TOKENS > 4
            INT4_CASE(5)
#endif
#if INT4_TOKENS > 5
            INT4_CASE(6) INT4_CASE(7) INT4_CASE(8) INT4_CASE(9) INT4_CASE(10) INT4_CASE(11) INT4_CASE(12)
#endif
        }
    }
}

/* What int4 weights multiply: each GROUP of a token's inputs as int8, 127 steps being the greatest of them. */
static void quantise_inputs(const Linear *l, Input *x) {
    if (l->format != FORMAT_INT4) return;
    for (int64_t g = 0; g < x->cols / GROUP; g++)
        for (int64_t t = 0; t < x->tokens; t++) {
            const float *values = x->values + t * x->cols + g * GROUP;
            const int64_t at = g * x->tokens + t;
            iv most = splat_i(0), sum = splat_i(0); /* of the bits: what is no number counts as the greatest */
            for (int i = 0; i < GROUP; i += LANES) {
                const iv size = (iv)magnitude(load_f(values + i));
                most = (iv)choose(size > most, (fv)size, (fv)most);
            }
            const float extreme = float_of(highest_lane(most));
            const fv inverse = splat(extreme > LEAST_INPUT ? 127.f / extreme : 0.f);
            for (int i = 0; i < GROUP; i += LANES) {
                const iv code = nearest(load_f(values + i) * inverse);
                const bv bytes = narrow_int8(code);
                memcpy(x->codes + at * GROUP + i, &bytes, sizeof bytes);
                sum += code;
            }
            x->steps[at] = extreme / 127.f;
            x->code_sums[at] = sum_of_lanes(sum);
        }
}
#endif
