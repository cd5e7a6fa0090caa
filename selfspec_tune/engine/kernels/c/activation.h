/* Activation functions, of vectors. */
#ifndef ACTIVATION_H
#define ACTIVATION_H
#include "vector.h"

enum { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4, XIELU = 5, NUM_ACTIVATIONS = 6 };

typedef struct {
    int32_t kind;
    float numbers[4]; /* xIELU: factors of x squared (x > 0), of exp(x) - 1 - x (else), of x; and the most that exp is taken of */
} Activation;

INLINE fv with_sign_of(fv x, fv sign) { return (fv)((iv)x | ((iv)sign & INT32_MIN)); }
INLINE fv polynomial(const float *factors, int count, fv x) {
    fv p = splat(factors[0]);
    for (int i = 1; i < count; i++) p = add_product(splat(factors[i]), p, x);
    return p;
}

/* exp(x) - 1, of a relative error below 1e-6 near zero too. */
INLINE fv expm1_v(fv x) {
    static const float factors[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    const fv near_zero = add_product(x, polynomial(factors, 5, x) * x, x);
    return choose(magnitude(x) < splat(0.34f), near_zero, exp_v(x) - 1.f);
}

/* By an odd polynomial near zero, elsewhere from exp; an error of about two units in the last place. */
INLINE fv tanh_v(fv x) {
    static const float factors[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f};
    const fv size = magnitude(x), square = x * x;
    const fv near_zero = add_product(x, polynomial(factors, 5, square) * square, x);
    const fv beyond = 1.f - 2.f / (exp_v(size + size) + 1.f);
    return choose(size < splat(0.625f), near_zero, with_sign_of(beyond, x));
}

/* By an odd polynomial near zero, elsewhere 1 - exp(a polynomial); an error of about two units in the last place. */
INLINE fv erf_v(fv x) {
    static const float near_factors[] = {-5.96761703e-4f, 4.99119423e-3f, -2.67681349e-2f, 1.12819925e-1f, -3.76125336e-1f, 1.28379166e-1f};
    static const float far_factors[] = {-1.72853470e-5f, 3.83197126e-4f, -3.88396438e-3f, 2.42546219e-2f, -1.06777877e-1f, -6.34846687e-1f,
                                        -1.28717512e-1f};
    const fv near_zero = add_product(x, polynomial(near_factors, 6, x * x), x);
    const fv size = choose(magnitude(x) > splat(4.f), splat(4.f), magnitude(x)); /* whose erf is 1 already */
    const fv beyond = 1.f - exp_v(add_product(-size, polynomial(far_factors, 7, size), size));
    return choose(size < splat(0.9277344f), near_zero, with_sign_of(beyond, x));
}

INLINE fv activated(const Activation *a, fv x) {
    const fv zero = splat(0.f);
    switch (a->kind) {
    case SILU: return x / (1.f + exp_v(-x));
    case GELU: return 0.5f * x * (1.f + erf_v(x * 0.70710678f));
    case GELU_TANH: return 0.5f * x * (1.f + tanh_v(0.79788456f * (x + 0.044715f * x * x * x)));
    case RELU: return choose(x > zero, x, zero);
    case RELU2: { const fv positive = choose(x > zero, x, zero); return positive * positive; }
    default: {
        const fv least = choose(x < splat(a->numbers[3]), x, splat(a->numbers[3]));
        return choose(x > zero, a->numbers[0] * x * x, (expm1_v(least) - x) * a->numbers[1]) + a->numbers[2] * x;
    }
    }
}
#endif
