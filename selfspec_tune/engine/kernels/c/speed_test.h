/* How fast weights are multiplied, and memory is read. */
#ifndef SPEED_TEST_H
#define SPEED_TEST_H
#include "test_weights.h"

enum { SPEED_COLS = 2048, SPEED_BYTES = 64 << 20, SPEED_PASSES = 4 };

typedef struct {
    const Linear *l;
    Input *inputs; /* per thread */
    int64_t tokens;
} Multiplying;

static void multiply_share(void *argument, int thread, int threads) {
    const Multiplying *m = argument;
    int64_t from, to;
    fv out[MAX_TOKENS][PARTS];
    share(m->l->rows / UNIT, thread, threads, &from, &to);
    for (int64_t unit = from; unit < to; unit++) unit_rows(m->l, unit, m->inputs + thread, m->tokens, out);
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Bytes a second at which a weight of about 64 MiB is multiplied with `tokens` tokens, the fastest of a few passes; of
 * format -1: at which as much is only read. 0 where there is no memory. */
double self_test_speed(int32_t format, int32_t tokens, int32_t threads) {
    Linear l;
    const int tested = format < 0 ? FORMAT_BF16 : format;
    const int64_t per_row = tested == FORMAT_INT4 ? SPEED_COLS / GROUP * GROUP_BYTES / UNIT : SPEED_COLS * weight_size(tested);
    const int64_t rows = SPEED_BYTES / per_row / UNIT * UNIT, bytes = rows * per_row;
    Input *inputs = calloc(threads, sizeof *inputs);
    int there = make_weight(&l, tested, rows, SPEED_COLS) && inputs && tokens > 0 && tokens <= MAX_TOKENS;
    for (int i = 0; there && i < threads; i++) {
        there = make_input(&inputs[i], SPEED_COLS);
        if (there) fill_input(&inputs[i], &l, 0, tokens);
    }
    double fastest = INFINITY;
    for (int i = 0; there && i < SPEED_PASSES; i++) {
        const double before = seconds_now();
        if (format < 0) read_all(l.data, bytes, threads);
        else parallel(threads, multiply_share, &(Multiplying){&l, inputs, tokens});
        const double taken = seconds_now() - before;
        fastest = taken < fastest ? taken : fastest;
    }
    for (int i = 0; inputs && i < threads; i++) free_input(&inputs[i]);
    free(inputs); free((void *)l.data); free((void *)l.scales);
    return there ? (double)bytes / fastest : 0;
}
#endif
