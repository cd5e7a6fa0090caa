/* Tiles of float, bfloat16 and int8 weights.
 *
 * Whatever the number of tokens and whichever tile computes it, each sum of a row and a token runs over the inputs in
 * one order, in one vector of sums: tiles differ only in what they keep in registers beside it.
 */
#ifndef TILES_H
#define TILES_H
#include "inputs.h"

#define PREFETCH 8192 /* bytes that the memory is asked for ahead of their use, at least */
#define STREAM_AHEAD 16384 /* the same where one row is read after the other */
#define INPUT_BLOCK 16384  /* bytes of inputs that stay in the first cache beside the weights */
#define MOST_TILE_TOKENS 12 /* of which the sums of one row fit 32 registers */

/* Whether products of bfloat16 weights are left to the processor's own instruction. */
INLINE int is_dotted(const int format) { return HAVE_DOT_BF16 && format == FORMAT_BF16; }
INLINE int64_t weight_size(const int format) { return format == FORMAT_INT8 ? 1 : format == FORMAT_BF16 ? 2 : 4; }
INLINE int64_t input_size(const int format) { return is_dotted(format) ? sizeof(uint16_t) : sizeof(float); }
/* Inputs that one step of a tile takes. */
INLINE int64_t step_size(const int format) { return format == FORMAT_BF16 ? BLOCK : LANES; }

INLINE void add_products(const int rows, const int tokens, const fv *w, const float *x, int64_t token_stride,
                         fv sum[][MOST_TILE_TOKENS]) {
    UNROLL for (int t = 0; t < tokens; t++) {
        fv xv = load_f(x + t * token_stride);
        if (rows > 1) hold(&xv);
        UNROLL for (int i = 0; i < rows; i++) {
            sum[i][t] = add_product(sum[i][t], w[i], xv);
            if (rows > 1) hold(&sum[i][t]);
        }
    }
}

/* One step of `rows` rows, `row_bytes` apart, times the inputs of `tokens` tokens. */
INLINE void add_step(const int format, const int rows, const int tokens, const uint8_t *w, int64_t row_bytes, const void *x,
                     int64_t token_stride, fv sum[][MOST_TILE_TOKENS]) {
#if HAVE_DOT_BF16
    if (is_dotted(format)) {
        UNROLL for (int part = 0; part < BLOCK; part += 2 * LANES) {
            dot_vector both[4];
            UNROLL for (int i = 0; i < rows; i++) both[i] = load_dot((const uint16_t *)(w + i * row_bytes) + part);
            UNROLL for (int t = 0; t < tokens; t++) {
                const dot_vector xv = load_dot((const uint16_t *)x + t * token_stride + part);
                UNROLL for (int i = 0; i < rows; i++) sum[i][t] = add_dot(sum[i][t], both[i], xv);
            }
        }
        return;
    }
#endif
    fv numbers[4];
    if (format == FORMAT_BF16) {
        UNROLL for (int part = 0; part < BLOCK; part += 2 * LANES) {
            UNROLL for (int i = 0; i < rows; i++) numbers[i] = widen_even(load_pairs((const uint16_t *)(w + i * row_bytes) + part));
            add_products(rows, tokens, numbers, (const float *)x + part, token_stride, sum);
            UNROLL for (int i = 0; i < rows; i++) numbers[i] = widen_odd(load_pairs((const uint16_t *)(w + i * row_bytes) + part));
            add_products(rows, tokens, numbers, (const float *)x + part + LANES, token_stride, sum);
        }
        return;
    }
    UNROLL for (int i = 0; i < rows; i++) {
        const uint8_t *p = w + i * row_bytes;
        numbers[i] = format == FORMAT_INT8 ? widen_int8((const int8_t *)p) : load_f((const float *)p);
    }
    add_products(rows, tokens, numbers, (const float *)x, token_stride, sum);
}

/* Where the inputs of a pass lie: those of step k and token t begin k * step + t * token numbers from the first. */
typedef struct {
    const void *first;
    int64_t step, token;
} Inputs;

INLINE const void *inputs_at(const int format, const Inputs *x, int64_t k, int64_t t) {
    return (const uint8_t *)x->first + (k * x->step + t * x->token) * input_size(format);
}

/* Adds `steps` steps of inputs to the sums of a few rows and tokens: out[token][row].
 * ahead: bytes from a weight to what is asked of the memory when it is read. */
INLINE void add_tile(const int format, const int rows, const int tokens, const uint8_t *w, int64_t row_bytes, int64_t ahead,
                     const Inputs *x, int64_t steps, fv *out) {
    const int64_t bytes = step_size(format) * weight_size(format), line = bytes < 64 ? 64 / bytes : 1;
    const int64_t token = format == FORMAT_BF16 ? BLOCK : x->token;
    fv sum[4][MOST_TILE_TOKENS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int t = 0; t < tokens; t++) sum[i][t] = out[t * UNIT + i];
    int64_t k = 0;
    for (; k + line <= steps; k += line) {
        UNROLL for (int i = 0; i < rows; i++) __builtin_prefetch(w + i * row_bytes + k * bytes + ahead, 0, 2);
        UNROLL for (int64_t j = 0; j < line; j++)
            add_step(format, rows, tokens, w + (k + j) * bytes, row_bytes, inputs_at(format, x, k + j, 0), token, sum);
    }
    for (; k < steps; k++) add_step(format, rows, tokens, w + k * bytes, row_bytes, inputs_at(format, x, k, 0), token, sum);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int t = 0; t < tokens; t++) out[t * UNIT + i] = sum[i][t];
}

#define TILE(rows, tokens) case rows * 16 + tokens: add_tile(format, rows, tokens, w, row_bytes, ahead, x, steps, out); return;
INLINE void add_some(const int format, int rows, int64_t tokens, const uint8_t *w, int64_t row_bytes, int64_t ahead, const Inputs *x,
                     int64_t steps, fv *out) {
    switch (rows * 16 + tokens) {
        TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4) TILE(1, 5) TILE(1, 6)
#if REGISTERS == 16
        TILE(2, 1) TILE(2, 2) TILE(2, 3) TILE(2, 4) TILE(2, 5) TILE(2, 6)
        TILE(4, 1)
#else
        TILE(1, 7) TILE(1, 8) TILE(1, 9) TILE(1, 10) TILE(1, 11) TILE(1, 12)
        TILE(4, 1) TILE(4, 2) TILE(4, 3) TILE(4, 4) TILE(4, 5) TILE(4, 6)
#endif
    }
}

/* How a unit is computed: rows beside each other, most tokens of a tile, parts that the inputs are taken in. */
typedef struct {
    int64_t rows, tokens, parts;
} Tiling;

/* Memory is read fastest in its own order, one row after the other, where the inputs of all tokens fit the first cache
 * and one row's sums keep the processor busy. Else a few rows share each load of an input, a part of the inputs at a time. */
INLINE Tiling tiling_of(const int format, int64_t cols, int64_t tokens) {
    const int64_t bytes = tokens * cols * input_size(format), parts = (bytes + INPUT_BLOCK - 1) / INPUT_BLOCK;
#if REGISTERS == 16
    if (tokens == 1) return (Tiling){LANES == 8 && format == FORMAT_BF16 ? 2 : 4, 1, 1}; /* fewer rows: nearer to memory's order */
    return (Tiling){2, LANES == 8 && format != FORMAT_F32 ? 6 : 5, parts};
#else
    const int streamed = tokens == 1 || (tokens <= (is_dotted(format) ? MOST_TILE_TOKENS : 2) && bytes <= INPUT_BLOCK + INPUT_BLOCK / 4);
    if (streamed) return (Tiling){1, MOST_TILE_TOKENS, 1};
    return (Tiling){4, format == FORMAT_BF16 && !is_dotted(format) ? 5 : 6, parts};
#endif
}

/* The last inputs, fewer than a step takes, padded with zeros. */
INLINE void add_rest(const int format, const Linear *l, int64_t first, int64_t count, const Input *x, int64_t tokens, fv *out) {
    const int64_t step = step_size(format), from = l->cols / step * step, left = l->cols - from;
    uint8_t w[4 * BLOCK] = {0};
    float inputs[BLOCK] = {0};
    for (int64_t t = 0; t < tokens; t++) {
        if (is_dotted(format)) memcpy(inputs, x->narrow + from * tokens + t * BLOCK, left * sizeof(uint16_t));
        else if (format == FORMAT_BF16) memcpy(inputs, x->paired + from * tokens + t * BLOCK, sizeof inputs);
        else memcpy(inputs, x->values + t * x->cols + from, left * sizeof(float));
        for (int64_t i = 0; i < count; i++) {
            memcpy(w, (const uint8_t *)l->data + ((first + i) * l->cols + from) * weight_size(format), left * weight_size(format));
            add_step(format, 1, 1, w, 0, inputs, 0, (fv(*)[MOST_TILE_TOKENS])(out + t * UNIT + i));
        }
    }
}

/* Bytes from a row's weights in a part to those that will be read some PREFETCH bytes later: of a row further on, else in
 * the next part, else of the next unit. */
INLINE int64_t later(const Tiling *tiling, int64_t row_bytes, int64_t steps, int64_t step_bytes, int64_t part, int64_t row) {
    const int64_t taken = steps / tiling->parts * step_bytes, rows = taken ? (PREFETCH + taken - 1) / taken : UNIT;
    const int64_t next = row + (rows + tiling->rows - 1) / tiling->rows * tiling->rows;
    if (next < UNIT || tiling->parts == 1) return (next - row) * row_bytes;
    const int64_t begin = steps * part / tiling->parts * step_bytes, there = steps * (part + 1) / tiling->parts * step_bytes;
    if (part + 1 < tiling->parts) return there - begin + (next - UNIT - row) * row_bytes;
    return (next - row) * row_bytes - begin;
}

/* The sums of `count` rows from `first`, lane by lane: out[token][row]. */
INLINE void dot_unit(const int format, const Linear *l, int64_t first, int64_t count, const Input *x, int64_t tokens, fv *out) {
    const int64_t step = step_size(format), steps = l->cols / step, row_bytes = l->cols * weight_size(format);
    const int64_t step_bytes = step * weight_size(format);
    const uint8_t *w = (const uint8_t *)l->data + first * row_bytes;
    const Tiling tiling = tiling_of(format, l->cols, tokens);
    const int64_t pieces = (tokens + tiling.tokens - 1) / tiling.tokens;
    Inputs all = {x->values, step, x->cols};
    if (format == FORMAT_BF16) all = (Inputs){is_dotted(format) ? (void *)x->narrow : x->paired, tokens * BLOCK, BLOCK};
    memset(out, 0, sizeof(fv) * UNIT * tokens);
    for (int64_t part = 0; part < tiling.parts; part++) {
        const int64_t k = steps * part / tiling.parts, n = steps * (part + 1) / tiling.parts - k;
        for (int64_t row = 0; row < count;) {
            const int rows = count - row < tiling.rows ? 1 : (int)tiling.rows;
            const uint8_t *p = w + row * row_bytes + k * step_bytes;
            const int64_t ahead = tiling.rows == 1 && tiling.parts == 1 ? STREAM_AHEAD : later(&tiling, row_bytes, steps, step_bytes, part, row);
            for (int64_t piece = 0; piece < pieces; piece++) {
                const int64_t from = tokens * piece / pieces, to = tokens * (piece + 1) / pieces;
                const Inputs some = {inputs_at(format, &all, k, from), all.step, all.token};
                add_some(format, rows, to - from, p, row_bytes, ahead, &some, n, out + from * UNIT + row);
            }
            row += rows;
        }
    }
    if (l->cols % step) add_rest(format, l, first, count, x, tokens, out);
}

static void dot_f32(const Linear *l, int64_t first, int64_t count, const Input *x, int64_t tokens, fv *out) {
    dot_unit(FORMAT_F32, l, first, count, x, tokens, out);
}
static void dot_bf16(const Linear *l, int64_t first, int64_t count, const Input *x, int64_t tokens, fv *out) {
    dot_unit(FORMAT_BF16, l, first, count, x, tokens, out);
}
static void dot_int8(const Linear *l, int64_t first, int64_t count, const Input *x, int64_t tokens, fv *out) {
    dot_unit(FORMAT_INT8, l, first, count, x, tokens, out);
}
#endif
