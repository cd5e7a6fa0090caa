/* What the built kernels must show before they are used: right products, the same bits for any number of tokens and
 * threads, and speed.
 */
#ifndef SELF_TEST_H
#define SELF_TEST_H
#include <stdio.h>
#include "speed_test.h"

enum { TEST_COLS = 1056, TEST_ROWS = 83, TEST_TOKENS = 32 };

/* Products in double precision are near, and those of fewer tokens have the same bits. */
static int test_linear(int tested) {
    Linear l;
    Input x = {0};
    int right = make_weight(&l, tested, TEST_ROWS, TEST_COLS) && make_input(&x, TEST_COLS);
    float *values = malloc(sizeof(float) * TEST_ROWS * TEST_COLS);
    static fv all[TEST_TOKENS][PARTS], some[TEST_TOKENS][PARTS];
    right = right && values;
    if (right && l.format >= FORMAT_INT8) dequantise(&l, values, 0, 1);
    for (int64_t unit = 0; right && unit < (TEST_ROWS + UNIT - 1) / UNIT; unit++) {
        const int64_t count = TEST_ROWS - unit * UNIT < UNIT ? TEST_ROWS - unit * UNIT : UNIT;
        fill_input(&x, &l, 0, TEST_TOKENS);
        unit_rows(&l, unit, &x, TEST_TOKENS, all);
        for (int64_t t = 0; t < TEST_TOKENS; t++)
            for (int64_t i = 0; i < count; i++) {
                const int64_t row = (unit * UNIT + i) * TEST_COLS;
                double sum = 0, size = 0;
                for (int64_t k = 0; k < TEST_COLS; k++) {
                    const float w = l.format >= FORMAT_INT8 ? values[row + k] : load_any1(l.data, row + k, l.format == FORMAT_BF16);
                    sum += (double)w * x.values[t * TEST_COLS + k];
                    size += fabs((double)w * x.values[t * TEST_COLS + k]);
                }
                if (!(fabs(((float *)all[t])[i] - sum) <= 1e-5 * size)) right = 0;
            }
        for (int64_t tokens = 1; tokens < TEST_TOKENS; tokens++)
            for (int64_t first = 0; first < 2; first++) {
                fill_input(&x, &l, first, tokens);
                unit_rows(&l, unit, &x, tokens, some);
                for (int64_t t = 0; t < tokens; t++) right = right && !memcmp(some[t], all[first + t], count * sizeof(float));
            }
    }
    free((void *)l.data); free((void *)l.scales); free(values); free_input(&x);
    return right;
}

Engine *engine_new(const Model *m);
void engine_free(Engine *e);
void engine_run(Engine *e, const SubLayer *const *sublayers, int64_t num_sublayers, const Head *head, const int64_t *tokens,
                int64_t count, int64_t start, float *logits, int32_t is_certainty_wanted, Best *best);

enum { PASS_VOCABULARY = 301, PASS_TOKENS = 150, PASS_WEIGHTS = 9, EXPERTS = 6, EXPERT_WIDTH = 32 };

typedef struct {
    int64_t hidden, heads, kv_heads, size, width;
    int is_low; /* whether the MLP has int8 and int4 weights */
    int is_odd; /* whether all is on that a Llama has not */
} Shape;

/* One with odd sizes; one whose heads share keys and have a size that kernels are specialised for; one unlike a Llama. */
static const Shape SHAPES[] = {{80, 5, 5, 16, 104, 0, 0}, {96, 6, 2, 64, 128, 1, 0}, {88, 6, 2, 80, 104, 0, 1}};
enum { NUM_SHAPES = sizeof SHAPES / sizeof *SHAPES };

/* `numbers`: as many as any norm or row of heads has. */
static void make_odd(Model *m, SubLayer *attention, SubLayer *mlp, SubLayer *mixture, Experts *x, const float *numbers) {
    const Norm norm = {NORM_LAYER, 1, 1e-5f, numbers, numbers};
    Attention *a = &attention->attention;
    m->embedding_scale = 3;
    m->positions = m->embedding;
    m->embedding_norm = norm;
    m->logit_scale = 0.5f;
    m->logit_cap = 4;
    for (int i = 0; i < 3; i++) {
        SubLayer *s = i == 2 ? mixture : i ? mlp : attention;
        s->is_parallel = 1;
        s->residual_scale = 0.5f;
        s->norm = s->post = s->inner = norm;
    }
    mlp->mlp = (Mlp){0, {GELU, {0}}};
    x->is_sigmoid = x->is_renormalised = x->rounds_weights = x->has_shared_weight = 1;
    x->groups = 3;
    x->kept_groups = 2;
    x->choice_bias = numbers;
    a->is_grouped = a->is_adjacent = a->is_rope_float = 1;
    a->reach = REACH_WINDOW;
    a->reach_size = 37;
    a->qk_norm = QK_NORM_WIDTH;
    a->query_norm = a->key_norm = norm;
    a->growth = a->bias = 0;
    a->clip = 2;
    a->cap = 8;
    a->sinks = numbers;
    attention->third = attention->first; /* the gate */
    attention->third.rows = a->heads * a->size;
}

/* Whether a function of vectors is as near to the exact one as float is, from -`most` to `most`. */
static int test_function(fv (*function)(fv), double (*exact)(double), float most) {
    for (int i = -4000; i < 4000; i += LANES) {
        const fv x = (__builtin_convertvector(lane_numbers() + i, fv) + 0.37f) * (most / 4000.f), y = function(x);
        for (int lane = 0; lane < LANES; lane++) {
            const double right = exact((double)x[lane]);
            if (!(fabs(y[lane] - right) <= 1e-6 * fabs(right))) return 0;
        }
    }
    return 1;
}

static fv exp_of(fv x) { return exp_v(x); }
static fv expm1_of(fv x) { return expm1_v(x); }
static fv tanh_of(fv x) { return tanh_v(x); }
static fv erf_of(fv x) { return erf_v(x); }

static int test_functions(void) {
    return test_function(exp_of, exp, 80) && test_function(expm1_of, expm1, 3) && test_function(tanh_of, tanh, 20) &&
           test_function(erf_of, erf, 6) && test_function(tanh_of, tanh, 0.01f) && test_function(erf_of, erf, 0.01f);
}

/* Logits [PASS_TOKENS, PASS_VOCABULARY] of a small model that reads its tokens `at_once` at a time. */
static int run_small_model(const Shape *s, int is_bf16, int at_once, int threads, float *logits) {
    const int format = is_bf16 ? FORMAT_BF16 : FORMAT_F32;
    const int64_t attended = s->heads * s->size, qkv = attended + 2 * s->kv_heads * s->size, longest = attended > s->width ? attended : s->width;
    const int formats[PASS_WEIGHTS] = {format, format, s->is_low ? NUM_FORMATS - 1 : format, s->is_low ? FORMAT_INT8 : format,
                                       s->is_low ? FORMAT_INT4 : format, format,
                                       format, s->is_low ? FORMAT_INT8 : format, s->is_low ? NUM_FORMATS - 1 : format};
    const int64_t shapes[PASS_WEIGHTS][2] = {{qkv, s->hidden}, {s->hidden, attended}, {s->width, s->hidden},
                                             {s->width, s->hidden}, {s->hidden, s->width}, {PASS_VOCABULARY, s->hidden},
                                             {EXPERTS, s->hidden}, {EXPERTS * 2 * EXPERT_WIDTH, s->hidden}, {EXPERTS * s->hidden, EXPERT_WIDTH}};
    const size_t cached = sizeof(float) * PASS_TOKENS * s->kv_heads * s->size;
    Linear weights[PASS_WEIGHTS] = {{0}};
    int right = 1;
    for (int i = 0; i < PASS_WEIGHTS; i++) right = make_weight(&weights[i], formats[i], shapes[i][0], shapes[i][1]) && right;
    float *table = malloc(sizeof(float) * PASS_TOKENS * s->size), *ones = malloc(sizeof(float) * qkv);
    char *cache = calloc(2, cached);
    right = right && table && ones && cache;
    for (int64_t i = 0; right && i < PASS_TOKENS * s->size; i++) table[i] = rounded1(cosf((float)i * 0.37f), is_bf16);
    for (int64_t i = 0; right && i < qkv; i++) ones[i] = 1.f;
    weights[0].bias = ones;
    const float *const numbers = table; /* by position: as many as any table has */
    Model model = {.is_bf16 = is_bf16, .threads = threads, .hidden = s->hidden, .heads = s->heads, .kv_heads = s->kv_heads,
                   .head_size = s->size, .widest = longest, .vocabulary = PASS_VOCABULARY, .capacity = PASS_TOKENS,
                   .experts = EXPERTS, .chosen = 3, .expert_width = EXPERT_WIDTH, .shared_width = s->width,
                   .embedding = weights[5].data, .embedding_scale = 1, .logit_scale = 1, .final_norm = {NORM_RMS, 0, 1e-5f, ones, NULL},
                   .ropes = &(RopeTable){table, table, s->size}, .tables = &numbers, .keys = cache, .values = cache + cached};
    SubLayer attention = {.kind = KIND_ATTENTION, .residual_scale = 1, .norm = model.final_norm, .first = weights[0], .second = weights[1]};
    SubLayer mlp = {.kind = KIND_MLP, .residual_scale = 1, .norm = model.final_norm, .first = weights[2], .second = weights[3],
                    .third = weights[4], .mlp = {.is_gated = 1}};
    attention.attention = (Attention){.heads = (int32_t)s->heads, .kv_heads = (int32_t)s->kv_heads, .size = (int32_t)s->size,
                                      .growth = -1, .bias = -1, .scale = 0.25f};
    Experts chosen = {.count = EXPERTS, .chosen = 3, .groups = 1, .kept_groups = 1, .rounds_logits = 1, .has_shared = 1, .scale = 1,
                      .width = EXPERT_WIDTH, .router = weights[6], .gate_up = weights[7], .down = weights[8], .shared_gate = weights[2],
                      .shared_up = weights[3], .shared_down = weights[4], .shared_weight = weights[6]};
    SubLayer mixture = {.kind = KIND_EXPERTS, .residual_scale = 1, .norm = model.final_norm, .experts = &chosen};
    chosen.shared_weight.rows = 1;
    if (s->is_odd) make_odd(&model, &attention, &mlp, &mixture, &chosen, ones);
    const SubLayer *sublayers[] = {&attention, &mlp, &mixture};
    const Head head = {.first = weights[5]};
    Engine *e = right ? engine_new(&model) : NULL;
    right = right && e;
    for (int64_t start = 0; right && start < PASS_TOKENS; start += at_once) {
        const int64_t count = PASS_TOKENS - start < at_once ? PASS_TOKENS - start : at_once;
        int64_t tokens[MAX_TOKENS];
        Best best[MAX_TOKENS];
        for (int64_t t = 0; t < count; t++) tokens[t] = (start + t) * 7 % PASS_VOCABULARY;
        engine_run(e, sublayers, 3, &head, tokens, count, start, logits + start * PASS_VOCABULARY, 0, best);
    }
    engine_free(e);
    free(cache); free(table); free(ones);
    for (int i = 0; i < PASS_WEIGHTS; i++) { free((void *)weights[i].data); free((void *)weights[i].scales); }
    return right;
}

/* A whole pass has the same bits for any number of tokens at once and of threads, and finite ones. */
static int test_pass(int is_bf16, int most_threads) {
    const size_t count = PASS_TOKENS * PASS_VOCABULARY;
    const int threads[] = {1, 2, 3, most_threads}, at_once[] = {1, 3, 8, 13, MAX_TOKENS};
    float *one = malloc(count * sizeof(float)), *other = malloc(count * sizeof(float));
    int right = one && other;
    for (int shape = 0; right && shape < NUM_SHAPES; shape++) {
        right = run_small_model(&SHAPES[shape], is_bf16, 1, 1, one);
        for (size_t i = 0; right && i < count; i++) right = isfinite(one[i]);
        for (size_t n = 0; right && n < sizeof threads / sizeof *threads; n++)
            for (size_t i = 0; right && i < sizeof at_once / sizeof *at_once; i++)
                right = run_small_model(&SHAPES[shape], is_bf16, at_once[i], threads[n], other) && !memcmp(one, other, count * sizeof(float));
    }
    free(one); free(other);
    return right;
}

/* 0 where all is right with one to three threads and with `threads`, else the number of the check that failed: 1 to 5 for the formats of
 * a weight, 6 and 7 for whole passes in float32 and bfloat16, 8 for functions of vectors. */
int32_t self_test(int32_t threads) {
    if (!test_functions()) return NUM_FORMATS + 3;
    for (int tested = 0; tested < NUM_FORMATS; tested++)
        if (!test_linear(tested)) return tested + 1;
    for (int is_bf16 = 0; is_bf16 < 2; is_bf16++)
        if (!test_pass(is_bf16, threads)) return NUM_FORMATS + 1 + is_bf16;
    return 0;
}

#if defined(KERNELS_MAIN)
/* A program of its own, for processors that are only emulated here. With an argument it times kernels on so many threads. */
int main(int argc, char **argv) {
    int wrong = 0;
    printf("level %s, %d lanes\n", KERNELS_LEVEL, LANES);
    const int are_right = test_functions();
    printf("functions: %s\n", are_right ? "right" : "WRONG");
    wrong += !are_right;
    for (int tested = 0; tested < NUM_FORMATS; tested++) {
        const int right = test_linear(tested);
        printf("%s weights: %s\n", TESTED[tested], right ? "right" : "WRONG");
        wrong += !right;
    }
    for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
        const int right = test_pass(is_bf16, 3);
        printf("%s passes: %s\n", TESTED[is_bf16], right ? "right" : "WRONG");
        wrong += !right;
    }
    for (int format = -1; argc > 1 && format <= FORMAT_INT4; format++)
        for (int tokens = 1; tokens <= (format < 0 ? 1 : 12); tokens++)
            printf("%s %d: %.1f GB/s\n", format < 0 ? "read" : TESTED[format], tokens, self_test_speed(format, tokens, atoi(argv[1])) / 1e9);
    printf(wrong ? "%d checks failed\n" : "all right\n", wrong);
    return wrong > 0;
}
#endif
#endif
