/* A few threads that live as long as the process, so that no OpenMP library is needed or disturbed.
 *
 * A job runs on all its threads at once, the caller's among them. Threads wait awake for a moment, for that is how long
 * waits take on a quiet machine; then they sleep, so that a process that has taken a core does not hold up every barrier.
 */
#ifndef POOL_H
#define POOL_H
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#include "vector.h"

#define BARRIER_SPINS 2000 /* looks before a thread goes to sleep: some tens of microseconds */
#define IDLE_SPINS 10000   /* the same between two jobs, where Python runs */
#define MOST_THREADS 1024
#define STACK_BYTES (1 << 20)

/* A number that threads wait for to change. */
typedef struct {
    atomic_uint number, asleep;
} Event;

INLINE void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until the number is another than `seen`; returns it. */
static unsigned wait_for(Event *e, unsigned seen, int spins) {
    unsigned now;
    for (; spins > 0; spins--) {
        if ((now = atomic_load_explicit(&e->number, memory_order_acquire)) != seen) return now;
        pause_cpu();
    }
#if !defined(__linux__)
    long nap = 20000; /* nanoseconds; longer the longer nothing happens */
#endif
    while ((now = atomic_load_explicit(&e->number, memory_order_acquire)) == seen) {
#if defined(__linux__)
        atomic_fetch_add(&e->asleep, 1);
        syscall(SYS_futex, &e->number, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0); /* returns at once where it has changed */
        atomic_fetch_sub(&e->asleep, 1);
#else
        nanosleep(&(struct timespec){0, nap}, NULL);
        if (nap < 1000000) nap *= 2;
#endif
    }
    return now;
}

static void change(Event *e, unsigned number) {
    atomic_store(&e->number, number);
#if defined(__linux__)
    if (atomic_load(&e->asleep)) syscall(SYS_futex, &e->number, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#endif
}

typedef struct {
    Event phase;
    atomic_uint arrived;
} Barrier;

/* Returns once `threads` threads have called it. */
static void barrier(Barrier *b, int threads) {
    if (threads == 1) return;
    const unsigned phase = atomic_load_explicit(&b->phase.number, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) < (unsigned)threads - 1) {
        wait_for(&b->phase, phase, BARRIER_SPINS);
        return;
    }
    atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
    change(&b->phase, phase + 1);
}

typedef void Job(void *argument, int thread, int threads);

static struct {
    pthread_mutex_t one_at_a_time;
    pid_t process; /* a forked child has none of its parent's threads */
    int workers;
    Event begun; /* a count of jobs, and in its last bits on how many threads */
    Job *job;
    void *argument;
    Barrier done;
} pool = {.one_at_a_time = PTHREAD_MUTEX_INITIALIZER};

/* OpenMP may have bound the caller to one core; a thread that it starts would share that core. */
static void leave_bound_core(void) {
#if defined(__linux__)
    const char *const names[] = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"};
    int is_bound = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) is_bound |= getenv(names[i]) != NULL;
    if (!is_bound) return;
    cpu_set_t all;
    memset(&all, 0xff, sizeof all); /* the system takes of these what the process may have */
    sched_setaffinity(0, sizeof all, &all);
#endif
}

static void *work(void *number) {
    leave_bound_core();
    const int thread = (int)(intptr_t)number;
    unsigned seen = 0;
    for (;;) {
        seen = wait_for(&pool.begun, seen, IDLE_SPINS);
        const int threads = (int)(seen % MOST_THREADS);
        if (thread >= threads) continue; /* not this one's: nothing of the job may be read */
        pool.job(pool.argument, thread, threads);
        barrier(&pool.done, threads);
    }
    return NULL;
}

/* Workers take no signals: those are the program's own threads' to handle. */
static void add_workers(int threads) {
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; pool.workers + 1 < threads; pool.workers++) {
        pthread_t started;
        if (pthread_create(&started, &attributes, work, (void *)(intptr_t)(pool.workers + 1))) break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* As many of `threads` as there can be, the caller's among them. */
static int have_threads(int threads) {
    if (pool.process != getpid()) {
        pool.process = getpid();
        pool.workers = 0;
        pool.begun = (Event){0};
        pool.done = (Barrier){0};
    }
    if (threads >= MOST_THREADS) threads = MOST_THREADS - 1;
    if (pool.workers + 1 < threads) add_workers(threads);
    return threads < pool.workers + 1 ? threads : pool.workers + 1;
}

static void after_fork(void) {
    pthread_mutex_init(&pool.one_at_a_time, NULL);
    pool.process = 0;
}
static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

/* Run a job on `threads` threads, or on fewer where the system gives no more. */
static void parallel(int threads, Job *job, void *argument) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (threads <= 1) {
        job(argument, 0, 1);
        return;
    }
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&pool.one_at_a_time);
    threads = have_threads(threads);
    if (threads > 1) {
        pool.job = job;
        pool.argument = argument;
        const unsigned count = atomic_load(&pool.begun.number) / MOST_THREADS + 1;
        change(&pool.begun, count * MOST_THREADS + (unsigned)threads);
    }
    job(argument, 0, threads);
    barrier(&pool.done, threads);
    pthread_mutex_unlock(&pool.one_at_a_time);
}

/* The range of `count` units that a thread takes. */
INLINE void share(int64_t count, int thread, int threads, int64_t *from, int64_t *to) {
    *from = count * thread / threads;
    *to = count * (thread + 1) / threads;
}
#endif
