/* A pass of a decoder: embedding, any list of sub-layers, final norm and output head. */
#ifndef PASS_H
#define PASS_H
#include "attention.h"
#include "experts.h"
#include "head.h"
#include "mlp.h"

/* What one pass computes. */
typedef struct {
    Engine *e;
    const SubLayer *const *sublayers;
    int64_t num_sublayers;
    const Head *head;
    const int64_t *tokens;
    int64_t count, start;
    float *logits;
    int is_certainty_wanted;
} Pass;

/* This thread's tokens: rows of the embedding, scaled, plus learned positions, normalised. */
static void embed(const Pass *p, int thread, int threads) {
    const Model *m = &p->e->m;
    int64_t from, to;
    share(p->count, thread, threads, &from, &to);
    for (int64_t t = from; t < to; t++) {
        float *row = p->e->hidden + t * m->hidden;
        for (int64_t i = 0; i < m->hidden; i++)
            row[i] = rounded1(load_any1(m->embedding, p->tokens[t] * m->hidden + i, m->is_bf16) * m->embedding_scale, m->is_bf16);
        if (m->positions)
            for (int64_t i = 0; i < m->hidden; i++) {
                const int64_t at = (p->start + t) * m->hidden + i;
                row[i] = rounded1(row[i] + load_any1(m->positions, at, m->is_bf16), m->is_bf16);
            }
        norm_rows(&m->embedding_norm, row, 1, m->hidden, m->is_bf16, row);
    }
}

static void run_pass(void *argument, int thread, int threads) {
    const Pass *p = argument;
    Engine *e = p->e;
    int64_t kept = -1; /* the layer whose input is kept beside the stream */
    embed(p, thread, threads);
    barrier(&e->barrier, threads);
    for (int64_t i = 0; i < p->num_sublayers; i++) {
        const SubLayer *s = p->sublayers[i];
        if (s->kind == KIND_ATTENTION) {
            attention(e, s, p->start, p->count, thread, threads);
            if (s->is_parallel) kept = s->layer;
            continue;
        }
        const float *stream = s->is_parallel && kept == s->layer ? e->input : e->hidden;
        if (s->kind == KIND_MLP) mlp(e, s, stream, p->count, thread, threads);
        else experts(e, s, stream, p->count, thread, threads);
    }
    set_normed(e, &e->m.final_norm, e->hidden, p->count, e->m.hidden, &e->local[thread]);
    head_rows(e, p->logits, p->is_certainty_wanted, p->head, &e->local[thread], p->count, thread, threads);
}
#endif
