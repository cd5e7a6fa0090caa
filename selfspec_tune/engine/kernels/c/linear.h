/* Linear layers of every format: a unit of rows against all tokens of a pass. */
#ifndef LINEAR_H
#define LINEAR_H
#include "int4.h"
#include "tiles.h"

/* out[t][part] = rows `first` … of one unit, bias included; rows past the end are undefined. */
static void unit_rows(const Linear *l, int64_t unit, const Input *x, int64_t tokens, fv out[][PARTS]) {
    const int64_t first = unit * UNIT, count = l->rows - first < UNIT ? l->rows - first : UNIT;
    if (l->format == FORMAT_INT4) {
        dot_int4_unit(l, unit, x, tokens, out);
    } else {
        fv sums[MAX_TOKENS * UNIT];
        if (l->format == FORMAT_BF16) dot_bf16(l, first, count, x, tokens, sums);
        else if (l->format == FORMAT_INT8) dot_int8(l, first, count, x, tokens, sums);
        else dot_f32(l, first, count, x, tokens, sums);
        for (int64_t t = 0; t < tokens; t++)
            for (int part = 0; part < PARTS; part++) out[t][part] = sums_of(sums + t * UNIT + part * LANES);
    }
    for (int part = 0; part < PARTS; part++) {
        const int64_t left = count - part * LANES;
        if (l->format >= FORMAT_INT8) {
            const fv scale = load_some(l->scales + first + part * LANES, left);
            for (int64_t t = 0; t < tokens; t++) out[t][part] *= scale;
        }
        if (l->bias) {
            const fv bias = load_some(l->bias + first + part * LANES, left);
            for (int64_t t = 0; t < tokens; t++) out[t][part] += bias;
        }
    }
}
#endif
