/* Between the residual stream and linear layers: rows normalised on their way in, stored, or added on their way out.
 *
 * Activations are kept in float32 and rounded to the model's type wherever a PyTorch implementation would store them.
 */
#ifndef STREAM_H
#define STREAM_H
#include "linear.h"
#include "model.h"

/* Rows [tokens, cols] through a norm, as the input of linear layers. */
static void set_normed(const Engine *e, const Norm *n, const float *from, int64_t tokens, int64_t cols, Input *x) {
    norm_rows(n, from, tokens, cols, e->m.is_bf16, x->values);
    set_input(x, cols, tokens);
}

/* Rows of a unit as numbers: the last unit may have fewer than UNIT. */
INLINE int64_t rows_of(const Linear *l, int64_t unit) { return l->rows - unit * UNIT < UNIT ? l->rows - unit * UNIT : UNIT; }

/* This thread's outputs of a linear layer, rounded, at y[t * stride + row]: stored, or scaled and added. */
INLINE void put_rows(
    int adds, float scale, float *y, int64_t stride, const Linear *l, Input *x, int64_t tokens, int is_bf16, int thread, int threads) {
    int64_t from, to;
    fv out[MAX_TOKENS][PARTS];
    sum_groups(l, x);
    share((l->rows + UNIT - 1) / UNIT, thread, threads, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        unit_rows(l, unit, x, tokens, out);
        for (int64_t t = 0; t < tokens; t++) {
            const float *row = (const float *)out[t];
            float *own = y + t * stride + unit * UNIT;
            for (int part = 0; part < PARTS; part++) out[t][part] = rounded(out[t][part], is_bf16);
            if (!adds) memcpy(own, row, rows_of(l, unit) * sizeof(float));
            else for (int64_t i = 0; i < rows_of(l, unit); i++) own[i] = rounded1(own[i] + rounded1(row[i] * scale, is_bf16), is_bf16);
        }
    }
}

static void store_rows(float *y, int64_t stride, const Linear *l, Input *x, int64_t tokens, int is_bf16, int thread, int threads) {
    put_rows(0, 1.f, y, stride, l, x, tokens, is_bf16, thread, threads);
}

/* To the stream. */
static void add_rows(Engine *e, float scale, const Linear *l, Input *x, int64_t tokens, int thread, int threads) {
    put_rows(1, scale, e->hidden, e->m.hidden, l, x, tokens, e->m.is_bf16, thread, threads);
}

/* This thread's tokens of `output`, rounded already, through the sub-layer's last norm, scaled and added to the stream. */
static void add_output(Engine *e, const SubLayer *s, int64_t tokens, int thread, int threads) {
    const int64_t cols = e->m.hidden;
    const int is_bf16 = e->m.is_bf16;
    int64_t from, to;
    share(tokens, thread, threads, &from, &to);
    norm_rows(&s->post, e->output + from * cols, to - from, cols, is_bf16, e->output + from * cols);
    for (int64_t i = from * cols; i < to * cols; i++)
        e->hidden[i] = rounded1(e->hidden[i] + rounded1(e->output[i] * s->residual_scale, is_bf16), is_bf16);
}

/* What a sub-layer's last linear layer makes of `x`, added to the stream by all threads together. */
static void finish(Engine *e, const SubLayer *s, const Linear *last, Input *x, int64_t tokens, int thread, int threads) {
    if (s->post.kind == NORM_NONE) {
        add_rows(e, s->residual_scale, last, x, tokens, thread, threads);
    } else {
        store_rows(e->output, e->m.hidden, last, x, tokens, e->m.is_bf16, thread, threads);
        barrier(&e->barrier, threads);
        add_output(e, s, tokens, thread, threads);
    }
    barrier(&e->barrier, threads);
}
#endif
