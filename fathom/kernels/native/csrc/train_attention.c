/* Attention in training. A thread takes a head of a sequence and goes through its keys block by block; the keys and
 * values of a block lie in strips (train_tiles.h) while all queries that see it pass by. Blocks above the diagonal are
 * not computed, and where numbers are not finite no zero of a block on it is multiplied by them. */
#include "train_attention.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "kernels.h"
#include "pool.h"

enum {
    QUERIES = 96,       /* of a block; a block of keys is a multiple, so that one of queries never begins within it */
    FORWARD_KEYS = 384,
    BACKWARD_KEYS = 192,
    KEYS_AT_ONCE = 32,  /* gathered before they are written in strips */
    ROWS_AHEAD = 8,
    APART = 16          /* floats between rows of scores, whose places in a cache would else be the same */
};

typedef struct {
    const fathom_train_attention *a;
    fathom_pool *pool;
    void *workspace;
    atomic_int next;    /* head of all sequences that no thread has taken */
    int backward;
} call;

/* One thread's head and its part of the workspace. */
typedef struct {
    const fathom_train_attention *a;
    int width, key_stride, value_stride; /* floats of a head's key; from one token to the next of q, kv and out */
    int64_t out_stride;
    int block_keys, score_stride;
    int begin, keys, finite;             /* the block of keys, and whether what sums are made of is finite */
    float *key_columns, *values;         /* strips: keys as columns, values as rows (forward) or columns (backward) */
    float *keys_as_rows, *queries, *grads, *grad_keys, *grad_values; /* backward */
    float *scores, *slopes, *mixed, *gathered;
    float *max, *sum;                    /* of each token; backward: deltas in ``max`` */
    const float *q, *kv, *rope_key, *grad;
    float *out, *lse, *grad_q, *grad_kv, *grad_rope_key;
} head;

static int least(int a, int b) { return a < b ? a : b; }
static int padded(int floats) { return (int)fathom_padded(floats); }

/* A rotary part may have no width, and then no address. */
static void copy(float *to, const float *from, int floats) {
    if (floats > 0) memcpy(to, from, sizeof(float) * (size_t)floats);
}

static int units(const fathom_train_attention *a) { return a->batch * a->heads; }

/* What every head leaves for the sum over heads: (B H, T, R). */
static int64_t rope_floats(const fathom_train_attention *a) { return (int64_t)units(a) * a->tokens * a->rope; }

/* Lay out a thread's part of a workspace, or measure it where it is NULL. */
static int64_t lay_out(head *h, float *base, int backward) {
    const fathom_train_attention *a = h->a;
    const int width = padded(h->width), value = padded(a->value), keys = h->block_keys;
    const int widest = width > value ? width : value;
    int64_t used = 0;
    h->key_columns = fathom_next_floats(base, &used, h->width * keys);
    h->values = fathom_next_floats(base, &used, value * keys);
    h->scores = fathom_next_floats(base, &used, QUERIES * h->score_stride);
    h->mixed = fathom_next_floats(base, &used, QUERIES * widest);
    h->gathered = fathom_next_floats(base, &used, KEYS_AT_ONCE * h->width);
    h->max = fathom_next_floats(base, &used, a->tokens);
    h->sum = fathom_next_floats(base, &used, backward ? 0 : a->tokens);
    if (!backward) return used;
    h->keys_as_rows = fathom_next_floats(base, &used, keys * width);
    h->queries = fathom_next_floats(base, &used, QUERIES * width);
    h->grads = fathom_next_floats(base, &used, QUERIES * value);
    h->slopes = fathom_next_floats(base, &used, QUERIES * h->score_stride);
    h->grad_keys = fathom_next_floats(base, &used, keys * width);
    h->grad_values = fathom_next_floats(base, &used, keys * value);
    return used;
}

static head head_of(const fathom_train_attention *a, int backward) {
    const int most = backward ? BACKWARD_KEYS : FORWARD_KEYS;
    head h = {.a = a, .width = a->nope + a->rope};
    h.key_stride = a->heads * h.width;
    h.value_stride = a->heads * (a->nope + a->value);
    h.out_stride = (int64_t)a->heads * a->value;
    h.block_keys = padded(least(most, a->tokens));
    h.score_stride = h.block_keys + APART;
    return h;
}

int64_t fathom_train_attention_bytes(const fathom_train_attention *a, int threads, int backward) {
    head h = head_of(a, backward);
    const int64_t each = lay_out(&h, NULL, backward), shared = backward ? fathom_padded(rope_floats(a)) : 0;
    return (shared + each * threads) * (int64_t)sizeof(float);
}

/* Point to a head's numbers. */
static void begin_head(head *h, int unit, float *grad_rope_key) {
    const fathom_train_attention *a = h->a;
    const int64_t token = (int64_t)(unit / a->heads) * a->tokens, at = unit % a->heads;
    const int64_t q = token * h->key_stride + at * h->width, kv = token * h->value_stride + at * (a->nope + a->value);
    const int64_t out = token * h->out_stride + at * a->value;
    h->q = a->q + q;
    h->kv = a->kv + kv;
    h->rope_key = a->rope_key + token * a->rope;
    h->out = a->out + out;
    h->lse = a->lse + (int64_t)unit * a->tokens;
    if (!grad_rope_key) return;
    h->grad = a->grad + out;
    h->grad_q = a->grad_q + q;
    h->grad_kv = a->grad_kv + kv;
    h->grad_rope_key = grad_rope_key + (int64_t)unit * a->tokens * a->rope;
}

/* Ask memory for a row that comes soon: each lies in a page of its own, where processors foresee nothing. */
static void foresee(const float *row, int floats) {
    for (int i = 0; i < floats; i += FATHOM_PANEL) __builtin_prefetch(row + i);
}

/* Write the block's keys as columns, and as rows where the backward pass needs them. */
static void write_keys(head *h) {
    const fathom_train_attention *a = h->a;
    const int columns = padded(h->keys);
    for (int at = 0; at < h->keys; at += KEYS_AT_ONCE) {
        const int count = least(KEYS_AT_ONCE, h->keys - at);
        for (int i = 0; i < count; i++) {
            const int64_t token = h->begin + at + i;
            if (token + ROWS_AHEAD < a->tokens)
                foresee(h->kv + (token + ROWS_AHEAD) * h->value_stride, a->nope + a->value);
            float *to = h->gathered + i * h->width;
            copy(to, h->kv + token * h->value_stride, a->nope);
            copy(to + a->nope, h->rope_key + token * a->rope, a->rope);
        }
        fathom_current->strips_of_columns(h->gathered, h->width, count, h->width, h->key_columns, columns, at);
        if (h->keys_as_rows)
            h->finite &= fathom_current->strips_of_rows(h->gathered, h->width, count, h->width, h->keys_as_rows,
                                                        h->keys, at);
    }
}

/* Begin a block of keys. */
static void begin_block(head *h, int begin) {
    const fathom_train_attention *a = h->a;
    const float *values = h->kv + begin * (int64_t)h->value_stride + a->nope;
    h->begin = begin;
    h->keys = least(h->block_keys, a->tokens - begin);
    h->finite = 1;
    write_keys(h);
    if (h->keys_as_rows)
        fathom_current->strips_of_columns(values, h->value_stride, h->keys, a->value, h->values, padded(h->keys), 0);
    else
        h->finite &= fathom_current->strips_of_rows(values, h->value_stride, h->keys, a->value, h->values, h->keys, 0);
}

/* Keys of the block that the query ``query`` sees, or the last of some. */
static int seen(const head *h, int query) { return least(h->keys, query + 1 - h->begin); }

/* Products of queries with the keys of the block that one of them sees: scores, or the gradients of weights. */
static void score(const head *h, const float *rows, int64_t stride, const float *keys, int width, int query, int count,
                  float *scores) {
    const fathom_small_product product = {
        .a = rows, .a_stride = stride, .b = keys, .b_rows = width, .c = scores, .c_stride = h->score_stride,
        .rows = count, .columns = padded(h->keys), .depth = width,
        .causal = FATHOM_CAUSAL_COLUMNS, .diagonal = query - h->begin};
    fathom_current->small_product(&product);
}

/* Sums over keys, weighted by rows of queries, into ``mixed``. */
static void mix(const head *h, const float *weights, const float *rows, int width, int query, int count) {
    const fathom_small_product product = {
        .a = weights, .a_stride = h->score_stride, .b = rows, .b_rows = h->keys, .c = h->mixed,
        .c_stride = padded(width), .rows = count, .columns = padded(width), .depth = seen(h, query + count - 1),
        .causal = FATHOM_CAUSAL_SUMS, .diagonal = query - h->begin, .single = !h->finite};
    fathom_current->small_product(&product);
}

/* Add to the keys' sums over queries. */
static void add_turned(const head *h, const float *weights, const float *rows, int width, int query, int count,
                       int finite, float *sums) {
    const fathom_small_product product = {
        .a = weights, .a_stride = h->score_stride, .b = rows, .b_rows = count, .c = sums, .c_stride = padded(width),
        .rows = seen(h, query + count - 1), .columns = padded(width), .depth = count,
        .causal = FATHOM_CAUSAL_TURNED, .diagonal = query - h->begin, .add = 1, .single = !finite};
    fathom_current->small_product(&product);
}

/* Zeros where a query of a block sees no key but another one does. */
static void clear_unseen(const head *h, float *row, int query, int last) {
    const int from = seen(h, query), to = seen(h, last);
    if (from < to) memset(row + from, 0, sizeof(float) * (size_t)(to - from));
}

static void attend(head *h, int query, int count) {
    const fathom_train_attention *a = h->a;
    float keep[QUERIES];
    score(h, h->q + query * (int64_t)h->key_stride, h->key_stride, h->key_columns, h->width, query, count, h->scores);
    for (int i = 0; i < count; i++) {
        float *row = h->scores + i * h->score_stride;
        if (query + QUERIES + i < a->tokens) foresee(h->q + (query + QUERIES + i) * (int64_t)h->key_stride, h->width);
        if (h->begin == 0) {
            h->max[query + i] = -INFINITY;
            h->sum[query + i] = 0.0f;
        }
        keep[i] = fathom_current->soften(row, seen(h, query + i), a->scale, h->max + query + i, h->sum + query + i);
        clear_unseen(h, row, query + i, query + count - 1);
    }
    mix(h, h->scores, h->values, a->value, query, count);
    for (int i = 0; i < count; i++) {
        const int at = query + i, ends = at < h->begin + h->keys;
        float *out = h->out + at * h->out_stride;
        if (h->begin == 0) memset(out, 0, sizeof(float) * (size_t)a->value);
        fathom_current->blend(keep[i], h->mixed + i * padded(a->value), ends ? 1.0f / h->sum[at] : 1.0f, a->value, out);
        if (ends) h->lse[at] = h->max[at] + logf(h->sum[at]);
    }
}

static void forward_head(head *h) {
    for (int begin = 0; begin < h->a->tokens; begin += h->keys) {
        begin_block(h, begin);
        for (int query = begin; query < h->a->tokens; query += QUERIES)
            attend(h, query, least(QUERIES, h->a->tokens - query));
    }
}

/* Add a block of queries to the gradients of the block of keys, and this one to those of the queries. */
static void attend_backward(head *h, int query, int count) {
    const fathom_train_attention *a = h->a;
    const float *q = h->q + query * (int64_t)h->key_stride, *grad = h->grad + query * h->out_stride;
    const int q_finite = fathom_current->strips_of_rows(q, h->key_stride, count, h->width, h->queries, count, 0);
    const int grad_finite = fathom_current->strips_of_rows(grad, h->out_stride, count, a->value, h->grads, count, 0);
    score(h, q, h->key_stride, h->key_columns, h->width, query, count, h->scores);
    score(h, grad, h->out_stride, h->values, a->value, query, count, h->slopes);
    for (int i = 0; i < count; i++) {
        const int at = query + i;
        float *scores = h->scores + i * h->score_stride, *slopes = h->slopes + i * h->score_stride;
        if (at + QUERIES < a->tokens) {
            foresee(h->q + (at + QUERIES) * (int64_t)h->key_stride, h->width);
            foresee(h->grad + (at + QUERIES) * h->out_stride, a->value);
        }
        fathom_current->slopes(scores, slopes, seen(h, at), a->scale, h->lse[at], h->max[at]);
        clear_unseen(h, scores, at, query + count - 1);
        clear_unseen(h, slopes, at, query + count - 1);
    }
    add_turned(h, h->scores, h->grads, a->value, query, count, grad_finite, h->grad_values);
    add_turned(h, h->slopes, h->queries, h->width, query, count, q_finite, h->grad_keys);
    mix(h, h->slopes, h->keys_as_rows, h->width, query, count);
    for (int i = 0; i < count; i++) {
        float *to = h->grad_q + (query + i) * (int64_t)h->key_stride;
        const float *mixed = h->mixed + i * padded(h->width);
        if (h->begin == 0)
            copy(to, mixed, h->width);
        else
            fathom_current->blend(1.0f, mixed, 1.0f, h->width, to);
    }
}

static void end_block(const head *h) {
    const fathom_train_attention *a = h->a;
    for (int i = 0; i < h->keys; i++) {
        const float *key = h->grad_keys + i * padded(h->width);
        float *to = h->grad_kv + (h->begin + i) * (int64_t)h->value_stride;
        copy(to, key, a->nope);
        copy(to + a->nope, h->grad_values + i * padded(a->value), a->value);
        copy(h->grad_rope_key + (int64_t)(h->begin + i) * a->rope, key + a->nope, a->rope);
    }
}

static void backward_head(head *h) {
    const fathom_train_attention *a = h->a;
    for (int t = 0; t < a->tokens; t++)
        h->max[t] = fathom_current->dot(h->grad + t * h->out_stride, h->out + t * h->out_stride, a->value);
    for (int begin = 0; begin < a->tokens; begin += h->keys) {
        begin_block(h, begin);
        memset(h->grad_keys, 0, sizeof(float) * (size_t)(h->keys * padded(h->width)));
        memset(h->grad_values, 0, sizeof(float) * (size_t)(h->keys * padded(a->value)));
        for (int query = begin; query < a->tokens; query += QUERIES)
            attend_backward(h, query, least(QUERIES, a->tokens - query));
        end_block(h);
    }
}

/* This thread's tokens of the sum over heads. */
static void sum_heads(const fathom_train_attention *a, const float *parts, int thread, int threads) {
    const int64_t all = (int64_t)a->batch * a->tokens, end = all * (thread + 1) / threads;
    for (int64_t t = all * thread / threads; t < end; t++) {
        const int64_t sequence = t / a->tokens, token = t % a->tokens;
        float *to = a->grad_rope_key + t * a->rope;
        for (int h = 0; h < a->heads; h++) {
            const float *part = parts + ((sequence * a->heads + h) * a->tokens + token) * a->rope;
            if (h == 0)
                copy(to, part, a->rope);
            else
                fathom_current->add_scaled(1.0f, part, a->rope, to);
        }
    }
}

static void run(int thread, int threads, void *argument) {
    call *c = argument;
    const int backward = c->backward;
    float *parts = backward ? c->workspace : NULL, *own = c->workspace;
    head h = head_of(c->a, backward);
    own += backward ? fathom_padded(rope_floats(c->a)) : 0;
    own += thread * lay_out(&h, NULL, backward);
    lay_out(&h, own, backward);
    for (int unit; (unit = atomic_fetch_add(&c->next, 1)) < units(c->a);) {
        begin_head(&h, unit, parts);
        (backward ? backward_head : forward_head)(&h);
    }
    if (!backward) return;
    fathom_barrier(c->pool);
    sum_heads(c->a, parts, thread, threads);
}

int fathom_train_attention_forward(fathom_pool *pool, const fathom_train_attention *a, void *workspace) {
    call c = {.a = a, .pool = pool, .workspace = workspace};
    return fathom_pool_run(pool, run, &c);
}

int fathom_train_attention_backward(fathom_pool *pool, const fathom_train_attention *a, void *workspace) {
    call c = {.a = a, .pool = pool, .workspace = workspace, .backward = 1};
    return fathom_pool_run(pool, run, &c);
}
