/* Weights and inputs of fixed numbers, for tests of what is right and of what is fast. */
#ifndef TEST_WEIGHTS_H
#define TEST_WEIGHTS_H
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include "packing.h"
#include "pass.h"

enum { NUM_FORMATS = 4 };
static const char *const NAMES[NUM_FORMATS] = {"float32", "bfloat16", "int8", "int4"};

/* The next of a fixed sequence of numbers from -1 to 1. */
static float next_number(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(int32_t)*state / 2147483648.f;
}

/* Memory, in huge pages where it is large and the system gives them, as weights are held. */
static void *roomy(size_t bytes) {
    void *p = NULL;
    if (bytes < 2 << 21) return malloc(bytes);
    if (posix_memalign(&p, 1 << 21, bytes)) return NULL;
#if defined(__linux__)
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}

/* A weight of fixed numbers in the format; its data and scales are to be freed. */
static int make_weight(Linear *l, int format, int64_t rows, int64_t cols) {
    uint32_t state = 1;
    *l = (Linear){.format = format, .rows = rows, .cols = cols};
    const int64_t units = (rows + UNIT - 1) / UNIT;
    const int64_t bytes = l->format == FORMAT_INT4 ? units * tile_bytes(l) : rows * cols * weight_size(l->format);
    uint8_t *data = roomy(bytes);
    float *scales = malloc(rows * sizeof(float));
    l->data = data;
    l->scales = scales;
    if (!data || !scales) return 0;
    for (int64_t n = 0; n < rows; n++) scales[n] = 0.01f + 0.001f * (float)(n % 7);
    if (l->format == FORMAT_F32 || l->format == FORMAT_BF16) {
        for (int64_t i = 0; i < rows * cols; i++) store_any1(data, i, next_number(&state), l->format == FORMAT_BF16);
        return 1;
    }
    for (int64_t i = 0; i < bytes; i++) data[i] = (uint8_t)((int)(next_number(&state) * 127.f) & 255);
    return 1;
}

static int make_input(Input *x, int64_t cols);
static void free_input(Input *x);

/* Fixed inputs, in bfloat16's numbers so that every kernel multiplies the same. */
static void fill_input(Input *x, const Linear *l, int64_t first, int64_t tokens) {
    uint32_t state = 2;
    for (int64_t i = 0; i < first * l->cols; i++) next_number(&state);
    for (int64_t i = 0; i < tokens * l->cols; i++) x->values[i] = rounded1(next_number(&state), 1);
    set_input(x, l->cols, tokens);
    quantise_inputs(l, x);
}
#endif
