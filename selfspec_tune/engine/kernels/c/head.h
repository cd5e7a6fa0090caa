/* The output head: logits, and of every row the most probable token. */
#ifndef HEAD_H
#define HEAD_H
#include "stream.h"

/* The most probable token of a row of logits, what its probability is computed from, and how sure the row is of it. */
typedef struct {
    int64_t token;
    float logit, log_sum;  /* log_sum: logarithm of the sum of exp(logit) over the row */
    float second, entropy; /* the second highest logit, and -sum of p * log(p); 0 where they were not asked for */
} Best;

/* The same of HEAD_UNITS units, one after another: one candidate a row of the unit. */
typedef struct {
    fv logit[PARTS], sum[PARTS]; /* sum of exp(logit - this row's highest) */
    fv second[PARTS], weighted[PARTS];
    iv token[PARTS];
} Running;

/* The sum of UNIT numbers, always in the same order. */
static float unit_sum(float *numbers) {
    for (int step = UNIT / 2; step; step >>= 1)
        for (int i = 0; i < step; i++) numbers[i] += numbers[i + step];
    return numbers[0];
}

/* The highest of the rows; of equal ones, the lowest token. */
static Highest highest_of(const Running *r, int is_certainty_wanted) {
    const float *logits = (const float *)r->logit, *seconds = (const float *)r->second;
    const int32_t *tokens = (const int32_t *)r->token;
    int first = 0;
    for (int i = 1; i < UNIT; i++)
        if (logits[i] > logits[first] || (logits[i] == logits[first] && tokens[i] < tokens[first])) first = i;
    Highest highest = {tokens[first], logits[first], 0, 0, 0};
    float sums[UNIT], weighted[UNIT];
    for (int part = 0; part < PARTS; part++) {
        const fv below = r->logit[part] - splat(highest.logit), share = exp_v(below);
        store_f(sums + part * LANES, r->sum[part] * share);
        if (is_certainty_wanted) store_f(weighted + part * LANES, share * (r->weighted[part] + below * r->sum[part]));
    }
    highest.sum = unit_sum(sums);
    if (!is_certainty_wanted) return highest;
    highest.weighted = unit_sum(weighted);
    highest.second = seconds[first];
    for (int i = 0; i < UNIT; i++)
        if (i != first && logits[i] > highest.second) highest.second = logits[i];
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
static void head_rows(Engine *e, float *logits, int is_certainty_wanted, const Linear *l, Input *x, int64_t tokens, int thread,
                      int threads) {
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
                    running[t].sum[part] = running[t].weighted[part] = splat(0.f);
                    running[t].second[part] = lowest;
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
                const fv fallen = r->logit[part] - highest, shrunk = exp_v(fallen), below = v - highest;
                const fv share = choose(there, exp_v(below), splat(0.f));
                if (is_certainty_wanted) {
                    const fv lower = choose(higher, r->logit[part], v);
                    r->second[part] = choose(lower > r->second[part], lower, r->second[part]);
                    const fv lowered = choose(below > splat(-87.f), below, splat(-87.f)); /* a finite one, as exp_v takes it */
                    r->weighted[part] = shrunk * (r->weighted[part] + fallen * r->sum[part]) + share * lowered;
                }
                r->sum[part] = r->sum[part] * shrunk + share;
                r->token[part] = (higher & (row + (int32_t)(unit * UNIT))) | (~higher & r->token[part]);
                r->logit[part] = highest;
                out[t][part] = v;
            }
            if (logits) memcpy(logits + t * l->rows + unit * UNIT, out[t], rows_of(l, unit) * sizeof(float));
        }
        if ((unit + 1) % HEAD_UNITS == 0 || unit + 1 == units)
            for (int64_t t = 0; t < tokens; t++)
                e->highest[unit / HEAD_UNITS * MAX_TOKENS + t] = highest_of(running + t, is_certainty_wanted);
    }
}

/* The highest of all blocks, whose sums are added in their order. */
static Best best_of(const Engine *e, int is_certainty_wanted, int64_t rows, int64_t t) {
    const int64_t blocks = (rows + UNIT * HEAD_UNITS - 1) / (UNIT * HEAD_UNITS);
    const Highest *h = e->highest + t;
    int64_t first = 0;
    for (int64_t i = 1; i < blocks; i++)
        if (h[i * MAX_TOKENS].logit > h[first * MAX_TOKENS].logit) first = i;
    Best best = {h[first * MAX_TOKENS].token, h[first * MAX_TOKENS].logit, 0, 0, 0};
    double sum = 0, weighted = 0;
    for (int64_t i = 0; i < blocks; i++) {
        const Highest *of = h + i * MAX_TOKENS;
        const double below = (double)of->logit - best.logit, share = exp(below);
        sum += of->sum * share;
        weighted += share * (of->weighted + below * of->sum);
    }
    best.log_sum = best.logit + (float)log(sum);
    if (!is_certainty_wanted) return best;
    best.entropy = (float)(log(sum) - weighted / sum);
    best.second = h[first * MAX_TOKENS].second;
    for (int64_t i = 0; i < blocks; i++)
        if (i != first && h[i * MAX_TOKENS].logit > best.second) best.second = h[i * MAX_TOKENS].logit;
    return best;
}
#endif
