/* The output head: logits, and of every row the most probable token. */
#ifndef HEAD_H
#define HEAD_H
#include "stream.h"

/* The most probable token of a row of logits, and what its probability is computed from. */
typedef struct {
    int64_t token;
    float logit, log_sum; /* log_sum: logarithm of the sum of exp(logit) over the row */
} Best;

/* The tokens of the first rows of the head's weight and, past these, some others. Mirrored in binding.py. */
typedef struct {
    Linear first, others; /* others [at most MAX_OTHERS, hidden]: of no rows where there are none */
    const int64_t *ids;   /* of `others`, ascending */
} Head;

/* The most probable tokens of HEAD_UNITS units, one after another: one candidate a row of the unit. */
typedef struct {
    fv logit[PARTS], sum[PARTS]; /* sum of exp(logit - this row's highest) */
    iv token[PARTS];
} Running;

/* The highest of the rows; of equal ones, the lowest token. */
static Highest highest_of(const Running *r) {
    const float *logits = (const float *)r->logit;
    const int32_t *tokens = (const int32_t *)r->token;
    Highest highest = {tokens[0], logits[0], 0};
    for (int i = 1; i < UNIT; i++)
        if (logits[i] > highest.logit || (logits[i] == highest.logit && tokens[i] < highest.token))
            highest = (Highest){tokens[i], logits[i], 0};
    float sums[UNIT];
    for (int part = 0; part < PARTS; part++)
        store_f(sums + part * LANES, r->sum[part] * exp_v(r->logit[part] - splat(highest.logit)));
    for (int step = UNIT / 2; step; step >>= 1)
        for (int i = 0; i < step; i++) sums[i] += sums[i + step];
    highest.sum = sums[0];
    return highest;
}

/* Logits of the head's outputs: scaled, and capped. */
INLINE fv logits_of(const Model *m, fv v) {
    v = rounded(v, m->is_bf16);
    if (m->logit_scale != 1.f) v = rounded(v * m->logit_scale, m->is_bf16);
    if (m->logit_cap != 0.f) v = rounded(rounded(tanh_v(rounded(v / m->logit_cap, m->is_bf16)), m->is_bf16) * m->logit_cap, m->is_bf16);
    return v;
}

INLINE int64_t blocks_of(const Linear *l) { return (l->rows + UNIT * HEAD_UNITS - 1) / (UNIT * HEAD_UNITS); }

/* Logits a row: up to the last token that a head has. */
INLINE int64_t width_of(const Head *h) { return h->others.rows ? h->ids[h->others.rows - 1] + 1 : h->first.rows; }

/* One block of rows of a linear layer: logits [tokens, stride] where there is room for them, and the highest of each.
 * ids: the rows' tokens, or null where they are their numbers. */
static void head_block(const Model *m, float *logits, int64_t stride, const Linear *l, const int64_t *ids, int64_t block,
                       const Input *x, int64_t tokens, Highest *highest) {
    const fv lowest = splat(-1e30f);
    const int64_t units = (l->rows + UNIT - 1) / UNIT, from = block * HEAD_UNITS;
    Running running[MAX_TOKENS];
    fv out[MAX_TOKENS][PARTS];
    for (int64_t t = 0; t < tokens; t++)
        for (int part = 0; part < PARTS; part++) {
            running[t].logit[part] = lowest;
            running[t].sum[part] = splat(0.f);
            running[t].token[part] = splat_i(0);
        }
    for (int64_t unit = from; unit < from + HEAD_UNITS && unit < units; unit++) {
        unit_rows(l, unit, x, tokens, out);
        for (int64_t t = 0; t < tokens; t++) {
            Running *r = running + t;
            for (int part = 0; part < PARTS; part++) {
                const iv row = lane_numbers() + part * LANES, there = row < splat_i((int32_t)rows_of(l, unit));
                const fv v = choose(there, logits_of(m, out[t][part]), lowest);
                const iv higher = v > r->logit[part];
                const fv highest = choose(higher, v, r->logit[part]);
                r->sum[part] = r->sum[part] * exp_v(r->logit[part] - highest) + choose(there, exp_v(v - highest), splat(0.f));
                r->token[part] = (higher & (row + (int32_t)(unit * UNIT))) | (~higher & r->token[part]);
                r->logit[part] = highest;
                out[t][part] = v;
            }
            float *to = logits ? logits + t * stride : NULL;
            if (to && !ids) memcpy(to + unit * UNIT, out[t], rows_of(l, unit) * sizeof(float));
            for (int64_t i = 0; to && ids && i < rows_of(l, unit); i++) to[ids[unit * UNIT + i]] = ((const float *)out[t])[i];
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        highest[t] = highest_of(running + t);
        if (ids) highest[t].token = ids[highest[t].token];
    }
}

/* Logits of this thread's blocks: kept where there is room for them, and the highest of each block. */
static void head_rows(Engine *e, float *logits, const Head *h, Input *x, int64_t tokens, int thread, int threads) {
    const int64_t first = blocks_of(&h->first);
    int64_t from, to;
    sum_groups(&h->first, x);
    share(first + blocks_of(&h->others), thread, threads, &from, &to);
    for (int64_t block = from; block < to; block++) {
        const int is_other = block >= first;
        head_block(&e->m, logits, width_of(h), is_other ? &h->others : &h->first, is_other ? h->ids : NULL,
                   is_other ? block - first : block, x, tokens, e->highest + block * MAX_TOKENS);
    }
}

/* The highest of all blocks, whose sums are added in their order. */
static Best best_of(const Engine *e, const Head *head, int64_t t) {
    const int64_t blocks = blocks_of(&head->first) + blocks_of(&head->others);
    const Highest *h = e->highest + t;
    Best best = {h->token, h->logit, 0};
    double sum = 0;
    for (int64_t i = 1; i < blocks; i++)
        if (h[i * MAX_TOKENS].logit > best.logit) best = (Best){h[i * MAX_TOKENS].token, h[i * MAX_TOKENS].logit, 0};
    for (int64_t i = 0; i < blocks; i++) sum += h[i * MAX_TOKENS].sum * exp((double)h[i * MAX_TOKENS].logit - best.logit);
    best.log_sum = best.logit + (float)log(sum);
    return best;
}
#endif
