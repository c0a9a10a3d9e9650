/* A pool of threads. Within a call they wait by spinning, since a step has many barriers microseconds apart; between
 * calls they spin for LINGER_NS, which bridges the steps of one engine, and then sleep on a condition variable. */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define LINE 64              /* bytes of a cache line: what several threads write lies apart */
#define STACK_BYTES (2 << 20)
#define LINGER_NS 400000
#define ALONE_NS 50000       /* of them, before a waiting thread offers its processor to others */
#define SPINS 4000           /* pauses before a waiting thread offers its processor to others */

typedef struct {
    fathom_pool *pool;
    int thread;
} worker_argument;

struct fathom_pool {
    int threads, started;    /* workers besides the caller that run */
    atomic_int forks, stop;  /* value of ``forks`` when they were started */
    void (*fn)(int, int, void *);
    void *arg;
    pthread_mutex_t callers, lock;
    pthread_cond_t wake;
    _Alignas(LINE) atomic_int call; /* number of the call that runs */
    atomic_int sleepers;
    _Alignas(LINE) atomic_int running;
    _Alignas(LINE) atomic_int arrived;
    _Alignas(LINE) atomic_int passed; /* barriers passed */
    _Alignas(LINE) pthread_t workers[FATHOM_MOST_THREADS];
    worker_argument arguments[FATHOM_MOST_THREADS];
};

static atomic_int forks; /* of this process and its ancestors; counted in the child */
static pthread_once_t watch_once = PTHREAD_ONCE_INIT;
static _Thread_local const fathom_pool *inside; /* the pool whose function this thread runs */

/* Held while a pool is started again in a child, and over a fork, so that no child is born with it locked. */
static pthread_mutex_t restart = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) { pthread_mutex_lock(&restart); }
static void after_fork(void) { pthread_mutex_unlock(&restart); }

static void in_child(void) {
    atomic_fetch_add(&forks, 1);
    after_fork();
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork, in_child); }

static void relax(void) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Spin while ``value`` is ``old``. */
static void spin(atomic_int *value, int old) {
    for (int spins = 0; atomic_load_explicit(value, memory_order_acquire) == old; spins++)
        if (spins < SPINS)
            relax();
        else
            sched_yield();
}

void fathom_barrier(fathom_pool *pool) {
    const int passed = atomic_load_explicit(&pool->passed, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->passed, (int)((unsigned)passed + 1), memory_order_release);
    } else {
        spin(&pool->passed, passed);
    }
}

/* Wait for a call after ``last``: spin for a while, then sleep. */
static int next_call(fathom_pool *pool, int last) {
    const int64_t began = now();
    for (int64_t waited = 0; waited < LINGER_NS; waited = now() - began) {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&pool->call, memory_order_acquire) != last || atomic_load(&pool->stop))
                return atomic_load(&pool->call);
            relax();
        }
        if (waited > ALONE_NS) sched_yield();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->call) == last && !atomic_load(&pool->stop)) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
    return atomic_load(&pool->call);
}

static void *work(void *given) {
    const worker_argument *argument = given;
    fathom_pool *pool = argument->pool;
    inside = pool;
    for (int last = 0;;) {
        last = next_call(pool, last);
        if (atomic_load(&pool->stop)) return NULL;
        pool->fn(argument->thread, pool->threads, pool->arg);
        atomic_fetch_sub_explicit(&pool->running, 1, memory_order_release);
    }
}

static void stop_workers(fathom_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->stop, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->workers[i], NULL);
    pool->started = 0;
}

/* Start the workers, with every signal blocked in them: signals belong to the program's own threads. */
static int start_workers(fathom_pool *pool) {
    pthread_attr_t attributes;
    sigset_t all, before;
    int failed = 0;
    pool->started = 0;
    atomic_store(&pool->stop, 0);
    atomic_store(&pool->call, 0);
    atomic_store(&pool->sleepers, 0);
    atomic_store(&pool->running, 0);
    atomic_store(&pool->arrived, 0);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (!failed && pool->started < pool->threads - 1) {
        worker_argument *argument = &pool->arguments[pool->started];
        *argument = (worker_argument){pool, pool->started + 1};
        failed = pthread_create(&pool->workers[pool->started], &attributes, work, argument);
        if (!failed) pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (!failed) {
        atomic_store(&pool->forks, atomic_load(&forks));
        return 0;
    }
    const int started = pool->started;
    stop_workers(pool);
    return fathom_fail("started %d of %d threads; the system allows no more", started + 1, pool->threads);
}

fathom_pool *fathom_pool_new(int threads) {
    if (threads < 1 || threads > FATHOM_MOST_THREADS) {
        fathom_fail("a pool has 1 to %d threads, not %d", FATHOM_MOST_THREADS, threads);
        return NULL;
    }
    void *memory = NULL;
    if (posix_memalign(&memory, LINE, sizeof(fathom_pool))) {
        fathom_fail("no memory for a pool of threads");
        return NULL;
    }
    pthread_once(&watch_once, watch_forks);
    fathom_pool *pool = memory;
    *pool = (fathom_pool){.threads = threads};
    pthread_mutex_init(&pool->callers, NULL);
    if (start_workers(pool)) {
        free(pool);
        return NULL;
    }
    return pool;
}

void fathom_pool_free(fathom_pool *pool) {
    if (!pool) return;
    if (atomic_load(&pool->forks) == atomic_load(&forks)) stop_workers(pool); /* a child of a fork has none of its parent's threads */
    free(pool);
}

int fathom_pool_threads(const fathom_pool *pool) { return pool->threads; }

/* In a child of a fork locks and threads are the parent's: make them anew, once. */
static int restart_after_fork(fathom_pool *pool) {
    int failed = 0;
    pthread_mutex_lock(&restart);
    if (atomic_load(&pool->forks) != atomic_load(&forks)) {
        pthread_mutex_init(&pool->callers, NULL);
        failed = start_workers(pool);
    }
    pthread_mutex_unlock(&restart);
    return failed;
}

static int run_on_all(fathom_pool *pool) {
    if (pool->started < pool->threads - 1 && start_workers(pool)) return -1;
    atomic_store_explicit(&pool->running, pool->threads - 1, memory_order_relaxed);
    atomic_store(&pool->call, (int)((unsigned)atomic_load(&pool->call) + 1));
    if (atomic_load(&pool->sleepers)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
    pool->fn(0, pool->threads, pool->arg);
    for (int spins = 0; atomic_load_explicit(&pool->running, memory_order_acquire) != 0; spins++)
        if (spins < SPINS)
            relax();
        else
            sched_yield();
    return 0;
}

int fathom_pool_run(fathom_pool *pool, void (*fn)(int thread, int threads, void *arg), void *arg) {
    if (inside) return fathom_fail("a function of a pool of threads cannot call a pool");
    if (atomic_load(&pool->forks) != atomic_load(&forks) && restart_after_fork(pool)) return -1;
    pthread_mutex_lock(&pool->callers);
    pool->fn = fn;
    pool->arg = arg;
    inside = pool;
    const int failed = run_on_all(pool);
    inside = NULL;
    pthread_mutex_unlock(&pool->callers);
    return failed;
}
