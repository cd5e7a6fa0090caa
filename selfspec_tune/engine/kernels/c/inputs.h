/* A linear layer's weight and its inputs, in the forms that kernels read. */
#ifndef INPUTS_H
#define INPUTS_H
#include "vector.h"

#define UNIT 16       /* rows of a weight that are computed together */
#define PARTS (UNIT / LANES)
#define MAX_TOKENS 32 /* of one pass */
#define GROUP 32      /* inputs that share one scale of int4 weights, and one step */
#define BLOCK 32      /* inputs whose copies lie beside each other */

enum { FORMAT_F32 = 0, FORMAT_BF16 = 1, FORMAT_INT8 = 2, FORMAT_INT4 = 3 };

typedef struct {
    int32_t format;
    int64_t rows, cols;
    const void *data;
    const float *scales; /* int8 and int4: one per row */
    const float *bias;   /* or null */
} Linear;

/* What a linear layer multiplies. `paired` and `narrow` are copies for weights in bfloat16, BLOCK inputs of every token
 * beside each other: [cols / BLOCK][tokens][BLOCK], so that no two tokens' inputs vie for one place in a cache. `codes` and
 * what follows them are for int4 weights, whose layers make them before they run. */
typedef struct {
    float *values; /* [tokens, cols] */
    float *paired; /* Of every 2 * LANES inputs first the even ones, then the odd ones. Only where no instruction
                    * multiplies bfloat16; `narrow` only where one does. */
    uint16_t *narrow;   /* rounded to bfloat16 */
    int8_t *codes;      /* [cols / GROUP][tokens][GROUP]: whole steps */
    float *steps;       /* [cols / GROUP][tokens] */
    int32_t *code_sums; /* [cols / GROUP][tokens] */
    int64_t cols, tokens;
} Input;

/* Where the i-th of 2 * LANES inputs lies in `paired`. */
INLINE int64_t place_in_pairs(int64_t i) { return i % 2 * LANES + i / 2; }

static int64_t padded(int64_t cols) { return (cols + BLOCK - 1) / BLOCK * BLOCK; }

/* Sets `count` inputs from the k-th of a token, k a multiple of LANES, beside `values`. */
INLINE void set_copies(Input *x, int64_t t, int64_t k, fv v, int64_t count) {
    const int64_t block = (k / BLOCK * x->tokens + t) * BLOCK;
#if HAVE_DOT_BF16
    const hv bits = narrow(v);
    memcpy(x->narrow + block + k % BLOCK, &bits, count * sizeof(uint16_t));
#else
    float *p = x->paired + block + k % BLOCK / (2 * LANES) * (2 * LANES);
    for (int64_t i = 0; i < count; i++) p[place_in_pairs(k % (2 * LANES) + i)] = v[i];
#endif
}

/* Makes the other forms of `values` [tokens, cols]. */
static void set_input(Input *x, int64_t cols, int64_t tokens) {
    x->cols = cols;
    x->tokens = tokens;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t k = 0; k < cols; k += LANES)
            set_copies(x, t, k, load_some(x->values + t * cols + k, cols - k), cols - k < LANES ? cols - k : LANES);
}
#endif
