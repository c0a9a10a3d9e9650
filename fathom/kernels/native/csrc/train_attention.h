/* Causal self-attention of latent attention in training, forward and backward. */
#ifndef FATHOM_TRAIN_ATTENTION_H
#define FATHOM_TRAIN_ATTENTION_H

#include "fathom_native.h"

/* Float32 tensors without gaps: B sequences of T tokens, H heads. A head's key is the first P columns of ``kv`` and then
 * ``rope_key``, which all heads share; its value the other U columns of ``kv``. W = P + R. */
typedef struct {
    int32_t batch, tokens, heads;
    int32_t nope, rope, value;          /* P, R, U */
    float scale;                        /* of the scores */
    const float *q, *kv, *rope_key;     /* (B, T, H, W), (B, T, H, P + U), (B, T, R) */
    float *out, *lse;                   /* (B, T, H, U); (B, H, T), the log-sum-exp of each query's scores */
    const float *grad;                  /* of the output; with it what the backward pass writes: */
    float *grad_q, *grad_kv;
    float *grad_rope_key;               /* (B, T, R), sums over the heads */
} fathom_train_attention;

/* Bytes of a workspace for either pass on so many threads, to be aligned to 64 bytes. */
int64_t fathom_train_attention_bytes(const fathom_train_attention *a, int threads, int backward);

/* Write ``out`` and ``lse``. Threads take whole heads; a result is the same for any number of them. */
int fathom_train_attention_forward(fathom_pool *pool, const fathom_train_attention *a, void *workspace);

/* Write the gradients from ``grad`` and what the forward pass left. */
int fathom_train_attention_backward(fathom_pool *pool, const fathom_train_attention *a, void *workspace);
#endif
