/* Many threads in many pools, with barriers, forks and processes that share too few processors: every thread of a call
 * must run once, no thread may pass a barrier early, and a call must return only when all are done. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pool.h"

enum { ROUNDS = 5, MOST = 64 };

typedef struct {
    fathom_pool *pool;
    int seen[MOST], wrong, threads, nested;
} work;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, fathom_error());
    exit(1);
}

/* Each round every thread writes its place, and reads all places behind a barrier. */
static void rounds(int thread, int threads, void *arg) {
    work *w = arg;
    if (threads != w->threads) w->wrong = 1;
    for (int round = 1; round <= ROUNDS; round++) {
        w->seen[thread] += 1;
        fathom_barrier(w->pool);
        for (int t = 0; t < threads; t++)
            if (w->seen[t] % ROUNDS != round % ROUNDS) __atomic_store_n(&w->wrong, 1, __ATOMIC_RELAXED);
        fathom_barrier(w->pool);
    }
}

static void nested(int thread, int threads, void *arg) {
    work *w = arg;
    (void)threads;
    if (thread == 0) w->nested = fathom_pool_run(w->pool, rounds, w);
}

static void calls(fathom_pool *pool, work *w, int count) {
    for (int i = 0; i < count; i++) {
        if (fathom_pool_run(pool, rounds, w)) fail("run");
        if (i % 20 == 19) usleep(300); /* long enough for the threads to fall asleep */
    }
}

static void *own_pool(void *arg) {
    const int threads = *(const int *)arg;
    fathom_pool *pool = fathom_pool_new(threads);
    if (!pool || fathom_pool_threads(pool) != threads) fail("new");
    work w = {.pool = pool, .threads = threads};
    calls(pool, &w, 60);
    for (int t = 0; t < threads; t++)
        if (w.seen[t] != 60 * ROUNDS) w.wrong = 1;
    fathom_pool_free(pool);
    if (w.wrong) fail("a barrier of a pool was passed early");
    return NULL;
}

static void *shared_pool(void *arg) {
    work *w = arg;
    calls(w->pool, w, 100);
    return NULL;
}

/* In a child the pool works again, in its child too; the parent's threads go on. */
static void in_children(fathom_pool *pool, work *w, int depth) {
    const pid_t child = fork();
    if (child < 0) fail("fork");
    if (child == 0) {
        calls(pool, w, 20);
        if (depth) in_children(pool, w, depth - 1);
        if (depth % 2) fathom_pool_free(pool);
        _exit(w->wrong);
    }
    calls(pool, w, 20);
    int status = 0;
    if (waitpid(child, &status, 0) != child || status) fail("a child");
}

int main(int count, char **arguments) {
    const int forks = count < 2 || arguments[1][0] != '0';
    static int sizes[] = {1, 2, 3, 7};
    pthread_t threads[8];
    for (int i = 0; i < 8; i++) pthread_create(&threads[i], NULL, own_pool, &sizes[i % 4]);
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);

    fathom_pool *pool = fathom_pool_new(4);
    work w = {.pool = pool, .threads = 4};
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, shared_pool, &w);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    for (int t = 0; t < 4; t++)
        if (w.seen[t] != 4 * 100 * ROUNDS) w.wrong = 1;
    if (fathom_pool_run(pool, nested, &w) || w.nested != -1) fail("a call within a call was not refused");
    if (forks) in_children(pool, &w, 2);
    fathom_pool_free(pool);
    if (w.wrong) fail("a barrier of a shared pool was passed early");
    for (int i = 0; i < 50; i++) fathom_pool_free(fathom_pool_new(5));
    puts("ok");
    return 0;
}
