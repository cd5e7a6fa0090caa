/* The output head: logits, and of every row the most probable token. */
#ifndef HEAD_H
#define HEAD_H
#include "stream.h"

/* The most probable token of a row of logits, and what its probability is computed from. */
typedef struct {
    int64_t token;
    float logit, log_sum; /* log_sum: logarithm of the sum of exp(logit) over the row */
} Best;

/* The same of HEAD_UNITS units, one after another: one candidate a row of the unit. */
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

/* Logits of this thread's rows: kept where there is room for them, and the highest of each block. */
static void head_rows(Engine *e, float *logits, const Linear *l, Input *x, int64_t tokens, int thread, int threads) {
    const fv lowest = splat(-1e30f);
    const int64_t units = (l->rows + UNIT - 1) / UNIT;
    Running running[MAX_TOKENS];
    int64_t from, to;
    fv out[MAX_TOKENS][PARTS];
    sum_groups(l, x);
    share((units + HEAD_UNITS - 1) / HEAD_UNITS, thread, threads, &from, &to);
    for (int64_t unit = from * HEAD_UNITS; unit < to * HEAD_UNITS && unit < units; unit++) {
        if (unit % HEAD_UNITS == 0)
            for (int64_t t = 0; t < tokens; t++)
                for (int part = 0; part < PARTS; part++) {
                    running[t].logit[part] = lowest;
                    running[t].sum[part] = splat(0.f);
                    running[t].token[part] = splat_i(0);
                }
        unit_rows(l, unit, x, tokens, out);
        for (int64_t t = 0; t < tokens; t++) {
            Running *r = running + t;
            for (int part = 0; part < PARTS; part++) {
                const iv row = lane_numbers() + part * LANES, there = row < splat_i((int32_t)rows_of(l, unit));
                const fv v = choose(there, logits_of(&e->m, out[t][part]), lowest);
                const iv higher = v > r->logit[part];
                const fv highest = choose(higher, v, r->logit[part]);
                r->sum[part] = r->sum[part] * exp_v(r->logit[part] - highest) + choose(there, exp_v(v - highest), splat(0.f));
                r->token[part] = (higher & (row + (int32_t)(unit * UNIT))) | (~higher & r->token[part]);
                r->logit[part] = highest;
                out[t][part] = v;
            }
            if (logits) memcpy(logits + t * l->rows + unit * UNIT, out[t], rows_of(l, unit) * sizeof(float));
        }
        if ((unit + 1) % HEAD_UNITS == 0 || unit + 1 == units)
            for (int64_t t = 0; t < tokens; t++) e->highest[unit / HEAD_UNITS * MAX_TOKENS + t] = highest_of(running + t);
    }
}

/* The highest of all blocks, whose sums are added in their order. */
static Best best_of(const Engine *e, int64_t rows, int64_t t) {
    const int64_t blocks = (rows + UNIT * HEAD_UNITS - 1) / (UNIT * HEAD_UNITS);
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
