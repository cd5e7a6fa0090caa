/* The passes of Llama-shaped models: embedding, any list of sub-layers, final norm and output head.
 *
 * Activations are kept in float32 and rounded to the model's type wherever a PyTorch
 * implementation would store them.
 */
#ifndef PASS_H
#define PASS_H
#include <stdlib.h>
#include "attention.h"
#include "linear.h"
#include "pool.h"

#define HEAD_UNITS 16 /* units of the output head whose exponentials are summed before such sums are added */

enum { KIND_ATTENTION = 0, KIND_MLP = 1 };

typedef struct {
    int32_t kind, layer;
    float epsilon, scale; /* of the norm; of the attention scores */
    const float *norm;
    Linear first, second, third; /* attention: qkv, output; MLP: gate, up, down */
} SubLayer;

typedef struct {
    int32_t is_bf16, threads;
    int64_t hidden, heads, kv_heads, head_size, widest, vocabulary, capacity; /* widest: largest input of any linear */
    double epsilon; /* of the final norm */
    const void *embedding;
    const float *final_norm;
    const float *cosine, *signed_sine; /* [capacity, head_size] */
    void *keys, *values;               /* [layers, kv_heads, capacity, head_size] */
} Model;

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

/* Its result: the highest of all rows. */
typedef struct {
    int64_t token;
    float logit, sum;
} Highest;

typedef struct {
    Model m;
    float *hidden, *qkv;          /* [tokens, …] */
    Input shared;                 /* MLP activations */
    Input *local;                 /* per thread: normalised or attended input */
    Highest *highest;             /* [blocks of HEAD_UNITS, tokens] */
    float *part, *part_max, *part_sum; /* [chunks, tokens, heads(, head_size)] */
    int64_t chunks;
    Barrier barrier;
} Engine;

static void normalise(const Engine *e, const float *weight, float epsilon, int64_t tokens, Input *x) {
    const int64_t cols = e->m.hidden;
    const int is_bf16 = e->m.is_bf16;
    for (int64_t t = 0; t < tokens; t++) {
        const float *h = e->hidden + t * cols;
        float *f = x->values + t * cols;
        fv squares = splat(0.f);
        float tail = 0;
        int64_t k = 0;
        for (; k + LANES <= cols; k += LANES) { fv v = load_f(h + k); squares = add_product(squares, v, v); }
        for (; k < cols; k++) tail += h[k] * h[k];
        const float factor = 1.f / sqrtf((sum_of(squares) + tail) / (float)cols + epsilon);
        for (k = 0; k + LANES <= cols; k += LANES)
            store_f(f + k, rounded(rounded(load_f(h + k) * factor, is_bf16) * load_f(weight + k), is_bf16));
        for (; k < cols; k++) f[k] = rounded1(rounded1(h[k] * factor, is_bf16) * weight[k], is_bf16);
    }
    set_input(x, cols, tokens);
}

static void rotate_and_cache(Engine *e, int layer, int64_t start, int64_t token, int64_t head) {
    const Model *m = &e->m;
    const int64_t size = m->head_size, half = size / 2, all = m->heads + 2 * m->kv_heads;
    const int is_bf16 = m->is_bf16;
    float *row = e->qkv + (token * all + head) * size;
    if (head < m->heads + m->kv_heads) {
        const float *c = m->cosine + (start + token) * size, *s = m->signed_sine + (start + token) * size;
        for (int64_t i = 0; i < half; i++) {
            const float a = row[i], b = row[i + half];
            row[i] = rounded1(rounded1(a * c[i], is_bf16) + rounded1(b * s[i], is_bf16), is_bf16);
            row[i + half] = rounded1(rounded1(b * c[i + half], is_bf16) + rounded1(a * s[i + half], is_bf16), is_bf16);
        }
    }
    if (head < m->heads) return;
    const int is_key = head < m->heads + m->kv_heads;
    const int64_t kv_head = head - m->heads - (is_key ? 0 : m->kv_heads);
    const int64_t at = ((layer * m->kv_heads + kv_head) * m->capacity + start + token) * size;
    for (int64_t i = 0; i < size; i++) store_any1(is_key ? m->keys : m->values, at + i, row[i], is_bf16);
}

/* The query heads of one KV head against one chunk of positions, for every token that sees any of them. */
INLINE void attend_chunk(Engine *e, const int is_bf16, const SubLayer *s, int64_t start, int64_t tokens, int64_t kv_head, int64_t chunk) {
    const Model *m = &e->m;
    const int64_t size = m->head_size, group = m->heads / m->kv_heads, all = m->heads + 2 * m->kv_heads;
    const int64_t from = chunk * KV_CHUNK, base = ((s->layer * m->kv_heads + kv_head) * m->capacity + from) * size;
    float p[HEADS_AT_ONCE][KV_CHUNK];
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t seen = start + t + 1 - from;
        if (seen <= 0) continue;
        const int64_t count = seen < KV_CHUNK ? seen : KV_CHUNK;
        for (int64_t first = 0; first < group; first += HEADS_AT_ONCE) {
            const int64_t heads = group - first < HEADS_AT_ONCE ? group - first : HEADS_AT_ONCE;
            const int64_t head = kv_head * group + first, slot = (chunk * MAX_TOKENS + t) * m->heads + head;
            score(is_bf16, heads, e->qkv + (t * all + head) * size, m->keys, base, size, count, s->scale, p);
            for (int64_t h = 0; h < heads; h++) e->part_max[slot + h] = exponentiate(p[h], count, &e->part_sum[slot + h]);
            weigh_heads(heads, is_bf16, p, m->values, base, size, count, e->part + slot * size);
        }
    }
}

/* The chunks of every token and head put together, as the output projection's input. */
static void combine(Engine *e, int64_t start, int64_t tokens, Input *x) {
    const Model *m = &e->m;
    const int64_t size = m->head_size;
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t chunks = (start + t) / KV_CHUNK + 1;
        for (int64_t head = 0; head < m->heads; head++) {
            float most = -INFINITY, sum = 0;
            for (int64_t c = 0; c < chunks; c++) {
                const float v = e->part_max[(c * MAX_TOKENS + t) * m->heads + head];
                most = v > most ? v : most;
            }
            float *out = x->values + (t * m->heads + head) * size;
            memset(out, 0, size * sizeof(float));
            for (int64_t c = 0; c < chunks; c++) {
                const int64_t slot = (c * MAX_TOKENS + t) * m->heads + head;
                const float factor = expf(e->part_max[slot] - most);
                sum += e->part_sum[slot] * factor;
                const float *part = e->part + slot * size;
                for (int64_t d = 0; d < size; d++) out[d] += part[d] * factor;
            }
            for (int64_t d = 0; d < size; d++) out[d] = rounded1(out[d] / sum, m->is_bf16);
        }
    }
    set_input(x, m->heads * size, tokens);
}

/* Rows of a unit as numbers: the last unit may have fewer than UNIT. */
INLINE int64_t rows_of(const Linear *l, int64_t unit) { return l->rows - unit * UNIT < UNIT ? l->rows - unit * UNIT : UNIT; }

static void add_to_hidden(Engine *e, const Linear *l, Input *x, int64_t tokens, int thread, int threads) {
    const int is_bf16 = e->m.is_bf16;
    int64_t from, to;
    fv out[MAX_TOKENS][PARTS];
    sum_groups(l, x);
    share((l->rows + UNIT - 1) / UNIT, thread, threads, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        unit_rows(l, unit, x, tokens, out);
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t i = 0; i < rows_of(l, unit); i++) {
                float *h = e->hidden + t * e->m.hidden + unit * UNIT + i;
                *h = rounded1(*h + rounded1(((const float *)out[t])[i], is_bf16), is_bf16);
            }
    }
}

static void store_rows(float *y, int64_t stride, const Linear *l, Input *x, int64_t tokens, int is_bf16, int thread, int threads) {
    int64_t from, to;
    fv out[MAX_TOKENS][PARTS];
    sum_groups(l, x);
    share((l->rows + UNIT - 1) / UNIT, thread, threads, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        unit_rows(l, unit, x, tokens, out);
        for (int64_t t = 0; t < tokens; t++) {
            for (int part = 0; part < PARTS; part++) out[t][part] = rounded(out[t][part], is_bf16);
            memcpy(y + t * stride + unit * UNIT, out[t], rows_of(l, unit) * sizeof(float));
        }
    }
}

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
                const fv v = choose(there, rounded(out[t][part], e->m.is_bf16), lowest);
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

static void attention(Engine *e, const SubLayer *s, int64_t start, int64_t tokens, int thread, int threads) {
    const Model *m = &e->m;
    Input *x = &e->local[thread];
    const int64_t all = m->heads + 2 * m->kv_heads;
    normalise(e, s->norm, s->epsilon, tokens, x);
    store_rows(e->qkv, all * m->head_size, &s->first, x, tokens, m->is_bf16, thread, threads);
    barrier(&e->barrier, threads);
    int64_t from, to;
    share(tokens * all, thread, threads, &from, &to);
    for (int64_t i = from; i < to; i++) rotate_and_cache(e, s->layer, start, i / all, i % all);
    barrier(&e->barrier, threads);
    const int64_t chunks = (start + tokens - 1) / KV_CHUNK + 1;
    /* In turns: the last chunks, seldom full, come to different threads. */
    for (int64_t i = thread; i < m->kv_heads * chunks; i += threads) {
        if (m->is_bf16) attend_chunk(e, 1, s, start, tokens, i % m->kv_heads, i / m->kv_heads);
        else attend_chunk(e, 0, s, start, tokens, i % m->kv_heads, i / m->kv_heads);
    }
    barrier(&e->barrier, threads);
    combine(e, start, tokens, x);
    add_to_hidden(e, &s->second, x, tokens, thread, threads);
    barrier(&e->barrier, threads);
}

static void mlp(Engine *e, const SubLayer *s, int64_t tokens, int thread, int threads) {
    const int is_bf16 = e->m.is_bf16;
    const Linear *gate = &s->first, *up = &s->second;
    const int64_t width = gate->rows;
    Input *x = &e->local[thread], y = e->shared;
    fv g[MAX_TOKENS][PARTS], u[MAX_TOKENS][PARTS];
    int64_t from, to;
    y.cols = width;
    y.stride = padded(width);
    y.tokens = tokens;
    y.sums = x->sums; /* each thread's own */
    normalise(e, s->norm, s->epsilon, tokens, x);
    sum_groups(gate, x);
    share((width + UNIT - 1) / UNIT, thread, threads, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        unit_rows(gate, unit, x, tokens, g);
        unit_rows(up, unit, x, tokens, u);
        const int64_t n = unit * UNIT, count = rows_of(gate, unit);
        for (int64_t t = 0; t < tokens; t++)
            for (int part = 0; part < PARTS && part * LANES < count; part++) {
                const int64_t k = n + part * LANES, left = count - part * LANES < LANES ? count - part * LANES : LANES;
                fv v = rounded(g[t][part], is_bf16);
                v = rounded(v / (1.f + exp_v(-v)), is_bf16) * rounded(u[t][part], is_bf16);
                v = rounded(v, is_bf16);
                memcpy(y.values + t * width + k, &v, left * sizeof(float));
                set_copies(&y, t, k, v, left);
            }
    }
    barrier(&e->barrier, threads);
    add_to_hidden(e, &s->third, &y, tokens, thread, threads);
    barrier(&e->barrier, threads);
}

/* What one pass computes. */
typedef struct {
    Engine *e;
    const SubLayer *const *sublayers;
    int64_t num_sublayers;
    const Linear *head;
    const int64_t *tokens;
    int64_t count, start;
    float *logits;
} Pass;

static void run_pass(void *argument, int thread, int threads) {
    const Pass *p = argument;
    Engine *e = p->e;
    const Model *m = &e->m;
    int64_t from, to;
    share(p->count, thread, threads, &from, &to);
    for (int64_t t = from; t < to; t++)
        for (int64_t i = 0; i < m->hidden; i++)
            e->hidden[t * m->hidden + i] = load_any1(m->embedding, p->tokens[t] * m->hidden + i, m->is_bf16);
    barrier(&e->barrier, threads);
    for (int64_t i = 0; i < p->num_sublayers; i++) {
        const SubLayer *s = p->sublayers[i];
        if (s->kind == KIND_ATTENTION) attention(e, s, p->start, p->count, thread, threads);
        else mlp(e, s, p->count, thread, threads);
    }
    normalise(e, m->final_norm, (float)m->epsilon, p->count, &e->local[thread]);
    head_rows(e, p->logits, p->head, &e->local[thread], p->count, thread, threads);
}
#endif
