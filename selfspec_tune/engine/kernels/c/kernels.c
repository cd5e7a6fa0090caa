/* Decoding passes on a CPU, a few tokens at a time.
 *
 * One call runs embedding, any list of sub-layers, final norm and output head inside a single
 * parallel region. What a row of the result is never depends on how many rows are computed
 * beside it nor on the number of threads: every sum over inputs and over positions is taken
 * in one fixed order. So verification gives the same bits as single steps, in bfloat16 too.
 *
 *   vector, pool --> inputs --> tiles, int4 --> linear --> stream --> queries --> attention --> pass --> here
 *                       |        packing           |          scores --^    mlp, experts, head --^
 *            activation, norm --> model -----------^
 */
#define _GNU_SOURCE
#include "packing.h"
#include "pass.h"

#ifndef KERNELS_LEVEL
#define KERNELS_LEVEL "unknown"
#endif
#define KERNELS_ABI 5 /* changes with what the functions below take; mirrored in binding.py */

/* The processor level that these were compiled for. */
const char *kernels_level(void) { return KERNELS_LEVEL; }

/* 0: KERNELS_ABI; 1 to 6: bytes of Linear, SubLayer, Experts, Model, Best and Head, as a binding must have them. */
int64_t kernels_abi(int32_t which) {
    const int64_t found[] = {KERNELS_ABI, sizeof(Linear), sizeof(SubLayer), sizeof(Experts), sizeof(Model), sizeof(Best),
                             sizeof(Head)};
    return which >= 0 && which < (int32_t)(sizeof found / sizeof *found) ? found[which] : -1;
}

static void *zeroed(int64_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes)) return NULL;
    memset(p, 0, bytes);
    return p;
}

static int make_input(Input *x, int64_t cols) {
    x->cols = cols;
    x->values = zeroed(MAX_TOKENS * cols * 4);
    #if HAVE_DOT_BF16
    x->narrow = zeroed(MAX_TOKENS * padded(cols) * 2);
#else
    x->paired = zeroed(MAX_TOKENS * padded(cols) * 4);
#endif
    x->sums = zeroed(MAX_TOKENS * (cols / GROUP + 1) * 4);
    return x->values && (x->narrow || x->paired) && x->sums;
}

static void free_input(Input *x) { free(x->values); free(x->paired); free(x->narrow); free(x->sums); }

static void free_mixture(Mixture *x, int threads) {
    free(x->logits); free(x->weights); free(x->gated); free(x->shares); free(x->shared_gated); free(x->shared_weights);
    free(x->beside); free(x->chosen); free(x->routes);
    for (int i = 0; x->gathered && i < threads; i++) free_input(&x->gathered[i]);
    free(x->gathered);
}

static int make_mixture(Mixture *x, const Model *m) {
    const int64_t pairs = MAX_TOKENS * m->chosen;
    if (!m->experts) return 1;
    x->logits = zeroed(MAX_TOKENS * m->experts * 4);
    x->weights = zeroed(pairs * 4);
    x->gated = zeroed(pairs * m->expert_width * 4);
    x->shares = zeroed(pairs * m->hidden * 4);
    x->shared_gated = zeroed(MAX_TOKENS * m->shared_width * 4);
    x->shared_weights = zeroed(MAX_TOKENS * 4);
    x->beside = zeroed(MAX_TOKENS * m->hidden * 4);
    x->chosen = zeroed(pairs * 4);
    x->routes = zeroed(m->threads * (m->experts + 1 + pairs) * 4);
    x->gathered = zeroed(m->threads * sizeof(Input));
    int ok = x->logits && x->weights && x->gated && x->shares && x->shared_gated && x->shared_weights && x->beside;
    ok = ok && x->chosen && x->routes && x->gathered;
    for (int i = 0; ok && i < m->threads; i++) ok = make_input(&x->gathered[i], m->widest);
    return ok;
}

void engine_free(Engine *e) {
    if (!e) return;
    free_mixture(&e->mixture, e->m.threads);
    free(e->hidden); free(e->input); free(e->output);
    free(e->qkv); free(e->queries); free(e->gate); free(e->part); free(e->part_max); free(e->part_sum);
    free_input(&e->shared);
    for (int i = 0; e->local && i < e->m.threads; i++) free_input(&e->local[i]);
    free(e->local);
    free(e->highest);
    free(e);
}

/* Scratch memory for a model; null when there is none. */
Engine *engine_new(const Model *m) {
    Engine *e = zeroed(sizeof *e);
    if (!e) return NULL;
    e->m = *m;
    e->chunks = m->capacity / KV_CHUNK + 1;
    const int64_t slots = e->chunks * MAX_TOKENS * m->heads, stream = MAX_TOKENS * m->hidden * 4;
    const int64_t queries = MAX_TOKENS * m->heads * m->head_size * 4;
    e->hidden = zeroed(stream);
    e->input = zeroed(stream);
    e->output = zeroed(stream);
    e->qkv = zeroed(MAX_TOKENS * (m->heads + 2 * m->kv_heads) * m->head_size * 4);
    e->queries = zeroed(queries);
    e->gate = zeroed(queries);
    e->part = zeroed(slots * m->head_size * 4);
    e->part_max = zeroed(slots * 4);
    e->part_sum = zeroed(slots * 4);
    e->local = zeroed(m->threads * sizeof(Input));
    const int64_t blocks = m->vocabulary / (UNIT * HEAD_UNITS) + 1 + MAX_OTHERS / (UNIT * HEAD_UNITS);
    e->highest = zeroed(blocks * MAX_TOKENS * sizeof(Highest));
    int ok = e->hidden && e->input && e->output && e->qkv && e->queries && e->gate && e->part && e->part_max && e->part_sum;
    ok = ok && make_mixture(&e->mixture, m) && e->local && e->highest && make_input(&e->shared, m->widest);
    for (int i = 0; ok && i < m->threads; i++) ok = make_input(&e->local[i], m->widest);
    if (ok) return e;
    engine_free(e);
    return NULL;
}

/* Run `count` token ids, at the positions that follow `start`, through the sub-layers.
 * logits [count, up to the head's last token] in float32, or null: of tokens that the head has alone; best [count], with how
 * sure each row is where that is wanted. */
void engine_run(Engine *e, const SubLayer *const *sublayers, int64_t num_sublayers, const Head *head,
                const int64_t *tokens, int64_t count, int64_t start, float *logits, int32_t is_certainty_wanted, Best *best) {
    Pass pass = {e, sublayers, num_sublayers, head, tokens, count, start, logits, is_certainty_wanted};
    atomic_store(&e->barrier.arrived, 0); /* a fork in the midst of a pass leaves some */
    parallel(e->m.threads, run_pass, &pass);
    for (int64_t t = 0; t < count; t++) best[t] = best_of(e, is_certainty_wanted, head, t);
}

typedef struct {
    const uint8_t *data;
    int64_t bytes;
    atomic_uint total;
} Reading;

static void read_share(void *argument, int thread, int threads) {
    Reading *r = argument;
    int64_t from, to;
    share(r->bytes / 256, thread, threads, &from, &to);
    uv sums[256 / sizeof(uv)] = {};
    for (int64_t i = from; i < to; i++)
        for (size_t j = 0; j < 256 / sizeof(uv); j++) {
            uv v;
            memcpy(&v, r->data + 256 * i + sizeof(uv) * j, sizeof v);
            sums[j] += v;
        }
    unsigned total = 0;
    for (size_t j = 0; j < 256 / sizeof(uv); j++)
        for (int i = 0; i < LANES; i++) total += sums[j][i];
    atomic_fetch_add(&r->total, total);
}

/* Sum of bytes read as 32-bit words: how fast this machine's memory can be read at all. */
uint32_t read_all(const uint8_t *data, int64_t bytes, int32_t num_threads) {
    Reading reading = {.data = data, .bytes = bytes};
    parallel(num_threads, read_share, &reading);
    return atomic_load(&reading.total);
}

#include "self_test.h"
