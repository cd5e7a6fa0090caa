/* Norms of every kind over rows, in float32. */
#ifndef NORM_H
#define NORM_H
#include "vector.h"

enum { NORM_NONE = 0, NORM_RMS = 1, NORM_LAYER = 2 };

typedef struct {
    int32_t kind, is_late; /* late: the weight is applied before the only rounding to the model's type */
    float epsilon;
    const float *weight, *bias; /* or null */
} Norm;

/* What a row is taken less, and multiplied with. */
typedef struct {
    float mean, factor;
} Moments;

static float sum_of_squares(const float *x, float mean, int64_t cols) {
    fv squares = splat(0.f);
    float tail = 0;
    int64_t k = 0;
    for (; k + LANES <= cols; k += LANES) { const fv v = load_f(x + k) - mean; squares = add_product(squares, v, v); }
    for (; k < cols; k++) tail += (x[k] - mean) * (x[k] - mean);
    return sum_of(squares) + tail;
}

static float mean_of(const float *x, int64_t cols) {
    fv sum = splat(0.f);
    float tail = 0;
    int64_t k = 0;
    for (; k + LANES <= cols; k += LANES) sum += load_f(x + k);
    for (; k < cols; k++) tail += x[k];
    return (sum_of(sum) + tail) / (float)cols;
}

static float factor_of(const Norm *n, float squares, int64_t cols) { return 1.f / sqrtf(squares / (float)cols + n->epsilon); }

static Moments moments_of(const Norm *n, const float *x, int64_t cols) {
    const float mean = n->kind == NORM_LAYER ? mean_of(x, cols) : 0.f;
    return (Moments){mean, factor_of(n, sum_of_squares(x, mean, cols), cols)};
}

/* A row by its moments; weight and bias begin at their `first` number. `to` may be the row itself. */
static void apply_norm(const Norm *n, Moments moments, const float *from, int64_t first, int64_t cols, int is_bf16, float *to) {
    for (int64_t k = 0; k < cols; k += LANES) {
        const int64_t left = cols - k;
        fv v = (load_some(from + k, left) - moments.mean) * moments.factor;
        if (!n->is_late) v = rounded(v, is_bf16);
        if (n->weight) v *= load_some(n->weight + first + k, left);
        if (n->bias) v += load_some(n->bias + first + k, left);
        store_some(to + k, rounded(v, is_bf16), left);
    }
}

/* Rows [count, cols] normalised, or copied where there is no norm. `to` may be the rows themselves. */
static void norm_rows(const Norm *n, const float *from, int64_t count, int64_t cols, int is_bf16, float *to) {
    if (n->kind == NORM_NONE) {
        if (to != from) memcpy(to, from, count * cols * sizeof(float));
        return;
    }
    for (int64_t t = 0; t < count; t++)
        apply_norm(n, moments_of(n, from + t * cols, cols), from + t * cols, 0, cols, is_bf16, to + t * cols);
}
#endif
