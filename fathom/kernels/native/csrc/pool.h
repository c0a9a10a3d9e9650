/* Threads that compute one step together: every thread runs the same function and meets the others at barriers. */
#ifndef FATHOM_POOL_H
#define FATHOM_POOL_H

#include "fathom_native.h"

#define FATHOM_MOST_THREADS 256 /* of a pool */

/* Run fn(thread, threads, arg) on every thread, the caller being thread 0; returns when all are done. Calls of several
 * threads on one pool wait for each other; a call from within fn is refused. */
int fathom_pool_run(fathom_pool *pool, void (*fn)(int thread, int threads, void *arg), void *arg);

/* Within fn: wait until every thread is here. All threads pass the same number of barriers. */
void fathom_barrier(fathom_pool *pool);

#endif
