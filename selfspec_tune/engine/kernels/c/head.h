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

/* The tokens of the first rows of the head's weight and, past these, some others. Mirrored in binding.py. */
typedef struct {
    Linear first, others; /* others [at most MAX_OTHERS, hidden]: of no rows where there are none */
    const int64_t *ids;   /* of `others`, ascending */
} Head;

/* The most probable tokens of HEAD_UNITS units, one after another: one candidate a row of the unit. */
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

INLINE int64_t blocks_of(const Linear *l) { return (l->rows + UNIT * HEAD_UNITS - 1) / (UNIT * HEAD_UNITS); }

/* Logits a row: up to the last token that a head has. */
INLINE int64_t width_of(const Head *h) { return h->others.rows ? h->ids[h->others.rows - 1] + 1 : h->first.rows; }

/* One block of rows of a linear layer: logits [tokens, stride] where there is room for them, and the highest of each.
 * ids: the rows' tokens, or null where they are their numbers. */
static void head_block(const Model *m, float *logits, int64_t stride, int is_certainty_wanted, const Linear *l, const int64_t *ids,
                       int64_t block, const Input *x, int64_t tokens, Highest *highest) {
    const fv lowest = splat(-1e30f);
    const int64_t units = (l->rows + UNIT - 1) / UNIT, from = block * HEAD_UNITS;
    Running running[MAX_TOKENS];
    fv out[MAX_TOKENS][PARTS];
    for (int64_t t = 0; t < tokens; t++)
        for (int part = 0; part < PARTS; part++) {
            running[t].logit[part] = running[t].second[part] = lowest;
            running[t].sum[part] = running[t].weighted[part] = splat(0.f);
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
            float *to = logits ? logits + t * stride : NULL;
            if (to && !ids) memcpy(to + unit * UNIT, out[t], rows_of(l, unit) * sizeof(float));
            for (int64_t i = 0; to && ids && i < rows_of(l, unit); i++) to[ids[unit * UNIT + i]] = ((const float *)out[t])[i];
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        highest[t] = highest_of(running + t, is_certainty_wanted);
        if (ids) highest[t].token = ids[highest[t].token];
    }
}

/* Logits of this thread's blocks: kept where there is room for them, and the highest of each block. */
static void head_rows(Engine *e, float *logits, int is_certainty_wanted, const Head *h, Input *x, int64_t tokens, int thread,
                      int threads) {
    const int64_t first = blocks_of(&h->first);
    int64_t from, to;
    sum_groups(&h->first, x);
    share(first + blocks_of(&h->others), thread, threads, &from, &to);
    for (int64_t block = from; block < to; block++) {
        const int is_other = block >= first;
        head_block(&e->m, logits, width_of(h), is_certainty_wanted, is_other ? &h->others : &h->first, is_other ? h->ids : NULL,
                   is_other ? block - first : block, x, tokens, e->highest + block * MAX_TOKENS);
    }
}

/* The highest of all blocks, whose sums are added in their order. */
static Best best_of(const Engine *e, int is_certainty_wanted, const Head *head, int64_t t) {
    const int64_t blocks = blocks_of(&head->first) + blocks_of(&head->others);
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
