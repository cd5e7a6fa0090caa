/* Vectors of the width that the processor has, and the few operations on them that kernels are made of.
 *
 * Written with the vector extensions of GCC and clang; intrinsics stand only where those have no word for it.
 */
#ifndef VECTOR_H
#define VECTOR_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* LANES: floats in a vector. REGISTERS: vectors that the processor holds. Wider vectors than the processor's
 * would live in memory: GCC does not split them into registers. */
#if defined(__AVX512F__)
#define LANES 16
#define REGISTERS 32
#elif defined(__AVX2__)
#define LANES 8
#define REGISTERS 16
#elif defined(__aarch64__)
#define LANES 4
#define REGISTERS 32
#else
#define LANES 4
#define REGISTERS 16
#endif

/* Whether one instruction multiplies pairs of bfloat16 and adds both products to a float. */
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAVE_DOT_BF16 1
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HAVE_DOT_BF16 1
#else
#define HAVE_DOT_BF16 0
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32") /* so that sums stay in registers */
#endif
#define INLINE static inline __attribute__((always_inline, unused))

typedef float fv __attribute__((vector_size(4 * LANES)));
typedef int32_t iv __attribute__((vector_size(4 * LANES)));
typedef uint32_t uv __attribute__((vector_size(4 * LANES)));
typedef uint16_t hv __attribute__((vector_size(2 * LANES)));
typedef int16_t sv __attribute__((vector_size(2 * LANES)));
typedef int8_t bv __attribute__((vector_size(LANES)));
typedef uint8_t wide_bytes __attribute__((vector_size(4 * LANES)));

INLINE fv load_f(const float *p) { fv v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_f(float *p, fv v) { memcpy(p, &v, sizeof v); }
INLINE fv splat(float x) {
#if defined(__AVX512F__)
    return (fv)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (fv)_mm256_set1_ps(x);
#else
    return (fv){} + x;
#endif
}
/* The first `count` of LANES numbers, and zeros. */
INLINE fv load_some(const float *p, int64_t count) {
    if (count >= LANES) return load_f(p);
    fv v = splat(0.f);
    if (count > 0) memcpy(&v, p, count * sizeof(float));
    return v;
}
INLINE void store_some(float *p, fv v, int64_t count) {
    if (count >= LANES) store_f(p, v);
    else memcpy(p, &v, count * sizeof(float));
}
INLINE iv splat_i(int32_t x) {
#if defined(__AVX512F__)
    return (iv)_mm512_set1_epi32(x);
#elif defined(__AVX2__)
    return (iv)_mm256_set1_epi32(x);
#else
    return (iv){} + x;
#endif
}
INLINE iv lane_numbers(void) {
    iv v;
    for (int i = 0; i < LANES; i++) v[i] = i;
    return v;
}
INLINE fv choose(iv where, fv yes, fv no) { return (fv)((where & (iv)yes) | (~where & (iv)no)); }
INLINE fv magnitude(fv x) { return (fv)((iv)x & 0x7fffffff); }
/* The nearest whole numbers, ties to even, of numbers below 2^22. */
INLINE iv nearest(fv x) {
    const float big = 12582912.f; /* 1.5 * 2^23: adding it rounds to a whole number */
    return (iv)(x + big) - (iv)splat(big);
}

/* bfloat16 to float, exact. */
INLINE fv widen(const uint16_t *p) {
#if defined(__AVX512F__)
    return (fv)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif defined(__AVX2__)
    return (fv)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    hv h;
    memcpy(&h, p, sizeof h);
    return (fv)(__builtin_convertvector(h, uv) << 16);
#endif
}
INLINE float float_of(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
INLINE float widen1(uint16_t h) { return float_of((uint32_t)h << 16); }
/* Pairs of bfloat16 neighbours: the even ones, the odd ones. */
INLINE uv load_pairs(const uint16_t *p) { uv v; memcpy(&v, p, sizeof v); return v; }
INLINE fv widen_even(uv pairs) { return (fv)(pairs << 16); }
INLINE fv widen_odd(uv pairs) { return (fv)(pairs & 0xffff0000u); }

/* float to bfloat16, to the nearest, ties to even. */
INLINE uv round_bits(fv x) { uv u = (uv)x; return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
INLINE uint16_t narrow1(float x) { uint32_t u; memcpy(&u, &x, 4); return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16); }
INLINE hv narrow(fv x) { return __builtin_convertvector(round_bits(x), hv); }
INLINE fv rounded(fv x, int is_bf16) { return is_bf16 ? (fv)(round_bits(x) << 16) : x; }
INLINE float rounded1(float x, int is_bf16) { return is_bf16 ? widen1(narrow1(x)) : x; }

/* Values in the model's type: bfloat16 or float. */
INLINE fv load_any(const void *p, int64_t i, int is_bf16) {
    return is_bf16 ? widen((const uint16_t *)p + i) : load_f((const float *)p + i);
}
INLINE float load_any1(const void *p, int64_t i, int is_bf16) {
    return is_bf16 ? widen1(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}
INLINE void store_any(void *p, int64_t i, fv x, int is_bf16) {
    if (!is_bf16) { store_f((float *)p + i, x); return; }
    const hv bits = narrow(x);
    memcpy((uint16_t *)p + i, &bits, sizeof bits);
}
INLINE void store_any1(void *p, int64_t i, float x, int is_bf16) {
    if (is_bf16) ((uint16_t *)p)[i] = narrow1(x); else ((float *)p)[i] = x;
}

/* int8 to float. */
INLINE fv widen_int8(const int8_t *p) {
#if defined(__AVX512F__)
    return (fv)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (fv)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    bv b;
    memcpy(&b, p, sizeof b);
    /* Step by step: GCC turns a wider jump into scalar code. */
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(b, sv), iv), fv);
#endif
}

/* Whole numbers from -128 to 127 as int8. */
INLINE bv narrow_int8(iv x) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)x);
    bv b;
    memcpy(&b, &bytes, sizeof b);
    return b;
#else
    return __builtin_convertvector(__builtin_convertvector(x, sv), bv);
#endif
}

/* sum + a * b, rounded once where the processor can. Never left to the compiler, which might
 * fuse in the code for one number of tokens and not in that for another. */
INLINE fv add_product(fv sum, fv a, fv b) {
#if defined(__AVX512F__)
    return (fv)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return (fv)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__aarch64__)
    return (fv)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return sum + a * b;
#endif
}

/* Keeps a number in its register: GCC loads an input anew for every product, and stores sums between two products. */
INLINE void hold(fv *v) {
#if defined(__clang__)
    (void)v;
#elif defined(__x86_64__)
    __asm__("" : "+v"(*v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(*v));
#endif
}

#if HAVE_DOT_BF16
/* 2 * LANES bfloat16 values. */
#if defined(__x86_64__)
typedef __m512bh dot_vector;
INLINE dot_vector load_dot(const uint16_t *p) { return (__m512bh)_mm512_loadu_si512(p); }
/* The first `count` < 2 * LANES of them, and zeros. */
INLINE dot_vector load_some_dot(const uint16_t *p, int count) { return (__m512bh)_mm512_maskz_loadu_epi16((1u << count) - 1, p); }
/* Adds w[2i] * x[2i] + w[2i + 1] * x[2i + 1] to lane i. */
INLINE fv add_dot(fv sum, dot_vector w, dot_vector x) { return (fv)_mm512_dpbf16_ps((__m512)sum, w, x); }
#else
typedef bfloat16x8_t dot_vector;
INLINE dot_vector load_dot(const uint16_t *p) { return vreinterpretq_bf16_u16(vld1q_u16(p)); }
INLINE dot_vector load_some_dot(const uint16_t *p, int count) {
    uint16_t numbers[2 * LANES] = {0};
    memcpy(numbers, p, count * sizeof(uint16_t));
    return load_dot(numbers);
}
INLINE fv add_dot(fv sum, dot_vector w, dot_vector x) { return (fv)vbfdotq_f32((float32x4_t)sum, w, x); }
#endif
#endif

/* ---- sums over lanes, always in the same order ---- */

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (iv){__VA_ARGS__})
#endif
#define FOLD(a, b, first, second) (SHUFFLE(a, b, first) + SHUFFLE(a, b, second))
/* Which lanes of two vectors are added: those some lanes apart. With 8 lanes the last two steps stay inside halves. */
#if LANES == 16
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define LOW2 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29
#define HIGH2 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31
#define LOW1 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define HIGH1 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15
#define LOW2 0, 1, 8, 9, 4, 5, 12, 13
#define HIGH2 2, 3, 10, 11, 6, 7, 14, 15
#define LOW1 0, 2, 8, 10, 4, 6, 12, 14
#define HIGH1 1, 3, 9, 11, 5, 7, 13, 15
#else
#define LOW2 0, 1, 4, 5
#define HIGH2 2, 3, 6, 7
#define LOW1 0, 2, 4, 6
#define HIGH1 1, 3, 5, 7
#endif
/* The sums of LANES vectors, as one vector. */
INLINE fv sums_of(const fv *v) {
#if LANES == 16
    fv a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) a[i] = FOLD(v[2 * i], v[2 * i + 1], LOW8, HIGH8);
    for (int i = 0; i < 4; i++) b[i] = FOLD(a[2 * i], a[2 * i + 1], LOW4, HIGH4);
#elif LANES == 8
    fv b[4], c[2];
    for (int i = 0; i < 4; i++) b[i] = FOLD(v[i], v[i + 4], LOW4, HIGH4);
#else
    const fv *b = v;
    fv c[2];
#endif
    for (int i = 0; i < 2; i++) c[i] = FOLD(b[2 * i], b[2 * i + 1], LOW2, HIGH2);
    return FOLD(c[0], c[1], LOW1, HIGH1);
}
INLINE float sum_of(fv v) {
    float b[LANES];
    memcpy(b, &v, sizeof b);
    for (int step = LANES / 2; step; step >>= 1)
        for (int i = 0; i < step; i++) b[i] += b[i + step];
    return b[0];
}

INLINE int32_t sum_of_lanes(iv v) {
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}
INLINE int32_t highest_lane(iv v) {
    int32_t b[LANES];
    memcpy(b, &v, sizeof b);
    for (int step = LANES / 2; step; step >>= 1)
        for (int i = 0; i < step; i++) b[i] = b[i] > b[i + step] ? b[i] : b[i + step];
    return b[0];
}

/* ---- bytes: looked up in a table of 16, and multiplied ---- */

/* A table of 16 bytes, once for every 16 bytes of a vector. */
INLINE wide_bytes byte_table(const uint8_t *table) {
    wide_bytes v;
    for (int i = 0; i < 4 * LANES; i += 16) memcpy((uint8_t *)&v + i, table, 16);
    return v;
}
/* table[index], each index 0 … 15. */
#if LANES == 16
INLINE wide_bytes look_up_bytes(wide_bytes table, wide_bytes index) {
    return (wide_bytes)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
}
#elif LANES == 8
INLINE wide_bytes look_up_bytes(wide_bytes table, wide_bytes index) {
    return (wide_bytes)_mm256_shuffle_epi8((__m256i)table, (__m256i)index);
}
#elif defined(__aarch64__)
INLINE wide_bytes look_up_bytes(wide_bytes table, wide_bytes index) {
    return (wide_bytes)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index);
}
#else
/* Not inlined: no instruction does it, and compilers take minutes over thousands of copies. */
static __attribute__((noinline, unused)) wide_bytes look_up_bytes(wide_bytes table, wide_bytes index) {
    uint8_t bytes[16], places[16];
    memcpy(bytes, &table, 16);
    memcpy(places, &index, 16);
    for (int i = 0; i < 16; i++) places[i] = bytes[places[i]];
    memcpy(&index, places, 16);
    return index;
}
#endif

/* Adds to lane i the products of its four bytes: a, 0 … 127, and b, an int8. Exact: two products fit int16. */
INLINE iv add_bytes_dot(iv sum, wide_bytes a, wide_bytes b) {
#if defined(__AVX512VNNI__)
    return (iv)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512F__)
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)a, (__m512i)b);
    return (iv)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVXVNNI__)
    return (iv)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)a, (__m256i)b);
    return (iv)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif defined(__ARM_FEATURE_DOTPROD)
    return (iv)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
#elif defined(__aarch64__)
    const int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)a), vget_low_s8((int8x16_t)b));
    const int16x8_t high = vmull_high_s8((int8x16_t)a, (int8x16_t)b);
    return (iv)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
#elif defined(__SSE2__)
    const __m128i zero = _mm_setzero_si128(), first = (__m128i)a, second = (__m128i)b;
    const __m128i low = _mm_madd_epi16(_mm_unpacklo_epi8(first, zero), _mm_srai_epi16(_mm_unpacklo_epi8(second, second), 8));
    const __m128i high = _mm_madd_epi16(_mm_unpackhi_epi8(first, zero), _mm_srai_epi16(_mm_unpackhi_epi8(second, second), 8));
    return sum + FOLD((iv)low, (iv)high, LOW1, HIGH1);
#endif
}

/* exp by range reduction and a polynomial of degree 6; relative error about 2e-7. */
INLINE fv exp_v(fv x) {
    const float big = 12582912.f; /* 1.5 * 2^23: adding it rounds to a whole number */
    x = choose(x < splat(-87.f), splat(-87.f), x);
    x = choose(x > splat(88.f), splat(88.f), x);
    fv shifted = add_product(splat(big), x, splat(1.44269504f));
    fv n = shifted - big;
    fv r = add_product(add_product(x, n, splat(-0.693359375f)), n, splat(2.12194440e-4f));
    fv p = splat(1.3981999507e-3f);
    p = add_product(splat(8.3334519073e-3f), p, r);
    p = add_product(splat(4.1665795894e-2f), p, r);
    p = add_product(splat(1.6666665459e-1f), p, r);
    p = add_product(splat(5.0000001201e-1f), p, r);
    p = add_product(r, p * r, r) + 1.f;
    iv power = (__builtin_convertvector(n, iv) + 127) << 23;
    return p * (fv)power;
}
#endif
