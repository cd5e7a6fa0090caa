/* Decoding passes of Llama-shaped models on a CPU, a few tokens at a time.
 *
 * One call runs embedding, any list of sub-layers, final norm and output head inside a single
 * parallel region. What a row of the result is never depends on how many rows are computed
 * beside it nor on the number of threads: every sum over inputs and over positions is taken
 * in one fixed order. So verification gives the same bits as single steps, in bfloat16 too.
 *
 * Activations are kept in float32 and rounded to the model's type wherever a PyTorch
 * implementation would store them.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#ifndef HAVE_DOT_BF16
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAVE_DOT_BF16 1
#else
#define HAVE_DOT_BF16 0
#endif
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16") /* so that sums stay in registers */
#endif
#define INLINE static inline __attribute__((always_inline, unused))
#define LANES 16
#define UNIT 16        /* rows of a weight that are computed together */
#define MAX_TOKENS 32  /* of one pass */
#define KV_CHUNK 128   /* positions whose attention is summed before chunks are combined */
#define MAX_HEAD_SIZE 512
#define HEADS_AT_ONCE 8 /* query heads of one KV head */
#define MAX_BLOCK 128  /* inputs whose errors make up for each other in an int4 copy */
#define GROUP 32       /* inputs that share one int4 scale */
#define INT4_TOKENS 5 /* at most, that share each load of an int4 weight: their sums fit the registers */
#define BLOCK 32       /* inputs that one bfloat16 instruction takes */
#define HEAD_UNITS 16  /* units of the output head whose exponentials are summed before such sums are added */
#define PREFETCH 8192  /* bytes that the memory is asked for ahead of their use, at least */
#define STREAM_AHEAD 16384 /* the same where one row is read after the other */
#define INPUT_BLOCK 16384  /* bytes of inputs that stay in the first cache beside the weights */
#define TOKENS_PER_PASS 6
#define SPINS 2000         /* looks at a barrier before a thread goes to sleep at it: some tens of microseconds */
#define STREAMED_TOKENS 12 /* most tokens of which one row's sums fit the registers */

typedef float f16v __attribute__((vector_size(64)));
typedef int32_t i16v __attribute__((vector_size(64)));
typedef uint32_t u16v __attribute__((vector_size(64)));
typedef uint16_t h16v __attribute__((vector_size(32)));
typedef int16_t s16v __attribute__((vector_size(32)));
typedef int8_t b16v __attribute__((vector_size(16)));
typedef int32_t pair __attribute__((may_alias)); /* two bfloat16 neighbours */

enum { FORMAT_F32 = 0, FORMAT_BF16 = 1, FORMAT_INT8 = 2, FORMAT_INT4 = 3 };
enum { KIND_ATTENTION = 0, KIND_MLP = 1 };

typedef struct {
    int32_t format;
    int32_t has_centre; /* int4: value = scale * (q - 8) + centre, else scale * CODEBOOK[q] */
    int64_t rows, cols;
    const void *data;
    const float *scales; /* int8: one per row */
    const float *bias;   /* or null */
} Linear;

/* The 16 levels of an int4 weight without a centre, in units of its group's greatest weight.
 * Lloyd's algorithm on weights of a 1.5B model, each group of 32 divided by its extreme. */
static const float CODEBOOK[16] = {-0.87890625f, -0.69140625f, -0.5390625f, -0.41015625f, -0.298828125f, -0.1982421875f,
                                   -0.10693359375f, -0.019775390625f, 0.06689453125f, 0.15625f, 0.251953125f, 0.357421875f,
                                   0.4765625f, 0.6171875f, 0.78515625f, 1.f};

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

typedef struct {
    float *f;      /* [tokens, cols] */
    uint16_t *b;   /* the same as bfloat16, BLOCK inputs of every token beside each other: [cols / BLOCK][tokens][BLOCK] */
    float *sums;   /* first token only: sum of each GROUP inputs */
    int64_t cols;
} Input;

/* The most probable token of a row of logits, and what its probability is computed from. */
typedef struct {
    int64_t token;
    float logit, log_sum; /* log_sum: logarithm of the sum of exp(logit) over the row */
} Best;

/* The same of HEAD_UNITS units, one after another: one candidate a lane. */
typedef struct {
    f16v logit, sum; /* sum of exp(logit - this lane's highest) */
    i16v token;
} Running;

/* Its result: the highest of all lanes. */
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
    atomic_uint arrived, phase, asleep; /* at a barrier */
} Engine;

/* ---- small pieces ---- */

INLINE f16v load_f(const float *p) { f16v v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_f(float *p, f16v v) { memcpy(p, &v, sizeof v); }
INLINE f16v splat(float x) {
#if defined(__AVX512F__)
    return (f16v)_mm512_set1_ps(x);
#else
    return (f16v){} + x;
#endif
}
INLINE f16v choose(i16v where, f16v yes, f16v no) { return (f16v)((where & (i16v)yes) | (~where & (i16v)no)); }
INLINE f16v widen(const uint16_t *p) {
#if defined(__AVX512F__)
    return (f16v)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#else
    h16v h;
    memcpy(&h, p, sizeof h);
    return (f16v)(__builtin_convertvector(h, u16v) << 16);
#endif
}
INLINE float widen1(uint16_t h) { uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f; }
INLINE u16v round_bits(f16v x) { u16v u = (u16v)x; return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
INLINE uint16_t narrow1(float x) { uint32_t u; memcpy(&u, &x, 4); return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16); }
INLINE f16v rounded(f16v x, int is_bf16) { return is_bf16 ? (f16v)(round_bits(x) << 16) : x; }
INLINE float rounded1(float x, int is_bf16) { return is_bf16 ? widen1(narrow1(x)) : x; }
INLINE f16v load_any(const void *p, int64_t i, int is_bf16) {
    return is_bf16 ? widen((const uint16_t *)p + i) : load_f((const float *)p + i);
}
INLINE float load_any1(const void *p, int64_t i, int is_bf16) {
    return is_bf16 ? widen1(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}
INLINE void store_any(void *p, int64_t i, f16v x, int is_bf16) {
    if (!is_bf16) { store_f((float *)p + i, x); return; }
    const h16v bits = __builtin_convertvector(round_bits(x), h16v);
    memcpy((uint16_t *)p + i, &bits, sizeof bits);
}
INLINE void store_any1(void *p, int64_t i, float x, int is_bf16) {
    if (is_bf16) ((uint16_t *)p)[i] = narrow1(x); else ((float *)p)[i] = x;
}

/* sum + a * b, rounded once where the processor can. Never left to the compiler, which might
 * fuse in the code for one number of tokens and not in that for another. */
INLINE f16v add_product(f16v sum, f16v a, f16v b) {
#if defined(__AVX512F__)
    return (f16v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    __m256 s[2], x[2], y[2];
    memcpy(s, &sum, sizeof s);
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 2; i++) s[i] = _mm256_fmadd_ps(x[i], y[i], s[i]);
    memcpy(&sum, s, sizeof s);
    return sum;
#elif defined(__aarch64__)
    float32x4_t s[4], x[4], y[4];
    memcpy(s, &sum, sizeof s);
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 4; i++) s[i] = vfmaq_f32(s[i], x[i], y[i]);
    memcpy(&sum, s, sizeof s);
    return sum;
#else
    return sum + a * b;
#endif
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (i16v){__VA_ARGS__})
#endif
/* Which lanes of two vectors are added: neighbours 8, 4, 2 and 1 apart. */
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define LOW2 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29
#define HIGH2 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31
#define LOW1 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define HIGH1 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define FOLD(a, b, low, high) (SHUFFLE(a, b, low) + SHUFFLE(a, b, high))
/* The sums of 16 vectors, as one vector. */
INLINE f16v sums16(const f16v *v) {
    f16v a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) a[i] = FOLD(v[2 * i], v[2 * i + 1], LOW8, HIGH8);
    for (int i = 0; i < 4; i++) b[i] = FOLD(a[2 * i], a[2 * i + 1], LOW4, HIGH4);
    for (int i = 0; i < 2; i++) c[i] = FOLD(b[2 * i], b[2 * i + 1], LOW2, HIGH2);
    return FOLD(c[0], c[1], LOW1, HIGH1);
}
/* table[index], each index 0 … 15. */
INLINE f16v look_up(f16v table, i16v index) {
#if defined(__AVX512F__)
    return (f16v)_mm512_permutexvar_ps((__m512i)index, (__m512)table);
#elif defined(__clang__)
    f16v found;
    for (int i = 0; i < LANES; i++) found[i] = table[index[i]];
    return found;
#else
    return __builtin_shuffle(table, index);
#endif
}
INLINE float sum1(f16v v) {
    float b[LANES];
    memcpy(b, &v, sizeof b);
    for (int step = 8; step; step >>= 1)
        for (int i = 0; i < step; i++) b[i] += b[i + step];
    return b[0];
}

/* exp by range reduction and a polynomial of degree 6; relative error about 2e-7. */
INLINE f16v exp_v(f16v x) {
    const float big = 12582912.f; /* 1.5 * 2^23: adding it rounds to a whole number */
    x = choose(x < splat(-87.f), splat(-87.f), x);
    x = choose(x > splat(88.f), splat(88.f), x);
    f16v shifted = add_product(splat(big), x, splat(1.44269504f));
    f16v n = shifted - big;
    f16v r = add_product(add_product(x, n, splat(-0.693359375f)), n, splat(2.12194440e-4f));
    f16v p = splat(1.3981999507e-3f);
    p = add_product(splat(8.3334519073e-3f), p, r);
    p = add_product(splat(4.1665795894e-2f), p, r);
    p = add_product(splat(1.6666665459e-1f), p, r);
    p = add_product(splat(5.0000001201e-1f), p, r);
    p = add_product(r, p * r, r) + 1.f;
    i16v power = (__builtin_convertvector(n, i16v) + 127) << 23;
    return p * (f16v)power;
}

INLINE void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until the barrier is past `phase`: awake for a moment, for that is how long it takes on a quiet
 * machine; then asleep, so that another process that has taken a core does not hold up every barrier. */
static void wait_for(Engine *e, unsigned phase) {
    for (int spins = 0; spins < SPINS; spins++) {
        if (atomic_load_explicit(&e->phase, memory_order_acquire) != phase) return;
        pause_cpu();
    }
    while (atomic_load_explicit(&e->phase, memory_order_acquire) == phase) {
#if defined(__linux__)
        atomic_fetch_add(&e->asleep, 1);
        syscall(SYS_futex, &e->phase, FUTEX_WAIT_PRIVATE, phase, NULL, NULL, 0); /* returns at once once past it */
        atomic_fetch_sub(&e->asleep, 1);
#else
        sched_yield();
#endif
    }
}

static void barrier(Engine *e, int threads) {
    if (threads == 1) return;
    unsigned phase = atomic_load_explicit(&e->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&e->arrived, 1, memory_order_acq_rel) < (unsigned)threads - 1) {
        wait_for(e, phase);
        return;
    }
    atomic_store_explicit(&e->arrived, 0, memory_order_relaxed);
    atomic_store(&e->phase, phase + 1);
#if defined(__linux__)
    if (atomic_load(&e->asleep)) syscall(SYS_futex, &e->phase, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#endif
}

/* The range of `count` units that a thread takes. */
INLINE void share(int64_t count, int thread, int threads, int64_t *from, int64_t *to) {
    *from = count * thread / threads;
    *to = count * (thread + 1) / threads;
}

/* ---- linear layers: UNIT rows against all tokens; out[token][row] ---- */

#if HAVE_DOT_BF16
/* Adds `steps` blocks of inputs to the sums of a few rows: out[token][row]. `ahead`: bytes. */
INLINE void dot_bf16(const int rows, const int tokens, const uint16_t *w, int64_t cols, int64_t ahead, const uint16_t *x, int64_t stride,
                     int64_t steps, f16v *out) {
    __m512 acc[4][STREAMED_TOKENS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int t = 0; t < tokens; t++) acc[i][t] = (__m512)out[t * UNIT + i];
    for (int64_t k = 0; k < steps; k++) {
        __m512bh wv[4];
        UNROLL for (int i = 0; i < rows; i++) {
            const uint16_t *p = w + i * cols + k * BLOCK;
            __builtin_prefetch((const uint8_t *)p + ahead, 0, 3);
            wv[i] = (__m512bh)_mm512_loadu_si512(p);
        }
        UNROLL for (int t = 0; t < tokens; t++) {
            const __m512bh xv = (__m512bh)_mm512_loadu_si512(x + (k * stride + t) * BLOCK);
            UNROLL for (int i = 0; i < rows; i++) acc[i][t] = _mm512_dpbf16_ps(acc[i][t], wv[i], xv);
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int t = 0; t < tokens; t++) out[t * UNIT + i] = (f16v)acc[i][t];
}

#define DOT_CASE(rows, tokens) case tokens: dot_bf16(rows, tokens, w, cols, ahead, x, stride, steps, out); return;
static void dot_bf16_some(int rows, int64_t tokens, const uint16_t *w, int64_t cols, int64_t ahead, const uint16_t *x, int64_t stride,
                          int64_t steps, f16v *out) {
    if (rows == 4)
        switch (tokens) { DOT_CASE(4, 1) DOT_CASE(4, 2) DOT_CASE(4, 3) DOT_CASE(4, 4) DOT_CASE(4, 5) DOT_CASE(4, 6) }
    switch (tokens) {
        DOT_CASE(1, 1) DOT_CASE(1, 2) DOT_CASE(1, 3) DOT_CASE(1, 4) DOT_CASE(1, 5) DOT_CASE(1, 6)
        DOT_CASE(1, 7) DOT_CASE(1, 8) DOT_CASE(1, 9) DOT_CASE(1, 10) DOT_CASE(1, 11) DOT_CASE(1, 12)
    }
}

/* The last `cols` % BLOCK inputs. */
static void dot_bf16_rest(const Linear *l, int64_t first, int64_t count, const Input *x, int64_t tokens, f16v *out) {
    const int64_t from = l->cols / BLOCK * BLOCK;
    const __mmask32 mask = ((__mmask32)1 << (l->cols - from)) - 1;
    for (int64_t i = 0; i < count; i++) {
        const uint16_t *w = (const uint16_t *)l->data + (first + i) * l->cols + from;
        const __m512bh wv = (__m512bh)_mm512_maskz_loadu_epi16(mask, w);
        for (int64_t t = 0; t < tokens; t++) {
            const __m512bh xv = (__m512bh)_mm512_maskz_loadu_epi16(mask, x->b + from * tokens + t * BLOCK);
            out[t * UNIT + i] = (f16v)_mm512_dpbf16_ps((__m512)out[t * UNIT + i], wv, xv);
        }
    }
}

/* The sums of `count` rows from `first`, lane by lane: out[token][row].
 * Memory is read fastest in its own order, one row after the other, with the inputs of all tokens in the first
 * cache. Where they are too many for that, four rows share each load of an input, a part of the inputs at a time. */
static void dot_bf16_unit(const Linear *l, int64_t first, int64_t count, const Input *x, int64_t tokens, f16v *out) {
    const uint16_t *w = (const uint16_t *)l->data + first * l->cols;
    const int64_t cols = l->cols, steps = cols / BLOCK, bytes = tokens * cols * 2;
    const int streamed = tokens == 1 || (tokens <= STREAMED_TOKENS && bytes <= INPUT_BLOCK + INPUT_BLOCK / 4);
    const int64_t abreast = streamed ? 1 : 4, most = streamed ? STREAMED_TOKENS : TOKENS_PER_PASS;
    const int64_t pieces = (tokens + most - 1) / most, parts = streamed ? 1 : (bytes + INPUT_BLOCK - 1) / INPUT_BLOCK;
    memset(out, 0, sizeof(f16v) * UNIT * tokens);
    for (int64_t part = 0; part < parts; part++) {
        const int64_t k = steps * part / parts, n = steps * (part + 1) / parts - k;
        const int64_t taken = abreast * (n ? n : 1) * BLOCK * 2; /* bytes until the next rows come */
        const int64_t ahead = streamed ? STREAM_AHEAD : abreast * cols * 2 * ((PREFETCH + taken - 1) / taken);
        for (int64_t row = 0; row < count;) {
            const int rows = count - row < abreast ? 1 : (int)abreast;
            for (int64_t piece = 0; piece < pieces; piece++) {
                const int64_t from = tokens * piece / pieces, to = tokens * (piece + 1) / pieces;
                dot_bf16_some(rows, to - from, w + row * cols + k * BLOCK, cols, ahead, x->b + (k * tokens + from) * BLOCK, tokens, n,
                              out + from * UNIT + row);
            }
            row += rows;
        }
    }
    if (cols % BLOCK) dot_bf16_rest(l, first, count, x, tokens, out);
}
#endif

INLINE f16v load_weight(const int format, const void *weight, int64_t at) {
    if (format != FORMAT_INT8) return load_any(weight, at, format == FORMAT_BF16);
#if defined(__AVX512F__)
    return (f16v)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)((const int8_t *)weight + at))));
#else
    b16v b;
    memcpy(&b, (const int8_t *)weight + at, sizeof b);
    /* Step by step: GCC turns a wider jump into scalar code. */
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(b, s16v), i16v), f16v);
#endif
}

/* The last `count` < LANES weights and inputs, padded with zeros. */
INLINE f16v load_last(const int format, const void *weight, int64_t at, int64_t count) {
    uint8_t padded[64] = {0};
    const int64_t size = format == FORMAT_INT8 ? 1 : format == FORMAT_BF16 ? 2 : 4;
    memcpy(padded, (const uint8_t *)weight + at * size, count * size);
    return load_weight(format, padded, 0);
}

INLINE void dot_wide(const int rows, const int tokens, const int format, const void *weight, int64_t first, int64_t cols,
                     const float *x, int64_t stride, f16v *out) {
    const int64_t size = format == FORMAT_INT8 ? 1 : format == FORMAT_BF16 ? 2 : 4;
    const uint8_t *next = (const uint8_t *)weight + size * first * cols + (size * rows * cols > PREFETCH ? size * rows * cols : PREFETCH);
    f16v acc[4][6] = {};
    int64_t k = 0;
    for (; k + LANES <= cols; k += LANES) {
        f16v wv[4];
        if ((size * rows * k) % 64 == 0)
            for (int i = 0; i < size * rows * LANES; i += 64) __builtin_prefetch(next + size * rows * k + i, 0, 2);
        for (int i = 0; i < rows; i++) wv[i] = load_weight(format, weight, (first + i) * cols + k);
        for (int t = 0; t < tokens; t++) {
            f16v xv = load_f(x + t * stride + k);
            for (int i = 0; i < rows; i++) acc[i][t] = add_product(acc[i][t], wv[i], xv);
        }
    }
    if (k < cols) {
        for (int i = 0; i < rows; i++) {
            f16v wv = load_last(format, weight, (first + i) * cols + k, cols - k);
            for (int t = 0; t < tokens; t++) acc[i][t] = add_product(acc[i][t], wv, load_last(FORMAT_F32, x, t * stride + k, cols - k));
        }
    }
    for (int i = 0; i < rows; i++)
        for (int t = 0; t < tokens; t++) out[t * UNIT + i] = acc[i][t];
}

INLINE void dot_rows(const int rows, const int tokens, const Linear *l, int64_t first, const Input *x, int64_t token, f16v *out) {
    const float *f = x->f + token * x->cols;
    if (l->format == FORMAT_BF16) dot_wide(rows, tokens, FORMAT_BF16, l->data, first, l->cols, f, x->cols, out);
    else if (l->format == FORMAT_INT8) dot_wide(rows, tokens, FORMAT_INT8, l->data, first, l->cols, f, x->cols, out);
    else dot_wide(rows, tokens, FORMAT_F32, l->data, first, l->cols, f, x->cols, out);
}

#define ROWS_FOR(rows)                                                                                    \
    switch (tokens) {                                                                                     \
        case 1: dot_rows(rows, 1, l, first, x, token, out); break;                                        \
        case 2: dot_rows(rows, 2, l, first, x, token, out); break;                                        \
        case 3: dot_rows(rows, 3, l, first, x, token, out); break;                                        \
        case 4: dot_rows(rows, 4, l, first, x, token, out); break;                                        \
        case 5: dot_rows(rows, 5, l, first, x, token, out); break;                                        \
        default: dot_rows(rows, 6, l, first, x, token, out); break;                                       \
    }
static void dot_some(int rows, int tokens, const Linear *l, int64_t first, const Input *x, int64_t token, f16v *out) {
    if (rows == 4) { ROWS_FOR(4) return; }
    for (int i = 0; i < rows; i++, first++, out++) ROWS_FOR(1)
}

static void dot_wide_unit(const Linear *l, int64_t first, int64_t count, const Input *x, int64_t tokens, f16v *out) {
    const int64_t pieces = (tokens + TOKENS_PER_PASS - 1) / TOKENS_PER_PASS;
    const int64_t abreast = tokens <= 2 ? 1 : 4; /* one row after the other reads fastest; four share the loads of inputs */
    if (count < UNIT) memset(out, 0, sizeof(f16v) * UNIT * tokens);
    for (int64_t row = 0; row < count; row += abreast) {
        const int rows = count - row < abreast ? (int)(count - row) : (int)abreast;
        for (int64_t piece = 0; piece < pieces; piece++) {
            const int64_t from = tokens * piece / pieces, to = tokens * (piece + 1) / pieces;
            dot_some(rows, (int)(to - from), l, first + row, x, from, out + from * UNIT + row);
        }
    }
}

INLINE float sum_group(const uint16_t *inputs) { return sum1(widen(inputs) + widen(inputs + LANES)); }

/* int4: tiles of 16 rows; per GROUP inputs 16 bfloat16 scales, 16 centres where there are any, then
 * 4 x 16 words of 8 nibbles: word r of quarter q holds inputs 8q … 8q+7 of row r, even ones in its low half. */
INLINE void dot_int4(const int count, const Linear *l, int64_t unit, const Input *x, int64_t tokens, int64_t first, f16v *out) {
    const int64_t groups = l->cols / GROUP, bytes = 32 + (l->has_centre ? 32 : 0) + 256;
    const uint8_t *p = (const uint8_t *)l->data + unit * groups * bytes;
    f16v total[INT4_TOKENS] = {};
#if HAVE_DOT_BF16
    uint16_t values[32]; /* twice over: a permutation reads five bits, and the fifth is another code's */
    for (int i = 0; i < 32; i++) values[i] = narrow1(l->has_centre ? (float)(i % 16 - 8) : CODEBOOK[i % 16]);
    const __m512i table = _mm512_loadu_si512(values);
#else
    f16v table;
    for (int i = 0; i < 16; i++) table[i] = l->has_centre ? (float)(i - 8) : CODEBOOK[i];
#endif
    for (int64_t g = 0; g < groups; g++, p += bytes) {
        const uint8_t *nibbles = p + bytes - 256;
        const uint16_t *inputs = x->b + (g * tokens + first) * BLOCK; /* a group of inputs is a block */
        f16v sum[INT4_TOKENS];
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + PREFETCH + i, 0, 2);
#if HAVE_DOT_BF16
        __m512 sums[INT4_TOKENS][2];
        UNROLL for (int t = 0; t < count; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
        for (int q = 0; q < 4; q++) {
            const __m512i w = _mm512_loadu_si512(nibbles + 64 * q);
            UNROLL for (int s = 0; s < 4; s++) {
                const __m512bh two = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(w, 4 * s), table);
                UNROLL for (int t = 0; t < count; t++) {
                    const pair *pairs = (const pair *)(inputs + t * BLOCK);
                    const __m512bh both = (__m512bh)_mm512_set1_epi32(pairs[4 * q + s]);
                    sums[t][s % 2] = _mm512_dpbf16_ps(sums[t][s % 2], two, both);
                }
            }
        }
        UNROLL for (int t = 0; t < count; t++) sum[t] = (f16v)_mm512_add_ps(sums[t][0], sums[t][1]);
#else
        for (int t = 0; t < count; t++) sum[t] = splat(0.f);
        for (int q = 0; q < 4; q++) {
            u16v w;
            memcpy(&w, nibbles + 64 * q, sizeof w);
            for (int s = 0; s < 4; s++) {
                const f16v low = look_up(table, (i16v)((w >> (4 * s)) & 15));
                const f16v high = look_up(table, (i16v)((w >> (16 + 4 * s)) & 15));
                for (int t = 0; t < count; t++) {
                    const uint16_t *xp = inputs + t * BLOCK + 8 * q + 2 * s;
                    sum[t] = add_product(add_product(sum[t], low, splat(widen1(xp[0]))), high, splat(widen1(xp[1])));
                }
            }
        }
#endif
        UNROLL for (int t = 0; t < count; t++) {
            total[t] = add_product(total[t], sum[t], widen((const uint16_t *)p));
            if (l->has_centre) {
                const float all = tokens == 1 ? x->sums[g] : sum_group(inputs + t * BLOCK);
                total[t] = add_product(total[t], widen((const uint16_t *)(p + 32)), splat(all));
            }
        }
    }
    UNROLL for (int t = 0; t < count; t++) out[t] = total[t];
}

static void dot_int4_unit(const Linear *l, int64_t unit, const Input *x, int64_t tokens, f16v *out) {
    for (int64_t first = 0; first < tokens; first += INT4_TOKENS) {
        switch (tokens - first) {
            case 1: dot_int4(1, l, unit, x, tokens, first, out + first); break;
            case 2: dot_int4(2, l, unit, x, tokens, first, out + first); break;
            case 3: dot_int4(3, l, unit, x, tokens, first, out + first); break;
            case 4: dot_int4(4, l, unit, x, tokens, first, out + first); break;
            default: dot_int4(INT4_TOKENS, l, unit, x, tokens, first, out + first); break;
        }
    }
}

/* out[t] = rows `first` … of one unit, bias included; rows past the end are undefined. */
static void unit_rows(const Linear *l, int64_t unit, const Input *x, int64_t tokens, f16v *out) {
    const int64_t first = unit * UNIT, count = l->rows - first < UNIT ? l->rows - first : UNIT;
    if (l->format == FORMAT_INT4) {
        dot_int4_unit(l, unit, x, tokens, out);
    } else {
        f16v acc[MAX_TOKENS * UNIT];
#if HAVE_DOT_BF16
        if (l->format == FORMAT_BF16) dot_bf16_unit(l, first, count, x, tokens, acc);
        else
#endif
        dot_wide_unit(l, first, count, x, tokens, acc);
        for (int64_t t = 0; t < tokens; t++) out[t] = sums16(acc + t * UNIT);
        if (l->format == FORMAT_INT8) {
            f16v s = splat(0.f);
            memcpy(&s, l->scales + first, count * sizeof(float));
            for (int64_t t = 0; t < tokens; t++) out[t] *= s;
        }
    }
    if (l->bias) {
        f16v b = splat(0.f);
        memcpy(&b, l->bias + first, count * sizeof(float));
        for (int64_t t = 0; t < tokens; t++) out[t] += b;
    }
}

/* ---- inputs ---- */

static void sum_groups(Input *x) {
    for (int64_t g = 0; g < x->cols / GROUP; g++) x->sums[g] = sum_group(x->b + g * GROUP);
}

/* Inputs k … of token t, at most as many as there are to the end of their block. */
INLINE void narrow_to(const Input *x, int64_t tokens, int64_t t, int64_t k, f16v v, int64_t count) {
    const h16v h = __builtin_convertvector(round_bits(v), h16v);
    memcpy(x->b + (k / BLOCK * tokens + t) * BLOCK + k % BLOCK, &h, count * sizeof(uint16_t));
}

static void set_input(Input *x, int64_t cols, int64_t tokens) {
    x->cols = cols;
    for (int64_t t = 0; t < tokens; t++) {
        int64_t k = 0;
        for (; k + LANES <= cols; k += LANES) narrow_to(x, tokens, t, k, load_f(x->f + t * cols + k), LANES);
        for (; k < cols; k++) narrow_to(x, tokens, t, k, splat(x->f[t * cols + k]), 1);
    }
    if (tokens == 1) sum_groups(x); /* a draft of several tokens at once sums them where it needs them */
}

static void normalise(const Engine *e, const float *weight, float epsilon, int64_t tokens, Input *x) {
    const int64_t cols = e->m.hidden;
    const int is_bf16 = e->m.is_bf16;
    for (int64_t t = 0; t < tokens; t++) {
        const float *h = e->hidden + t * cols;
        float *f = x->f + t * cols;
        f16v squares = splat(0.f);
        float tail = 0;
        int64_t k = 0;
        for (; k + LANES <= cols; k += LANES) { f16v v = load_f(h + k); squares = add_product(squares, v, v); }
        for (; k < cols; k++) tail += h[k] * h[k];
        const float factor = 1.f / sqrtf((sum1(squares) + tail) / (float)cols + epsilon);
        for (k = 0; k + LANES <= cols; k += LANES)
            store_f(f + k, rounded(rounded(load_f(h + k) * factor, is_bf16) * load_f(weight + k), is_bf16));
        for (; k < cols; k++) f[k] = rounded1(rounded1(h[k] * factor, is_bf16) * weight[k], is_bf16);
    }
    set_input(x, cols, tokens);
}

/* ---- attention ---- */

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

/* One query times LANES keys from `base`, of which the last may be the same one several times; sums lane by lane. */
INLINE void dot_keys(const int is_bf16, const float *q, const void *keys, int64_t base, int64_t size, int64_t count, f16v *out) {
    for (int i = 0; i < LANES; i++) {
        const int64_t at = base + (i < count ? i : count - 1) * size;
        int64_t d = 0;
        f16v dot = splat(0.f);
        for (; d + LANES <= size; d += LANES) dot = add_product(dot, load_any(keys, at + d, is_bf16), load_f(q + d));
        if (d < size)
            dot = add_product(dot, load_last(is_bf16 ? FORMAT_BF16 : FORMAT_F32, keys, at + d, size - d), load_last(FORMAT_F32, q, d, size - d));
        out[i] = dot;
    }
}

#if HAVE_DOT_BF16
/* The same for `heads` queries [heads][BLOCK * steps] that share each load of a key. */
INLINE void dot_keys_bf16(const int steps, int64_t heads, const uint16_t *q, const uint16_t *keys, int64_t count, f16v (*out)[LANES]) {
    for (int i = 0; i < LANES; i++) {
        const uint16_t *key = keys + (i < count ? i : count - 1) * steps * BLOCK;
        __m512bh k[8];
        UNROLL for (int s = 0; s < steps; s++) k[s] = (__m512bh)_mm512_loadu_si512(key + s * BLOCK);
        for (int64_t h = 0; h < heads; h++) {
            __m512 sum = _mm512_setzero_ps();
            UNROLL for (int s = 0; s < steps; s++)
                sum = _mm512_dpbf16_ps(sum, k[s], (__m512bh)_mm512_loadu_si512(q + (h * steps + s) * BLOCK));
            out[h][i] = (f16v)sum;
        }
    }
}
#endif

/* Scores of `heads` queries [heads][size] against `count` keys, LANES at a time; those past the end are minus infinity. */
INLINE void score(const int is_bf16, int64_t heads, const float *q, const void *keys, int64_t base, int64_t size, int64_t count, float scale,
                  float (*scores)[KV_CHUNK]) {
    const i16v lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    f16v sums[HEADS_AT_ONCE][LANES];
#if HAVE_DOT_BF16
    uint16_t narrow[HEADS_AT_ONCE * MAX_HEAD_SIZE]; /* exact: queries are rounded to the model's type already */
    if (is_bf16)
        for (int64_t d = 0; d < heads * size; d++) narrow[d] = narrow1(q[d]);
#endif
    for (int64_t j = 0; j < count; j += LANES) {
        const int64_t at = base + j * size, left = count - j;
#if HAVE_DOT_BF16
        const uint16_t *k = (const uint16_t *)keys + at;
        if (is_bf16 && size == 64) dot_keys_bf16(2, heads, narrow, k, left, sums);
        else if (is_bf16 && size == 96) dot_keys_bf16(3, heads, narrow, k, left, sums);
        else if (is_bf16 && size == 128) dot_keys_bf16(4, heads, narrow, k, left, sums);
        else if (is_bf16 && size == 256) dot_keys_bf16(8, heads, narrow, k, left, sums);
        else
#endif
        for (int64_t h = 0; h < heads; h++) dot_keys(is_bf16, q + h * size, keys, at, size, left, sums[h]);
        for (int64_t h = 0; h < heads; h++)
            store_f(scores[h] + j, choose(lane < (int32_t)left, sums16(sums[h]) * scale, splat(-INFINITY)));
    }
}

/* Scores to exp(score - highest); returns the highest, and their sum. */
INLINE float exponentiate(float *scores, int64_t count, float *sum) {
    f16v highest = splat(-INFINITY), total = splat(0.f);
    for (int64_t j = 0; j < count; j += LANES) {
        const f16v s = load_f(scores + j);
        highest = choose(s > highest, s, highest);
    }
    float most = highest[0];
    for (int i = 1; i < LANES; i++) most = highest[i] > most ? highest[i] : most;
    for (int64_t j = 0; j < count; j += LANES) {
        const f16v s = load_f(scores + j);
        const f16v p = choose(s == splat(-INFINITY), splat(0.f), exp_v(s - most));
        store_f(scores + j, p);
        total += p;
    }
    *sum = sum1(total);
    return most;
}

/* `vectors` times LANES columns of `weigh`. */
INLINE void weigh_lanes(const int heads, const int vectors, const int is_bf16, const float (*p)[KV_CHUNK], const void *values, int64_t base,
                        int64_t size, int64_t count, float *out) {
    f16v acc[6][4];
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int i = 0; i < vectors; i++) acc[h][i] = splat(0.f);
    for (int64_t j = 0; j < count; j++) {
        f16v v[4];
        UNROLL for (int i = 0; i < vectors; i++) v[i] = load_any(values, base + j * size + i * LANES, is_bf16);
        UNROLL for (int h = 0; h < heads; h++)
            UNROLL for (int i = 0; i < vectors; i++) acc[h][i] = add_product(acc[h][i], splat(p[h][j]), v[i]);
    }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int i = 0; i < vectors; i++) store_f(out + h * size + i * LANES, acc[h][i]);
}

/* out[head] = probabilities[head] x values, for `heads` query heads that share the values. */
INLINE void weigh(const int heads, const int is_bf16, const float (*p)[KV_CHUNK], const void *values, int64_t base, int64_t size,
                  int64_t count, float *out) {
    int64_t d = 0;
    for (; d + 4 * LANES <= size; d += 4 * LANES) weigh_lanes(heads, 4, is_bf16, p, values, base + d, size, count, out + d);
    for (; d + LANES <= size; d += LANES) weigh_lanes(heads, 1, is_bf16, p, values, base + d, size, count, out + d);
    for (; d < size; d++)
        for (int h = 0; h < heads; h++) {
            float sum = 0;
            for (int64_t j = 0; j < count; j++) sum += p[h][j] * load_any1(values, base + j * size + d, is_bf16);
            out[h * size + d] = sum;
        }
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
            for (int64_t h = 0; h < heads;) {
                const int64_t left = heads - h, taken = left > 6 ? 4 : left; /* as many as the registers hold */
                float *out = e->part + (slot + h) * size;
                switch (taken) {
                    case 1: weigh(1, is_bf16, p + h, m->values, base, size, count, out); break;
                    case 2: weigh(2, is_bf16, p + h, m->values, base, size, count, out); break;
                    case 3: weigh(3, is_bf16, p + h, m->values, base, size, count, out); break;
                    case 4: weigh(4, is_bf16, p + h, m->values, base, size, count, out); break;
                    case 5: weigh(5, is_bf16, p + h, m->values, base, size, count, out); break;
                    default: weigh(6, is_bf16, p + h, m->values, base, size, count, out);
                }
                h += taken;
            }
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
            float *out = x->f + (t * m->heads + head) * size;
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

/* ---- sub-layers ---- */

static void add_to_hidden(Engine *e, const Linear *l, const Input *x, int64_t tokens, int thread, int threads) {
    const int is_bf16 = e->m.is_bf16;
    int64_t from, to;
    f16v out[MAX_TOKENS];
    share((l->rows + UNIT - 1) / UNIT, thread, threads, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        unit_rows(l, unit, x, tokens, out);
        const int64_t n = unit * UNIT, count = l->rows - n < UNIT ? l->rows - n : UNIT;
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t i = 0; i < count; i++) {
                float *h = e->hidden + t * e->m.hidden + n + i;
                *h = rounded1(*h + rounded1(out[t][i], is_bf16), is_bf16);
            }
    }
}

static void store_rows(float *y, int64_t stride, const Linear *l, const Input *x, int64_t tokens, int is_bf16, int thread, int threads) {
    int64_t from, to;
    f16v out[MAX_TOKENS];
    share((l->rows + UNIT - 1) / UNIT, thread, threads, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        unit_rows(l, unit, x, tokens, out);
        const int64_t n = unit * UNIT, count = l->rows - n < UNIT ? l->rows - n : UNIT;
        for (int64_t t = 0; t < tokens; t++) {
            f16v v = rounded(out[t], is_bf16);
            memcpy(y + t * stride + n, &v, count * sizeof(float));
        }
    }
}

/* The highest of the lanes; of equal ones, the lowest token. */
static Highest highest_of(const Running *r) {
    Highest highest = {r->token[0], r->logit[0], 0};
    for (int i = 1; i < LANES; i++)
        if (r->logit[i] > highest.logit || (r->logit[i] == highest.logit && r->token[i] < highest.token))
            highest = (Highest){r->token[i], r->logit[i], 0};
    highest.sum = sum1(r->sum * exp_v(r->logit - highest.logit));
    return highest;
}

/* Logits of this thread's rows: kept where there is room for them, and the highest of each block. */
static void head_rows(Engine *e, float *logits, const Linear *l, const Input *x, int64_t tokens, int thread, int threads) {
    const i16v lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f16v lowest = splat(-1e30f);
    const int64_t units = (l->rows + UNIT - 1) / UNIT;
    Running running[MAX_TOKENS];
    int64_t from, to;
    f16v out[MAX_TOKENS];
    share((units + HEAD_UNITS - 1) / HEAD_UNITS, thread, threads, &from, &to);
    for (int64_t unit = from * HEAD_UNITS; unit < to * HEAD_UNITS && unit < units; unit++) {
        if (unit % HEAD_UNITS == 0)
            for (int64_t t = 0; t < tokens; t++) running[t] = (Running){lowest, splat(0.f), (i16v){}};
        unit_rows(l, unit, x, tokens, out);
        const int64_t n = unit * UNIT, count = l->rows - n < UNIT ? l->rows - n : UNIT;
        const i16v there = lane < (int32_t)count;
        for (int64_t t = 0; t < tokens; t++) {
            Running *r = running + t;
            const f16v v = choose(there, rounded(out[t], e->m.is_bf16), lowest);
            if (logits) memcpy(logits + t * l->rows + n, &v, count * sizeof(float));
            const i16v higher = v > r->logit;
            const f16v highest = choose(higher, v, r->logit);
            r->sum = r->sum * exp_v(r->logit - highest) + choose(there, exp_v(v - highest), splat(0.f));
            r->token = (higher & (lane + (int32_t)n)) | (~higher & r->token);
            r->logit = highest;
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
    barrier(e, threads);
    int64_t from, to;
    share(tokens * all, thread, threads, &from, &to);
    for (int64_t i = from; i < to; i++) rotate_and_cache(e, s->layer, start, i / all, i % all);
    barrier(e, threads);
    const int64_t chunks = (start + tokens - 1) / KV_CHUNK + 1;
    /* In turns: the last chunks, seldom full, come to different threads. */
    for (int64_t i = thread; i < m->kv_heads * chunks; i += threads) {
        if (m->is_bf16) attend_chunk(e, 1, s, start, tokens, i % m->kv_heads, i / m->kv_heads);
        else attend_chunk(e, 0, s, start, tokens, i % m->kv_heads, i / m->kv_heads);
    }
    barrier(e, threads);
    combine(e, start, tokens, x);
    add_to_hidden(e, &s->second, x, tokens, thread, threads);
    barrier(e, threads);
}

static void mlp(Engine *e, const SubLayer *s, int64_t tokens, int thread, int threads) {
    const int is_bf16 = e->m.is_bf16;
    Input *x = &e->local[thread], *y = &e->shared;
    const Linear *gate = &s->first, *up = &s->second;
    const int64_t width = gate->rows;
    normalise(e, s->norm, s->epsilon, tokens, x);
    int64_t from, to;
    f16v g[MAX_TOKENS], u[MAX_TOKENS];
    share((width + UNIT - 1) / UNIT, thread, threads, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        unit_rows(gate, unit, x, tokens, g);
        unit_rows(up, unit, x, tokens, u);
        const int64_t n = unit * UNIT, count = width - n < UNIT ? width - n : UNIT;
        for (int64_t t = 0; t < tokens; t++) {
            f16v v = rounded(g[t], is_bf16);
            v = rounded(v / (1.f + exp_v(-v)), is_bf16) * rounded(u[t], is_bf16);
            v = rounded(v, is_bf16);
            memcpy(y->f + t * width + n, &v, count * sizeof(float));
            narrow_to(y, tokens, t, n, v, count);
        }
    }
    barrier(e, threads);
    Input whole = *y;
    whole.cols = width;
    whole.sums = x->sums;
    if (s->third.format == FORMAT_INT4 && tokens == 1) sum_groups(&whole);
    add_to_hidden(e, &s->third, &whole, tokens, thread, threads);
    barrier(e, threads);
}

/* ---- what the runner calls ---- */

static void *zeroed(int64_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes)) return NULL;
    memset(p, 0, bytes);
    return p;
}

static int make_input(Input *x, int64_t cols) {
    x->cols = cols;
    x->f = zeroed(MAX_TOKENS * cols * 4);
    x->b = zeroed(MAX_TOKENS * (cols + BLOCK) * 2);
    x->sums = zeroed((cols / GROUP + 1) * 4);
    return x->f && x->b && x->sums;
}

static void free_input(Input *x) { free(x->f); free(x->b); free(x->sums); }

void engine_free(Engine *e) {
    if (!e) return;
    free(e->hidden); free(e->qkv); free(e->part); free(e->part_max); free(e->part_sum);
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
    const int64_t slots = e->chunks * MAX_TOKENS * m->heads;
    e->hidden = zeroed(MAX_TOKENS * m->hidden * 4);
    e->qkv = zeroed(MAX_TOKENS * (m->heads + 2 * m->kv_heads) * m->head_size * 4);
    e->part = zeroed(slots * m->head_size * 4);
    e->part_max = zeroed(slots * 4);
    e->part_sum = zeroed(slots * 4);
    e->local = zeroed(m->threads * sizeof(Input));
    e->highest = zeroed((m->vocabulary / (UNIT * HEAD_UNITS) + 1) * MAX_TOKENS * sizeof(Highest));
    int ok = e->hidden && e->qkv && e->part && e->part_max && e->part_sum && e->local && e->highest && make_input(&e->shared, m->widest);
    for (int i = 0; ok && i < m->threads; i++) ok = make_input(&e->local[i], m->widest);
    if (ok) return e;
    engine_free(e);
    return NULL;
}

/* Run `count` token ids, at the positions that follow `start`, through the sub-layers.
 * logits [count, head->rows] in float32, or null; best [count]. */
void engine_run(Engine *e, const SubLayer *const *sublayers, int64_t num_sublayers, const Linear *head,
                const int64_t *tokens, int64_t count, int64_t start, float *logits, Best *best) {
    const Model *m = &e->m;
    atomic_store(&e->arrived, 0);
#pragma omp parallel num_threads(m->threads)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        int64_t from, to;
        share(count, thread, threads, &from, &to);
        for (int64_t t = from; t < to; t++)
            for (int64_t i = 0; i < m->hidden; i++)
                e->hidden[t * m->hidden + i] = load_any1(m->embedding, tokens[t] * m->hidden + i, m->is_bf16);
        barrier(e, threads);
        for (int64_t i = 0; i < num_sublayers; i++) {
            const SubLayer *s = sublayers[i];
            if (s->kind == KIND_ATTENTION) attention(e, s, start, count, thread, threads);
            else mlp(e, s, count, thread, threads);
        }
        normalise(e, m->final_norm, (float)m->epsilon, count, &e->local[thread]);
        head_rows(e, logits, head, &e->local[thread], count, thread, threads);
    }
    for (int64_t t = 0; t < count; t++) best[t] = best_of(e, head->rows, t);
}

/* A row's values of one group of an int4 weight, from its words. */
INLINE void dequantise_group(const uint32_t *words, f16v table, float scale, float centre, void *values, int64_t at, int is_bf16) {
    const u16v shifts = {0, 16, 4, 20, 8, 24, 12, 28, 0, 16, 4, 20, 8, 24, 12, 28};
    for (int half = 0; half < GROUP / LANES; half++) {
        const uint32_t a = words[2 * half * UNIT], b = words[(2 * half + 1) * UNIT];
        const u16v codes = ((u16v){a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b} >> shifts) & 15;
        store_any(values, at + half * LANES, look_up(table, (i16v)codes) * splat(scale) + splat(centre), is_bf16);
    }
}

/* An int8 or int4 weight back in the model's type: values [rows, cols]. */
void dequantise(const Linear *l, void *values, int32_t is_bf16, int32_t num_threads) {
    const int64_t groups = l->cols / GROUP, bytes = 32 + (l->has_centre ? 32 : 0) + 256;
    f16v table;
    for (int i = 0; i < LANES; i++) table[i] = l->has_centre ? (float)(i - 8) : CODEBOOK[i];
#pragma omp parallel for num_threads(num_threads)
    for (int64_t n = 0; n < l->rows; n++) {
        if (l->format == FORMAT_INT8) {
            for (int64_t k = 0; k < l->cols; k++)
                store_any1(values, n * l->cols + k, l->scales[n] * ((const int8_t *)l->data)[n * l->cols + k], is_bf16);
            continue;
        }
        const int64_t lane = n % UNIT;
        for (int64_t g = 0; g < groups; g++) {
            const uint8_t *p = (const uint8_t *)l->data + (n / UNIT * groups + g) * bytes;
            const float scale = widen1(((const uint16_t *)p)[lane]);
            const float centre = l->has_centre ? widen1(((const uint16_t *)p)[UNIT + lane]) : 0.f;
            const uint32_t *words = (const uint32_t *)(p + bytes - 256) + lane;
            dequantise_group(words, table, scale, centre, values, n * l->cols + g * GROUP, is_bf16);
        }
    }
}

/* The codes of the levels nearest to `x`, and the levels. */
INLINE i16v nearest_level(f16v x, f16v *level) {
    i16v code = {};
    *level = splat(CODEBOOK[0]);
    for (int j = 1; j < 16; j++) {
        const i16v above = x > (CODEBOOK[j - 1] + CODEBOOK[j]) / 2;
        code -= above;
        *level = choose(above, splat(CODEBOOK[j]), *level);
    }
    return code;
}

/* The best of a few scales near the extreme of GROUP weights of 16 rows, in the values that bfloat16 has.
 * An error's square counts as much as `importance` says. */
static f16v best_scale(const f16v *w, const float *importance) {
    static const float tried[] = {1.f, 0.95f, 0.9f, 1.05f, 0.85f, 1.1f};
    f16v extreme = {}, best = {}, least = splat(INFINITY);
    for (int i = 0; i < GROUP; i++) extreme = choose(w[i] * w[i] > extreme * extreme, w[i], extreme);
    const f16v inverse = choose(extreme != 0, 1 / extreme, splat(0.f));
    for (size_t c = 0; c < sizeof tried / sizeof *tried; c++) {
        f16v level[GROUP], along = {}, square = {}, error = {};
        for (int i = 0; i < GROUP; i++) {
            nearest_level(w[i] * inverse * splat(1 / tried[c]), &level[i]);
            along += splat(importance[i]) * level[i] * w[i];
            square += splat(importance[i]) * level[i] * level[i];
        }
        const f16v scale = rounded(along / square, 1); /* what suits these levels best; none of them is 0 */
        for (int i = 0; i < GROUP; i++) {
            const f16v wrong = level[i] * scale - w[i];
            error += splat(importance[i]) * wrong * wrong;
        }
        best = choose(error < least, scale, best);
        least = choose(error < least, error, least);
    }
    return best;
}

/* Codes [size, 16] and scales [size / GROUP, 16] of 16 rows, whose weights w [size] are spent on the way.
 * With `factor` [size, size] (upper triangular), the later weights make up for the error of each (GPTQ). */
static void encode(f16v *w, int64_t size, const float *importance, const uint16_t *factor, uint8_t *codes, uint16_t *scales) {
    for (int64_t begin = 0; begin < size; begin += GROUP) {
        const f16v scale = best_scale(w + begin, importance + begin);
        const f16v inverse = choose(scale != 0, 1 / scale, splat(0.f));
        const u16v bits = round_bits(scale);
        for (int lane = 0; lane < UNIT; lane++) scales[begin / GROUP * UNIT + lane] = (uint16_t)bits[lane];
        for (int64_t i = begin; i < begin + GROUP; i++) {
            f16v level;
            const i16v code = nearest_level(w[i] * inverse, &level);
            for (int lane = 0; lane < UNIT; lane++) codes[i * UNIT + lane] = (uint8_t)code[lane];
            if (factor == NULL) continue;
            const uint16_t *row = factor + i * size;
            const f16v wrong = (w[i] - level * scale) * splat(1 / widen1(row[i]));
            for (int64_t k = i + 1; k < size; k++) w[k] -= wrong * splat(widen1(row[k]));
        }
    }
}

/* An int4 copy by the codebook, in the layout of `dot_int4`, of a weight [rows, cols]; cols: a multiple of `size`, that of
 * GROUP. importance [cols]: what a squared error in each input counts. factors [cols / size, size, size], bfloat16, or NULL:
 * of each block of inputs, the upper Cholesky factor of the inverse of their second moments. */
void pack_codebook(const void *weight, int32_t is_bf16, int64_t rows, int64_t cols, const float *importance,
                   const uint16_t *factors, int64_t size, uint8_t *out, int32_t num_threads) {
    const int64_t groups = cols / GROUP, bytes = 32 + 256;
#pragma omp parallel for num_threads(num_threads)
    for (int64_t tile = 0; tile < (rows + UNIT - 1) / UNIT; tile++) {
        f16v w[MAX_BLOCK];
        uint8_t codes[MAX_BLOCK * UNIT];
        uint16_t scales[MAX_BLOCK / GROUP * UNIT];
        for (int64_t start = 0; start < cols; start += size) {
            for (int64_t i = 0; i < size; i++)
                for (int64_t lane = 0; lane < UNIT; lane++) {
                    const int64_t n = tile * UNIT + lane;
                    w[i][lane] = n < rows ? load_any1(weight, n * cols + start + i, is_bf16) : 0.f;
                }
            encode(w, size, importance + start, factors == NULL ? NULL : factors + start * size, codes, scales);
            for (int64_t g = 0; g < size / GROUP; g++) {
                uint8_t *p = out + (tile * groups + start / GROUP + g) * bytes;
                memcpy(p, scales + g * UNIT, 2 * UNIT);
                for (int64_t lane = 0; lane < UNIT; lane++)
                    for (int q = 0; q < 4; q++) {
                        uint32_t word = 0;
                        for (int i = 0; i < 8; i++)
                            word |= (uint32_t)codes[(g * GROUP + 8 * q + i) * UNIT + lane] << (i % 2 * 16 + i / 2 * 4);
                        memcpy(p + 32 + 64 * q + 4 * lane, &word, sizeof word);
                    }
            }
        }
    }
}

/* Sum of bytes read as 32-bit words: how fast this machine's memory can be read at all. */
uint32_t read_all(const uint8_t *data, int64_t bytes, int32_t num_threads) {
    uint32_t total = 0;
#pragma omp parallel num_threads(num_threads) reduction(+ : total)
    {
        int64_t from, to;
        share(bytes / 256, omp_get_thread_num(), omp_get_num_threads(), &from, &to);
        u16v acc[4] = {};
        for (int64_t i = from; i < to; i++)
            for (int j = 0; j < 4; j++) {
                u16v v;
                memcpy(&v, data + 256 * i + 64 * j, sizeof v);
                acc[j] += v;
            }
        u16v sum = acc[0] + acc[1] + acc[2] + acc[3];
        for (int i = 0; i < LANES; i++) total += sum[i];
    }
    return total;
}

/* Stubs until the kernels' own self-test is here. */
const char *kernels_level(void) { return KERNELS_LEVEL; }

int64_t kernels_abi(int32_t which) {
    const int64_t values[] = {1, sizeof(Linear), sizeof(SubLayer), sizeof(Model), sizeof(Best)};
    return values[which];
}

int32_t self_test(int32_t threads) { return threads < 1; }

double self_test_speed(int32_t format, int32_t tokens, int32_t threads) { return (format < 0 ? 2e9 : 1.8e9) / tokens * threads; }

#ifdef KERNELS_MAIN
int main(void) {
    for (int32_t threads = 1; threads <= 3; threads++) {
        const int32_t failed = self_test(threads);
        printf("%s, %d threads: %d\n", kernels_level(), threads, failed);
        if (failed) return 1;
    }
    printf("all right\n");
    return 0;
}
#endif
