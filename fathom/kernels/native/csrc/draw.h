/* Drawing the next token of each row of logits, with its log-probability and the likeliest alternatives. */
#ifndef FATHOM_DRAW_H
#define FATHOM_DRAW_H

#include "fathom_native.h"

#define FATHOM_DRAW_BLOCK 256 /* logits whose weights are summed in float32; sums of blocks are doubles */

/* Penalties, biases and bans, which act in this order on the logits of a few tokens. */
typedef struct {
    const int32_t *ids, *counts;    /* tokens and how often each was drawn: the prompt's first, no token twice */
    const float *biases;            /* of the first ``biased`` ids */
    const int32_t *banned;
    int32_t count, prompt, biased, bans;
    double repetition, presence, frequency; /* 1, 0 and 0 are none */
} fathom_logit_changes;

/* How one row draws: temperature, top-k, top-p and min-p act in this order; 0, 0, 1 and 0 are none, and temperature 0
 * takes the likeliest, of equal ones the first. */
typedef struct {
    const float *logits;        /* V: the model's own, of which log-probabilities are */
    const fathom_logit_changes *changes; /* or NULL */
    const int32_t *allowed;     /* a bit for each id, i % 32 of word i / 32; NULL where all may be drawn */
    uint64_t seed;
    int64_t position;           /* random numbers are hashes of seed, position and trial */
    double temperature, top_p, min_p;
    int32_t top_k, alternatives;
} fathom_draw_row;

enum { FATHOM_NOT_FINITE = -1, FATHOM_NOTHING_ALLOWED = -2 };

/* Row n writes 1 + alternatives ids and their log-probabilities at n x stride: the drawn one, or why there is none, then
 * the likeliest, best first, of equal ones the lowest id, -1 where there are no more. The ids ``unused`` are never drawn
 * nor alternatives; the softmax is over them too. */
int fathom_draw(fathom_pool *pool, const fathom_draw_row *rows, int count, int vocab, const int32_t *unused,
                int unused_count, int stride, int32_t *ids, double *logprobs, void *scratch);
/* Write the logits of the tokens that change, from a row's own, to where they are in ``out``. */
void fathom_change_logits(const fathom_logit_changes *changes, const float *logits, float *out);
/* Bytes of ``scratch``, aligned to 64, for each thread of the pool; NULL is one thread. */
int64_t fathom_draw_scratch(int vocab);
/* Whether all of these floats are finite. */
int fathom_all_finite(const float *x, int64_t count);

/* Numbers that are drawn by weight, for the kernels: a weight is exp((x - best) scale), and is kept if it is above the
 * bound, or equal to it and before an index. */
typedef struct {
    const float *x;
    int32_t count, before;
    float best, scale, bound;
} fathom_weighted;
#endif
