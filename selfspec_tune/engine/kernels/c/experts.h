/* A mixture of experts: a router, the experts that it chooses, and an MLP for every token beside them.
 *
 * A weight is read once a pass, for all the tokens that chose its expert. What each expert gives a token is computed by
 * itself, and a token's shares are added in the order of rank: its bits do not depend on the tokens beside it.
 */
#ifndef EXPERTS_H
#define EXPERTS_H
#include "stream.h"

/* Rows `first` … of a linear layer as one of its own; of int4 weights whole units. */
static Linear rows_from(const Linear *l, int64_t first, int64_t rows) {
    Linear part = *l;
    const int64_t at = l->format == FORMAT_INT4 ? first / UNIT * (l->cols / GROUP) * group_bytes(l) : first * l->cols * weight_size(l->format);
    part.rows = rows;
    part.data = (const char *)l->data + at;
    if (l->scales) part.scales = l->scales + first;
    if (l->bias) part.bias = l->bias + first;
    return part;
}

/* The pairs of a token and a rank, token * chosen + rank, that a thread has sorted by expert. */
typedef struct {
    int32_t *starts; /* [experts + 1]: of each expert in `pairs` */
    int32_t *pairs;  /* [tokens * chosen] */
} Routes;

static Routes routes_of(const Engine *e, int thread) {
    int32_t *numbers = e->mixture.routes + thread * (e->m.experts + 1 + MAX_TOKENS * e->m.chosen);
    return (Routes){numbers, numbers + e->m.experts + 1};
}

static void scores_of(int is_sigmoid, const float *logits, int64_t count, float *scores) {
    float highest = logits[0], sum = 0;
    for (int64_t i = 1; i < count; i++) highest = logits[i] > highest ? logits[i] : highest;
    for (int64_t i = 0; i < count; i += LANES) {
        const fv x = load_some(logits + i, count - i);
        store_some(scores + i, is_sigmoid ? 1.f / (1.f + exp_v(-x)) : exp_v(x - highest), count - i);
    }
    if (is_sigmoid) return;
    for (int64_t i = 0; i < count; i++) sum += scores[i];
    for (int64_t i = 0; i < count; i++) scores[i] /= sum;
}

/* The place of the highest of `told` that is not taken yet, of equal ones the first; it is taken then. */
static int64_t take_best(const float *told, uint8_t *taken, int64_t count) {
    int64_t best = 0;
    while (taken[best] && best + 1 < count) best++;
    for (int64_t i = best + 1; i < count; i++)
        if (!taken[i] && told[i] > told[best]) best = i;
    taken[best] = 1;
    return best;
}

/* Makes the experts of all but the best groups the last to be chosen. */
static void keep_best_groups(const Experts *x, float *told) {
    const int64_t size = x->count / x->groups;
    float ranks[MAX_EXPERTS];
    uint8_t kept[MAX_EXPERTS] = {0};
    for (int64_t g = 0; g < x->groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int64_t i = g * size; i < (g + 1) * size; i++) {
            if (told[i] > first) { second = first; first = told[i]; }
            else if (told[i] > second) second = told[i];
        }
        ranks[g] = first + second;
    }
    for (int i = 0; i < x->kept_groups; i++) take_best(ranks, kept, x->groups);
    for (int64_t i = 0; i < x->count; i++)
        if (!kept[i / size]) told[i] = -INFINITY;
}

/* A token's experts [chosen] and their weights, from its logits. */
static void choose_experts(const Experts *x, const float *logits, int is_bf16, int32_t *experts, float *weights) {
    float scores[MAX_EXPERTS], told[MAX_EXPERTS], sum = 0;
    uint8_t taken[MAX_EXPERTS] = {0};
    if (x->is_chosen_first) memcpy(scores, logits, x->count * sizeof(float));
    else scores_of(x->is_sigmoid, logits, x->count, scores);
    for (int64_t i = 0; i < x->count; i++) told[i] = scores[i] + (x->choice_bias ? x->choice_bias[i] : 0.f);
    if (x->kept_groups < x->groups) keep_best_groups(x, told);
    for (int i = 0; i < x->chosen; i++) {
        experts[i] = (int32_t)take_best(told, taken, x->count);
        weights[i] = scores[experts[i]];
    }
    if (x->is_chosen_first) scores_of(x->is_sigmoid, weights, x->chosen, weights);
    for (int i = 0; i < x->chosen; i++) sum += weights[i];
    sum = sum + x->sum_epsilon > x->least_sum ? sum + x->sum_epsilon : x->least_sum;
    for (int i = 0; i < x->chosen; i++) {
        const float weight = (x->is_renormalised ? weights[i] / sum : weights[i]) * x->scale;
        weights[i] = x->rounds_weights ? rounded1(weight, is_bf16) : weight;
    }
}

/* Sorts the pairs of all tokens by expert; within one, by token. */
static void sort_pairs(const Experts *x, const int32_t *experts, int64_t tokens, Routes to) {
    const int64_t pairs = tokens * x->chosen;
    memset(to.starts, 0, (x->count + 1) * sizeof(int32_t));
    for (int64_t p = 0; p < pairs; p++) to.starts[experts[p] + 1]++;
    for (int64_t i = 0; i < x->count; i++) to.starts[i + 1] += to.starts[i];
    for (int64_t p = 0; p < pairs; p++) to.pairs[to.starts[experts[p]]++] = (int32_t)p;
    for (int64_t i = x->count; i > 0; i--) to.starts[i] = to.starts[i - 1];
    to.starts[0] = 0;
}

/* Rows of `from` [.., cols], row pairs[i] / `each` for the i-th of `count`, as the input of linear layers. */
static void gather_pairs(Input *to, const float *from, const int32_t *pairs, int64_t count, int64_t each, int64_t cols) {
    for (int64_t i = 0; i < count; i++) memcpy(to->values + i * cols, from + pairs[i] / each * cols, cols * sizeof(float));
    set_input(to, cols, count);
}

/* activation(gate) * up of one unit of rows, of the i-th of `count` inputs to row pairs[i] of `to` [.., width]; null: i. */
static void gated_unit(const Activation *a, const Linear *gate, const Linear *up, int64_t unit, const Input *x, int64_t count,
                       const int32_t *pairs, int64_t width, int is_bf16, float *to) {
    fv g[MAX_TOKENS][PARTS], u[MAX_TOKENS][PARTS];
    unit_rows(gate, unit, x, count, g);
    unit_rows(up, unit, x, count, u);
    for (int64_t i = 0; i < count; i++)
        for (int part = 0; part < PARTS && part * LANES < rows_of(gate, unit); part++) {
            const fv v = rounded(activated(a, rounded(g[i][part], is_bf16)), is_bf16) * rounded(u[i][part], is_bf16);
            store_some(to + (pairs ? pairs[i] : i) * width + unit * UNIT + part * LANES, rounded(v, is_bf16),
                       rows_of(gate, unit) - part * LANES);
        }
}

/* This thread's share of what experts' output layers read: `gated` [pairs, width], of the normalised input `x`. */
static void gate_experts(Engine *e, const Experts *m, Input *x, Routes routes, int thread, int threads) {
    const int64_t units = (m->width + UNIT - 1) / UNIT, hidden = e->m.hidden;
    Input *own = &e->mixture.gathered[thread];
    int64_t active = 0, from, to, at = 0;
    for (int64_t i = 0; i < m->count; i++) active += routes.starts[i + 1] > routes.starts[i];
    share(active * units, thread, threads, &from, &to);
    for (int64_t i = 0; i < m->count; i++) {
        const int64_t count = routes.starts[i + 1] - routes.starts[i], first = from > at ? from - at : 0;
        const int32_t *pairs = routes.pairs + routes.starts[i];
        if (!count) continue;
        at += units;
        if (at <= from) continue;
        if (at - units >= to) break;
        const Linear gate = rows_from(&m->gate_up, i * 2 * m->width, m->width);
        const Linear up = rows_from(&m->gate_up, (i * 2 + 1) * m->width, m->width);
        const int is_all = count == x->tokens; /* in the order of tokens, as pairs are */
        if (!is_all) gather_pairs(own, x->values, pairs, count, m->chosen, hidden);
        Input *in = is_all ? x : own;
        sum_groups(&gate, in);
        for (int64_t unit = first; unit < units && at - units + unit < to; unit++)
            gated_unit(&m->activation, &gate, &up, unit, in, count, pairs, m->width, e->m.is_bf16, e->mixture.gated);
    }
}

/* This thread's columns of each expert's share: `shares` [pairs, hidden], weighed. */
static void weigh_experts(Engine *e, const Experts *m, Routes routes, int64_t first, int64_t last, int thread) {
    const int is_bf16 = e->m.is_bf16;
    const int64_t hidden = e->m.hidden;
    Input *own = &e->mixture.gathered[thread];
    fv out[MAX_TOKENS][PARTS];
    for (int64_t i = 0; i < m->count; i++) {
        const int64_t count = routes.starts[i + 1] - routes.starts[i];
        const int32_t *pairs = routes.pairs + routes.starts[i];
        if (!count) continue;
        const Linear down = rows_from(&m->down, i * hidden, hidden);
        gather_pairs(own, e->mixture.gated, pairs, count, 1, m->width);
        sum_groups(&down, own);
        for (int64_t unit = first; unit < last; unit++) {
            unit_rows(&down, unit, own, count, out);
            for (int64_t p = 0; p < count; p++)
                for (int part = 0; part < PARTS && part * LANES < rows_of(&down, unit); part++) {
                    fv v = rounded(out[p][part], is_bf16) * e->mixture.weights[pairs[p]];
                    if (m->rounds_weights) v = rounded(v, is_bf16);
                    store_some(e->mixture.shares + pairs[p] * hidden + unit * UNIT + part * LANES, v, rows_of(&down, unit) - part * LANES);
                }
        }
    }
}

/* This thread's columns of the MLP for every token: `beside` [tokens, hidden]. */
static void weigh_shared(Engine *e, const Experts *m, int64_t tokens, int64_t first, int64_t last, int thread) {
    const int is_bf16 = e->m.is_bf16;
    const Linear *down = &m->shared_down;
    Input *own = &e->mixture.gathered[thread];
    fv out[MAX_TOKENS][PARTS];
    memcpy(own->values, e->mixture.shared_gated, tokens * down->cols * sizeof(float));
    set_input(own, down->cols, tokens);
    sum_groups(down, own);
    for (int64_t unit = first; unit < last; unit++) {
        unit_rows(down, unit, own, tokens, out);
        for (int64_t t = 0; t < tokens; t++)
            for (int part = 0; part < PARTS && part * LANES < rows_of(down, unit); part++) {
                fv v = rounded(out[t][part], is_bf16);
                if (m->has_shared_weight) v = rounded(v * e->mixture.shared_weights[t], is_bf16);
                store_some(e->mixture.beside + t * down->rows + unit * UNIT + part * LANES, v, rows_of(down, unit) - part * LANES);
            }
    }
}

/* Numbers `from` … `to` of a token: its shares in the order of rank, what is beside them, and the residual. */
static void add_shares(Engine *e, const SubLayer *s, int64_t t, int64_t from, int64_t to) {
    const Experts *m = s->experts;
    const int64_t hidden = e->m.hidden;
    const int is_bf16 = e->m.is_bf16;
    for (int64_t i = from; i < to; i++) {
        float sum = e->mixture.shares[t * m->chosen * hidden + i];
        for (int64_t rank = 1; rank < m->chosen; rank++) sum += e->mixture.shares[(t * m->chosen + rank) * hidden + i];
        sum = rounded1(sum, is_bf16);
        if (m->has_shared) sum = rounded1(sum + e->mixture.beside[t * hidden + i], is_bf16);
        if (s->post.kind != NORM_NONE) { e->output[t * hidden + i] = sum; continue; }
        float *h = e->hidden + t * hidden + i;
        *h = rounded1(*h + rounded1(sum * s->residual_scale, is_bf16), is_bf16);
    }
}

static void experts(Engine *e, const SubLayer *s, const float *stream, int64_t tokens, int thread, int threads) {
    const Experts *m = s->experts;
    const int64_t hidden = e->m.hidden;
    const int is_bf16 = e->m.is_bf16;
    const Routes routes = routes_of(e, thread);
    Input *x = &e->local[thread];
    int64_t from, to;
    set_normed(e, &s->norm, stream, tokens, hidden, x);
    store_rows(e->mixture.logits, m->count, &m->router, x, tokens, is_bf16 && m->rounds_logits, thread, threads);
    if (m->has_shared) {
        share((m->shared_gate.rows + UNIT - 1) / UNIT, thread, threads, &from, &to);
        sum_groups(&m->shared_gate, x);
        for (int64_t unit = from; unit < to; unit++)
            gated_unit(&m->shared_activation, &m->shared_gate, &m->shared_up, unit, x, tokens, NULL, m->shared_gate.rows, is_bf16, e->mixture.shared_gated);
    }
    if (m->has_shared_weight && thread == 0) {
        store_rows(e->mixture.shared_weights, 1, &m->shared_weight, x, tokens, is_bf16, 0, 1);
        for (int64_t t = 0; t < tokens; t++)
            e->mixture.shared_weights[t] = rounded1((1.f / (1.f + exp_v(splat(-e->mixture.shared_weights[t]))))[0], is_bf16);
    }
    barrier(&e->barrier, threads);
    share(tokens, thread, threads, &from, &to);
    for (int64_t t = from; t < to; t++)
        choose_experts(m, e->mixture.logits + t * m->count, is_bf16, e->mixture.chosen + t * m->chosen, e->mixture.weights + t * m->chosen);
    barrier(&e->barrier, threads);
    sort_pairs(m, e->mixture.chosen, tokens, routes);
    gate_experts(e, m, x, routes, thread, threads);
    barrier(&e->barrier, threads);
    share((hidden + UNIT - 1) / UNIT, thread, threads, &from, &to);
    weigh_experts(e, m, routes, from, to, thread);
    if (m->has_shared) weigh_shared(e, m, tokens, from, to, thread);
    for (int64_t t = 0; t < tokens; t++) add_shares(e, s, t, from * UNIT, to * UNIT < hidden ? to * UNIT : hidden);
    barrier(&e->barrier, threads);
    if (s->post.kind != NORM_NONE) {
        add_output(e, s, tokens, thread, threads);
        barrier(&e->barrier, threads);
    }
}
#endif
