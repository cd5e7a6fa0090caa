/* An MLP: gated or plain, of any activation. */
#ifndef MLP_H
#define MLP_H
#include "stream.h"

static void mlp(Engine *e, const SubLayer *s, const float *stream, int64_t tokens, int thread, int threads) {
    const int is_bf16 = e->m.is_bf16, is_gated = s->mlp.is_gated;
    const Activation activation = s->mlp.activation;
    const Linear *gate = &s->first, *up = &s->second;
    const int64_t width = gate->rows;
    Input *x = &e->local[thread], y = e->shared;
    fv g[MAX_TOKENS][PARTS], u[MAX_TOKENS][PARTS];
    int64_t from, to;
    y.cols = width;
    y.tokens = tokens;
    y.codes = x->codes; /* each thread's own */
    y.steps = x->steps;
    y.code_sums = x->code_sums;
    set_normed(e, &s->norm, stream, tokens, e->m.hidden, x);
    quantise_inputs(gate, x);
    share((width + UNIT - 1) / UNIT, thread, threads, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        unit_rows(gate, unit, x, tokens, g);
        if (is_gated) unit_rows(up, unit, x, tokens, u);
        const int64_t n = unit * UNIT, count = rows_of(gate, unit);
        for (int64_t t = 0; t < tokens; t++)
            for (int part = 0; part < PARTS && part * LANES < count; part++) {
                const int64_t k = n + part * LANES, left = count - part * LANES < LANES ? count - part * LANES : LANES;
                fv v = rounded(activated(&activation, rounded(g[t][part], is_bf16)), is_bf16);
                if (is_gated) v = rounded(v * rounded(u[t][part], is_bf16), is_bf16);
                store_some(y.values + t * width + k, v, left);
                set_copies(&y, t, k, v, left);
            }
    }
    barrier(&e->barrier, threads);
    if (s->inner.kind == NORM_NONE) {
        finish(e, s, &s->third, &y, tokens, thread, threads);
    } else {
        set_normed(e, &s->inner, y.values, tokens, width, x);
        finish(e, s, &s->third, x, tokens, thread, threads);
    }
}
#endif
