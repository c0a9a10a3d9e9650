/* One step of the engine: the structures that describe a model, made once from its modules, and a batch.
 *
 * N tokens of a batch, D hidden size, H heads, E experts, K experts of a token. Matrices may have any format; a linear
 * layer whose weights lie in several matrices (queries and latents, gate and up) has one entry for each.
 */
#ifndef FATHOM_STEP_H
#define FATHOM_STEP_H

#include "attend_tiles.h"

typedef struct {
    fathom_matrix weight;           /* data NULL where there is none */
    const float *bias;              /* or NULL */
} fathom_linear;

typedef struct {
    const float *weight;
    int32_t width;
    float eps;
} fathom_norm;

/* silu(gate x) * (up x), then down. */
typedef struct {
    fathom_linear gate, up, down;
} fathom_swiglu;

typedef enum { FATHOM_MLA, FATHOM_GQA } fathom_attention_kind;

/* MLA: ``input`` has the queries (or their latent, then q_norm and q_b) and the key-value latent with the rotary key.
 * GQA: queries, keys, values. Columns of heads follow one another. */
typedef struct {
    int32_t kind, heads, kv_heads, nope, rope, value, latent, window;   /* window 0 for none */
    float scale;
    fathom_linear input[3];
    int32_t inputs;
    fathom_norm q_norm, kv_norm;
    fathom_linear q_b;
    const fathom_matrix *key_up;    /* of each head: latent x nope, its key rows of kv_b_proj transposed */
    const fathom_matrix *value_up;  /* of each head: value x latent */
    fathom_linear output;
} fathom_attention_weights;

typedef enum { FATHOM_SOFTMAX, FATHOM_SIGMOID, FATHOM_HASH } fathom_score;

typedef struct {
    int32_t score, experts, chosen, normalize;
    int32_t groups, chosen_groups, top2;    /* groups 0 for none; a group's rank is its best score, or its two best's sum */
    float scale;
    double capacity;                        /* places of an expert as a multiple of its even share; 0 for no limit */
    fathom_matrix weight;
    const float *selection_bias;            /* or NULL */
} fathom_router;

/* Dense where ``router.experts`` is 0. */
typedef struct {
    fathom_swiglu dense;            /* or the shared experts; gate.weight.data NULL where there are none */
    fathom_router router;
    const fathom_swiglu *experts;
} fathom_feed_forward;

typedef struct {
    fathom_norm input_norm, output_norm;
    fathom_attention_weights attention;
    fathom_feed_forward feed_forward;
    const fathom_pages *pages[2];   /* latents, or keys and values */
} fathom_layer;

typedef struct {
    fathom_norm embedding_norm, hidden_norm, norm;
    fathom_linear projection;       /* of both, the embedding first */
    fathom_layer layer;
} fathom_mtp;

/* How a chunk's tokens attend: a few rows of queries at a time; in tiles of many; or in tiles after latents were expanded
 * to the keys and values of each head, which other attention has anyway. By default what costs least. */
typedef enum { FATHOM_CHEAPEST, FATHOM_BY_ROWS, FATHOM_BY_TILES, FATHOM_EXPANDED } fathom_attention_form;

typedef struct {
    int32_t hidden, vocabulary, layers;
    int32_t half;                   /* rotary pairs lie half a head apart */
    int32_t attention_form;
    int32_t quantize;               /* activations to 8 bits for quantized weights */
    const void *embedding;          /* V x D floats, or bfloat16; NULL to look up in embedding_packed */
    int32_t embedding_bf16;
    fathom_matrix embedding_packed;
    const float *cosine, *sine;     /* positions x rope / 2 */
    int32_t positions;
    const fathom_layer *layer;
    fathom_norm norm;
    fathom_matrix head;
    const fathom_mtp *mtp;          /* or NULL */
    int32_t page_size;
} fathom_model;

/* A sequence's tokens in a step: ``tokens`` new ones after ``start``; its pages hold those from ``first`` on. */
typedef struct {
    int32_t page_offset, page_count, start, tokens, first;
} fathom_chunk;

typedef struct {
    int32_t rows, chunks, empty_slots;
    const int32_t *tokens;          /* N, the chunks' one after another */
    const fathom_chunk *chunk;
    const int32_t *pages;           /* of all chunks, each from its page_offset */
    const float *previous;          /* N x D: run the MTP module after these hidden states, not the layers */
    float *hidden;                  /* N x D, after the final norm */
    int32_t logit_rows;
    const int32_t *logit_row;       /* rows whose logits are wanted */
    float *logits;                  /* logit_rows x V */
    int16_t *routing;               /* N x mixture-of-experts layers x K, or NULL */
} fathom_batch;

/* Memory of a step that grows with the batch; one for each thread that calls. */
typedef struct fathom_workspace fathom_workspace;
fathom_workspace *fathom_workspace_new(void);
void fathom_workspace_free(fathom_workspace *workspace);

int fathom_step(fathom_pool *pool, const fathom_model *model, fathom_workspace *workspace, const fathom_batch *batch);
/* Logits of N x D hidden states. */
int fathom_logits(fathom_pool *pool, const fathom_model *model, fathom_workspace *workspace, const float *hidden,
                  int rows, float *logits);
#endif
