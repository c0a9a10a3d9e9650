/* What one thread has of a step that runs, and the parts that a step is made of. Every thread calls the same functions in
 * the same order; products are cut by panels of rows, everything else by tokens. */
#ifndef FATHOM_STEP_RUN_H
#define FATHOM_STEP_RUN_H

#include "kernels.h"
#include "pool.h"
#include "step.h"

/* Rows of activations, and the same in 8 bits where quantized weights read them. */
typedef struct {
    float *x;
    int8_t *q;
    float *scales, *sums;
} fathom_activations;

/* Which experts the tokens go to. Pairs of a token and an expert that are kept, sorted by expert: those of expert e are
 * offset[e] to offset[e + 1]. */
typedef struct {
    int32_t *index;     /* N x K, best first */
    float *weight;      /* N x K */
    int32_t *offset;    /* E + 1 */
    int32_t *token;     /* of each pair */
    float *share;       /* its weight */
    int32_t *taken;     /* E: scratch */
    uint8_t *kept;      /* N x K */
} fathom_assignment;

/* One thread's view. Where a batch has few rows (``apart``), every thread does all work by rows in memory of its own,
 * which takes no barrier; else they divide it, and meet. */
typedef struct {
    const fathom_model *model;
    const fathom_batch *batch;
    const fathom_kernels *k;
    fathom_pool *pool;
    int thread, threads, apart, rows;
    float *x;                           /* N x D, the residual stream */
    float *projected, *queries;         /* N x what attention's projections give; queries made from their latent */
    float *absorbed, *attended;         /* N x H x (latent + rope), N x H x latent */
    float *entries;                     /* N x (latent + rope): what is cached */
    float *sums;                        /* N x D: products before they are added to x */
    float *scores;                      /* N x E */
    float *up, *pairs_up;               /* as ``middle``, ``pairs`` */
    /* rows for attention's projections and feed-forward layers; a query's latent; attention's output; what comes
     * between gate and down, of dense and shared layers and of pairs */
    fathom_activations normed, latents, mixed, middle, pairs;
    const int32_t *position;            /* N */
    const int64_t *slot;
    fathom_attention *items;            /* one for each key-value head of the chunks that attend by rows */
    fathom_prompt *prompts;             /* one for each of the others */
    int item_count, prompt_count;
    void *attend, *tiles;
    fathom_assignment assignment;
    float *room;                        /* of this thread's selection */
    fathom_activations gathered;        /* rows of one expert or head, this thread's */
} fathom_run;

/* A thread's part of work that is given out in a row, each piece of it in units of some cost. */
typedef struct {
    double low, high, before;
} fathom_part;

void fathom_begin_part(const fathom_run *r, double total, fathom_part *part);
/* The thread's units [begin, end) of the next piece. */
void fathom_take(fathom_part *part, int units, double cost, int *begin, int *end);
/* The thread's rows: all of them where the threads work apart. */
void fathom_own_rows(const fathom_run *r, int rows, int *begin, int *end);
/* As above, but never twice: for what all threads share. */
void fathom_divide_rows(const fathom_run *r, int rows, int *begin, int *end);
/* Rows that the threads divided may be read by all after this. */
void fathom_meet_rows(const fathom_run *r);

/* Heads of keys and values; all of MLA's share one. */
static inline int fathom_key_heads(const fathom_attention_weights *a) { return a->kind == FATHOM_MLA ? 1 : a->kv_heads; }

/* Columns of all that an attention's input is projected to. */
int fathom_input_columns(const fathom_attention_weights *a);
/* How a chunk attends in all layers: any form but FATHOM_CHEAPEST. */
int fathom_form_of(const fathom_model *m, const fathom_attention_weights *a, const fathom_chunk *chunk);
/* Its prompt without pages, matrices, queries and outputs, where it attends in tiles. */
fathom_prompt fathom_prompt_of(const fathom_run *r, const fathom_attention_weights *a, const fathom_chunk *chunk);
/* Write down what attends to what. */
void fathom_place_items(fathom_run *r, const fathom_attention_weights *a);
/* Let items and prompts, which hold for every layer, attend to the pages of this one. */
void fathom_choose_pages(const fathom_run *r, const fathom_layer *layer);
/* The next rows [*begin, *end) of chunks that do not expand latents (``expanded`` 0), or do; 0 at the end. Begins from
 * the chunk *next and the row *end, both 0 at first. */
int fathom_next_rows(const fathom_run *r, const fathom_attention_weights *a, int expanded, int *next, int *begin,
                     int *end);

int fathom_reads_8_bits(const fathom_run *r, const fathom_matrix *w);
fathom_rows fathom_rows_at(const fathom_activations *a, int begin, int rows, int columns);
void fathom_multiply(const fathom_run *r, const fathom_linear *w, int begin, int end, const fathom_rows *x, float *y,
                     int64_t stride);
double fathom_panel_cost(const fathom_matrix *w, int rows);

/* RMSNorm of rows that all threads may read; out in 8 bits too where ``eight``. */
void fathom_normalize(const fathom_run *r, const fathom_norm *norm, const float *x, int64_t stride, int rows,
                      const fathom_activations *out, int eight);
/* y = x w^T + b of matrices that read the same rows; y has their columns one after another. */
void fathom_project(const fathom_run *r, const fathom_linear *parts, int count, const fathom_rows *x, float *y,
                    int64_t stride);
/* Round a row to 8 bits, as row n of ``to``. */
void fathom_quantize_row_to(const fathom_run *r, const float *x, int columns, const fathom_activations *to, int64_t n);
/* Round rows that all threads may read to 8 bits, where ``w`` reads them so. */
void fathom_quantize_rows(const fathom_run *r, const fathom_matrix *w, const fathom_activations *a, int rows,
                          int columns);
/* x += rows w^T + b. */
void fathom_project_add(const fathom_run *r, const fathom_linear *w, const fathom_rows *rows);

void fathom_attention_layer(fathom_run *r, const fathom_layer *layer);
/* ``routing`` of the first token, or NULL; each token's lie ``stride`` numbers apart. */
void fathom_feed_forward_layer(fathom_run *r, const fathom_layer *layer, int16_t *routing, int64_t stride);

/* Choose a token's experts by its logits; ``room`` holds FATHOM_SELECT_ROOM floats an expert, and 16 more. */
#define FATHOM_SELECT_ROOM 5
void fathom_select(const fathom_router *router, const float *logits, int32_t token, float *room, int32_t *index,
                   float *weight);
/* Sort the pairs of N tokens by expert, and leave out those beyond an expert's capacity. */
void fathom_sort_pairs(const fathom_router *router, int rows, const fathom_assignment *a);

#endif
