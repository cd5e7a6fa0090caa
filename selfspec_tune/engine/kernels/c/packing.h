/* Int4 copies made, and int8 and int4 weights turned back into the model's type. */
#ifndef PACKING_H
#define PACKING_H
#include "int4.h"
#include "pool.h"

#define MAX_BLOCK 128 /* inputs whose errors make up for each other in an int4 copy */
#define MOST_SCALE 127.f
#define ROOM 1.125f /* above a row's greatest weight: what makes up for errors may be greater */

/* Where the code of a group's i-th input lies in its row's words: which word, which bit. */
INLINE int word_of(int i) { return i / 8; }
INLINE int bit_of(int i) { return i % 4 * 8 + i % 8 / 4 * 4; }

typedef struct {
    const Linear *l;
    void *values;
    int32_t is_bf16;
} Dequantised;

static void dequantise_int8(const Linear *l, int64_t n, void *values, int is_bf16) {
    const int8_t *codes = (const int8_t *)l->data + n * l->cols;
    const fv scale = splat(l->scales[n]);
    int64_t k = 0;
    for (; k + LANES <= l->cols; k += LANES) store_any(values, n * l->cols + k, scale * widen_int8(codes + k), is_bf16);
    for (; k < l->cols; k++) store_any1(values, n * l->cols + k, l->scales[n] * codes[k], is_bf16);
}

static void dequantise_int4(const Linear *l, int64_t n, void *values, int is_bf16) {
    const int64_t lane = n % UNIT;
    for (int64_t g = 0; g < l->cols / GROUP; g++) {
        const float scale = (float)scales_of(l, n / UNIT)[g * SCALE_BYTES + lane] * l->scales[n];
        const uint32_t *words = (const uint32_t *)(codes_of(l, n / UNIT) + g * CODE_BYTES) + lane;
        for (int i = 0; i < GROUP; i++) {
            const int level = LEVELS[words[word_of(i) * UNIT] >> bit_of(i) & 15];
            store_any1(values, n * l->cols + g * GROUP + i, (float)level * scale, is_bf16);
        }
    }
}

static void dequantise_share(void *argument, int thread, int threads) {
    const Dequantised *d = argument;
    int64_t from, to;
    share(d->l->rows, thread, threads, &from, &to);
    for (int64_t n = from; n < to; n++) {
        if (d->l->format == FORMAT_INT8) dequantise_int8(d->l, n, d->values, d->is_bf16);
        else dequantise_int4(d->l, n, d->values, d->is_bf16);
    }
}

/* An int8 or int4 weight back in the model's type: values [rows, cols]. */
void dequantise(const Linear *l, void *values, int32_t is_bf16, int32_t num_threads) {
    parallel(num_threads, dequantise_share, &(Dequantised){l, values, is_bf16});
}

/* The codes of the levels nearest to `x`, and the levels. */
INLINE iv nearest_level(fv x, fv *level) {
    iv code = {};
    *level = splat(LEVELS[0]);
    for (int j = 1; j < 16; j++) {
        const iv above = x > splat((float)(LEVELS[j - 1] + LEVELS[j]) / 2);
        code -= above;
        *level = choose(above, splat(LEVELS[j]), *level);
    }
    return code;
}

/* The best of a few scales near the extreme of GROUP weights of LANES rows, in whole numbers.
 * An error's square counts as much as `importance` says. w [GROUP][PARTS], of which one part. */
static fv best_scale(fv (*w)[PARTS], int part, const float *importance) {
    static const float tried[] = {1.f, 0.95f, 0.9f, 1.05f, 0.85f, 1.1f};
    const fv most = splat(MOST_SCALE);
    fv extreme = {}, best = {}, least = splat(INFINITY);
    for (int i = 0; i < GROUP; i++) extreme = choose(w[i][part] * w[i][part] > extreme * extreme, w[i][part], extreme);
    const fv inverse = choose(extreme != 0, HIGHEST_LEVEL / extreme, splat(0.f));
    for (size_t c = 0; c < sizeof tried / sizeof *tried; c++) {
        fv level[GROUP], along = {}, square = {}, error = {};
        for (int i = 0; i < GROUP; i++) {
            nearest_level(w[i][part] * inverse * splat(1 / tried[c]), &level[i]);
            along += splat(importance[i]) * level[i] * w[i][part];
            square += splat(importance[i]) * level[i] * level[i];
        }
        fv scale = along / square; /* what suits these levels best; none of them is 0 */
        scale = choose(scale > most, most, choose(scale < -most, -most, scale));
        scale = __builtin_convertvector(nearest(scale), fv);
        for (int i = 0; i < GROUP; i++) {
            const fv wrong = level[i] * scale - w[i][part];
            error += splat(importance[i]) * wrong * wrong;
        }
        best = choose(error < least, scale, best);
        least = choose(error < least, error, least);
    }
    return best;
}

/* Codes [size, UNIT] and scales [size / GROUP, UNIT] of UNIT rows, whose weights w [size], in units of their rows' scales, are
 * spent on the way. With `factor` [size, size] (upper triangular), the later weights make up for the error of each (GPTQ). */
static void encode(fv (*w)[PARTS], int64_t size, const float *importance, const uint16_t *factor, uint8_t *codes, int8_t *scales) {
    for (int part = 0; part < PARTS; part++)
        for (int64_t begin = 0; begin < size; begin += GROUP) {
            const fv scale = best_scale(w + begin, part, importance + begin);
            const fv inverse = choose(scale != 0, 1 / scale, splat(0.f));
            for (int lane = 0; lane < LANES; lane++) scales[begin / GROUP * UNIT + part * LANES + lane] = (int8_t)scale[lane];
            for (int64_t i = begin; i < begin + GROUP; i++) {
                fv level;
                const iv code = nearest_level(w[i][part] * inverse, &level);
                for (int lane = 0; lane < LANES; lane++) codes[i * UNIT + part * LANES + lane] = (uint8_t)code[lane];
                if (factor == NULL) continue;
                const uint16_t *row = factor + i * size;
                const fv wrong = (w[i][part] - level * scale) * splat(1 / widen1(row[i]));
                for (int64_t k = i + 1; k < size; k++) w[k][part] -= wrong * splat(widen1(row[k]));
            }
        }
}

typedef struct {
    const void *weight;
    int32_t is_bf16;
    int64_t rows, cols;
    const float *importance;
    const uint16_t *factors;
    int64_t size;
    uint8_t *out;
    float *scales;
} Packed;

/* What one step of a group's scale is worth in a row: the greatest weight of all, and a little more, is in reach. */
static float row_scale(const Packed *p, int64_t n) {
    float most = 0;
    for (int64_t k = 0; k < p->cols; k++) most = fmaxf(most, fabsf(load_any1(p->weight, n * p->cols + k, p->is_bf16)));
    return most * (ROOM / (MOST_SCALE * HIGHEST_LEVEL));
}

static void pack_tile(const Packed *p, int64_t tile) {
    const Linear packed = {.cols = p->cols, .data = p->out};
    fv w[MAX_BLOCK][PARTS];
    uint8_t codes[MAX_BLOCK * UNIT];
    float row_scales[UNIT] = {0};
    for (int64_t lane = 0; lane < UNIT && tile * UNIT + lane < p->rows; lane++)
        p->scales[tile * UNIT + lane] = row_scales[lane] = row_scale(p, tile * UNIT + lane);
    for (int64_t start = 0; start < p->cols; start += p->size) {
        for (int64_t i = 0; i < p->size; i++)
            for (int64_t lane = 0; lane < UNIT; lane++) {
                const float one = row_scales[lane]; /* 0: of no row, or of one of nothing */
                w[i][lane / LANES][lane % LANES] = one > 0 ? load_any1(p->weight, (tile * UNIT + lane) * p->cols + start + i, p->is_bf16) / one : 0.f;
            }
        encode(w, p->size, p->importance + start, p->factors == NULL ? NULL : p->factors + start * p->size, codes,
               (int8_t *)scales_of(&packed, tile) + start / GROUP * SCALE_BYTES);
        for (int64_t g = 0; g < p->size / GROUP; g++) {
            uint32_t words[GROUP / 8 * UNIT] = {0};
            for (int i = 0; i < GROUP; i++)
                for (int64_t lane = 0; lane < UNIT; lane++)
                    words[word_of(i) * UNIT + lane] |= (uint32_t)codes[(g * GROUP + i) * UNIT + lane] << bit_of(i);
            memcpy((uint8_t *)codes_of(&packed, tile) + (start / GROUP + g) * CODE_BYTES, words, CODE_BYTES);
        }
    }
}

static void pack_share(void *argument, int thread, int threads) {
    const Packed *p = argument;
    int64_t from, to;
    share((p->rows + UNIT - 1) / UNIT, thread, threads, &from, &to);
    for (int64_t tile = from; tile < to; tile++) pack_tile(p, tile);
}

/* An int4 copy by the codebook, in the layout of int4.h, of a weight [rows, cols]; cols: a multiple of `size`, that of
 * GROUP. importance [cols]: what a squared error in each input counts. factors [cols / size, size, size], bfloat16, or NULL:
 * of each block of inputs, the upper Cholesky factor of the inverse of their second moments. out: tiles; scales [rows]. */
void pack_codebook(const void *weight, int32_t is_bf16, int64_t rows, int64_t cols, const float *importance,
                   const uint16_t *factors, int64_t size, uint8_t *out, float *scales, int32_t num_threads) {
    parallel(num_threads, pack_share, &(Packed){weight, is_bf16, rows, cols, importance, factors, size, out, scales});
}
#endif
