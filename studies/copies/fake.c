/* The values that copies of few bits stand for: levels of any number, scales of any fineness, GPTQ over any inputs.
 * Weights lie [batches, inputs, ROWS]: ROWS rows side by side. All is float. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define ROWS 64
#define GROUP 32 /* inputs that share a scale */
#define TRIED 6

typedef struct {
    const float *levels; /* ascending, in units of a group's greatest weight */
    int32_t count;
    int32_t mantissa; /* bits that a scale keeps after its first */
} Format;

static float rounded(float x, int bits) {
    uint32_t u, half = 1u << (22 - bits);
    memcpy(&u, &x, 4);
    u = (u + half - 1 + (u >> (23 - bits) & 1)) & ~(2 * half - 1);
    memcpy(&x, &u, 4);
    return x;
}

static void nearest(const Format *f, const float *x, float *level) {
    for (int r = 0; r < ROWS; r++) level[r] = f->levels[0];
    for (int j = 1; j < f->count; j++) {
        const float above = (f->levels[j - 1] + f->levels[j]) / 2, this = f->levels[j];
        for (int r = 0; r < ROWS; r++) level[r] = x[r] > above ? this : level[r];
    }
}

/* Of GROUP inputs' weights w [GROUP, ROWS], the best of a few scales: an error's square counts as `importance` says. */
static void best_scale(const Format *f, const float *w, const float *importance, float *best) {
    static const float tried[TRIED] = {1.f, 0.95f, 0.9f, 1.05f, 0.85f, 1.1f};
    float extreme[ROWS] = {0}, least[ROWS], level[GROUP][ROWS], x[ROWS];
    for (int r = 0; r < ROWS; r++) { best[r] = 0; least[r] = INFINITY; }
    for (int i = 0; i < GROUP; i++)
        for (int r = 0; r < ROWS; r++) extreme[r] = fabsf(w[i * ROWS + r]) > fabsf(extreme[r]) ? w[i * ROWS + r] : extreme[r];
    for (int t = 0; t < TRIED; t++) {
        float along[ROWS] = {0}, square[ROWS] = {0}, error[ROWS] = {0}, scale[ROWS];
        for (int i = 0; i < GROUP; i++) {
            for (int r = 0; r < ROWS; r++) x[r] = extreme[r] != 0 ? w[i * ROWS + r] / (extreme[r] * tried[t]) : 0;
            nearest(f, x, level[i]);
            for (int r = 0; r < ROWS; r++) {
                along[r] += importance[i] * level[i][r] * w[i * ROWS + r];
                square[r] += importance[i] * level[i][r] * level[i][r];
            }
        }
        for (int r = 0; r < ROWS; r++) scale[r] = square[r] != 0 ? rounded(along[r] / square[r], f->mantissa) : 0;
        for (int i = 0; i < GROUP; i++)
            for (int r = 0; r < ROWS; r++) {
                const float wrong = level[i][r] * scale[r] - w[i * ROWS + r];
                error[r] += importance[i] * wrong * wrong;
            }
        for (int r = 0; r < ROWS; r++) {
            best[r] = error[r] < least[r] ? scale[r] : best[r];
            least[r] = error[r] < least[r] ? error[r] : least[r];
        }
    }
}

/* Scales [batches, inputs / GROUP, ROWS] of the weights as they are. */
void find_scales(const float *w, int64_t batches, int64_t inputs, const float *importance, const Format *f, float *scales) {
    for (int64_t g = 0; g < batches * inputs / GROUP; g++)
        best_scale(f, w + g * GROUP * ROWS, importance + g * GROUP % inputs, scales + g * ROWS);
}

static void encode(float *w, int64_t inputs, const float *importance, const float *factor, const float *given, const Format *f, float *wrong) {
    for (int64_t begin = 0; begin < inputs; begin += GROUP) {
        float found[ROWS], x[ROWS], level[ROWS];
        if (given == NULL) best_scale(f, w + begin * ROWS, importance + begin, found);
        for (int64_t i = begin; i < begin + GROUP; i++) {
            const float *scale = given == NULL ? found : given + i * ROWS;
            float *own = w + i * ROWS, *left = wrong + i * ROWS;
            for (int r = 0; r < ROWS; r++) x[r] = scale[r] != 0 ? own[r] / scale[r] : 0;
            nearest(f, x, level);
            for (int r = 0; r < ROWS; r++) {
                left[r] = (own[r] - level[r] * scale[r]) / factor[i * inputs + i];
                own[r] = level[r] * scale[r];
            }
            for (int64_t k = i + 1; k < inputs; k++)
                for (int r = 0; r < ROWS; r++) w[k * ROWS + r] -= left[r] * factor[i * inputs + k];
        }
    }
}

/* Weights become the values that their codes stand for. factor [inputs, inputs]: of the inverse of the inputs' second moments,
 * the upper Cholesky factor; the identity rounds every weight by itself. given [batches, inputs, ROWS]: scales; NULL: the best.
 * wrong [batches, inputs, ROWS] takes what inputs that follow are to make up for, times their part of the factor. */
void fake(float *w, int64_t batches, int64_t inputs, const float *importance, const float *factor, const float *given,
          const Format *f, float *wrong) {
    for (int64_t b = 0; b < batches; b++) {
        const int64_t at = b * inputs * ROWS;
        encode(w + at, inputs, importance, factor, given == NULL ? NULL : given + at, f, wrong + at);
    }
}
