/* The kernels of one instruction set. Each of kernels_*.c is compiled with its own flags and fills one table; nothing in
 * them may be reached before the processor was asked. All work on one thread. */
#ifndef FATHOM_KERNELS_H
#define FATHOM_KERNELS_H

#include "draw.h"
#include "fathom_native.h"
#include "pages.h"

/* ``rows`` queries that share the keys of one head: online softmax over blocks of keys. */
typedef struct {
    const float *packed;        /* by pack_queries, multiplied by the softmax scale */
    int32_t rows, width, value_width;
    float *acc;                 /* rows x value_width: sums of exp(score - max) value; a row every acc_stride */
    int64_t acc_stride;
    float *max, *sum;           /* rows: begin with -INFINITY and 0, and acc with 0 */
} fathom_queries;

typedef struct {
    const float *keys, *values; /* count rows each */
    int64_t key_stride, value_stride;
    int32_t count;              /* FATHOM_ATTEND_KEYS at most */
    const float *next;          /* keys that are probably next, to be fetched meanwhile, or NULL */
    const int32_t *first, *last; /* rows: a query sees keys [first, last) of this block; NULL for all */
} fathom_keys;

/* What of a product of causal attention is computed: row m of queries sees column m + diagonal and those before it. */
typedef enum {
    FATHOM_CAUSAL_COLUMNS, /* rows of queries, columns of keys: columns that a row does not see may be left out */
    FATHOM_CAUSAL_SUMS,    /* rows of queries, sums over the keys that they see */
    FATHOM_CAUSAL_TURNED,  /* rows of keys, sums over the queries that see them; a lies column after column */
} fathom_causal;

/* c[m][n] = sum over k of a[m][k] b[k][n], added to c where ``add``. Where a row's sums end or begin may be that of a few
 * rows nearby, whose a is 0 there, unless ``single``. */
typedef struct {
    const float *a, *b;     /* b in strips */
    float *c;
    int64_t a_stride, c_stride;
    int32_t b_rows;         /* that its strips have room for */
    int32_t rows, columns, depth; /* columns a multiple of 16 */
    int32_t causal, diagonal, add, single;
} fathom_small_product;

typedef struct {
    /* y[n][r] = sum over k of x[n][k] w[r][k] for the rows of panels [begin, end), never beyond w->rows; a row of y every
     * y_stride. Quantized weights take x->q where it is given, else x->x. */
    void (*product)(const fathom_matrix *w, int begin, int end, const fathom_rows *x, float *y, int64_t y_stride);
    /* Round a row to 8 bits per group: scale = max |x| / 127, to nearest even. k is a multiple of 32. A group with a
     * number that is not finite gets the scale and the sum NaN and zeros, one whose numbers are below 1e-36 zeros. */
    void (*quantize_row)(const float *x, int k, int8_t *q, float *scales, float *sums);
    /* weight NULL: ones. x and y may be the same. Returns 1 / rms(x). */
    float (*rms_norm)(const float *x, const float *weight, int k, float eps, float *y);
    void (*silu_multiply)(const float *gate, const float *up, float scale, int k, float *y); /* scale silu(gate) up */
    void (*add_scaled)(float scale, const float *x, int k, float *y);           /* y += scale x */
    /* Rotate pairs; half layout pairs i with i + pairs, the other 2 i with 2 i + 1. In place. */
    void (*rotate)(float *x, const float *cosine, const float *sine, int pairs, int half);
    /* Pack ``rows`` queries for attend, each anywhere: fathom_packed_floats of them. */
    void (*pack_queries)(const float *const *q, int rows, int width, float scale, float *packed);
    /* Attend to one block; a query that sees none of its keys stays as it is. */
    void (*attend)(const fathom_queries *queries, const fathom_keys *keys);
    /* Turn k scores of a query into weights e^(scale x - max) and bring its max and sum, of keys before these, to what
     * they are with them. Returns what weights of the old max are to be multiplied by. */
    float (*soften)(float *x, int k, float scale, float *max, float *sum);
    void (*softmax)(float *x, int k);                                            /* in place */
    /* The first of the largest, or the first NaN. */
    int (*argmax)(const float *x, int k);
    /* bfloat16 rows to floats and back (nearest even). */
    void (*widen)(const uint16_t *x, int k, float *y);
    void (*narrow)(const float *x, int k, uint16_t *y);
    /* Rows of cache pages, as in pages.h. */
    void (*read_rows)(const fathom_pages *pages, int64_t slot, int count, int column, int columns, float *out,
                      int64_t stride);
    void (*write_row)(const fathom_pages *pages, int64_t slot, const float *x);
    /* Drawing from a row of logits in blocks (draw.h, kernels_draw.h): the highest of each block; these and the sum of
     * exp((x - highest) scale) of each, and a copy unless that is NULL; weights from an index on; the sum of those that are kept in each block, whose
     * highest has the weight ``tops``; and minus infinity where a bit is 0. */
    void (*draw_maxima)(const float *x, int k, float *maxima);
    void (*draw_masses)(const float *x, int k, float scale, float *maxima, double *masses, float *copy);
    void (*draw_weights)(const fathom_weighted *w, int begin, int count, float *weights);
    void (*draw_kept)(const fathom_weighted *w, const float *tops, double *masses);
    void (*draw_allow)(const int32_t *allowed, int k, float *x);
    /* From the gradient ``slope`` of scale silu(gate) up: that product, gradients of gate and up, and, returned, of scale.
     * y and slope may be the same. */
    float (*silu_multiply_gradient)(const float *gate, const float *up, const float *slope, float scale, int k, float *y,
                                    float *grad_gate, float *grad_up);
    /* From rms_norm's y, its result ``inverse`` and the gradient ``slope`` of y: that of x; that of the weight, where there
     * is no zero, is added to ``grad_weight``. */
    void (*rms_norm_gradient)(const float *y, const float *weight, float inverse, const float *slope, int k,
                              float *grad_x, float *grad_weight);
    /* Attention in training (train_tiles.h). Write rows as rows [first, first + count) of an operand b of ``rows`` rows;
     * 1 where all are finite. And rows as columns from ``first`` on, a multiple of 16, of ``columns`` columns. Both fill
     * up to 16 columns with zeros. */
    int (*strips_of_rows)(const float *x, int64_t stride, int count, int width, float *to, int rows, int first);
    void (*strips_of_columns)(const float *x, int64_t stride, int count, int width, float *to, int columns, int first);
    void (*small_product)(const fathom_small_product *product);
    float (*dot)(const float *x, const float *y, int k);
    void (*blend)(float keep, const float *x, float scale, int k, float *y); /* y = scale (keep y + x) */
    /* Turn a query's scores into weights e^(scale x - lse), and the gradients of weights into those of scores. */
    void (*slopes)(float *scores, float *slopes, int k, float scale, float lse, float delta);
} fathom_kernels;

#define FATHOM_ATTEND_KEYS 64 /* of a block at most */

/* Panels of a matrix. */
static inline int fathom_panels(const fathom_matrix *w) { return (w->rows + FATHOM_PANEL - 1) / FATHOM_PANEL; }

/* Rows [first, first + count) of the activations. */
static inline fathom_rows fathom_some_rows(const fathom_rows *x, int first, int count) {
    const int64_t groups = x->columns / FATHOM_GROUP;
    fathom_rows some = *x;
    some.x += first * x->stride;
    some.rows = count;
    if (!x->q) return some;
    some.q += (int64_t)first * x->columns;
    some.scales += first * groups;
    some.sums += first * groups;
    return some;
}

/* Floats that fill whole lines of a cache. */
static inline int64_t fathom_padded(int64_t floats) { return (floats + 15) / 16 * 16; }

/* The next floats of a workspace, of which ``used`` are taken; NULL where it is only measured. */
static inline float *fathom_next_floats(float *base, int64_t *used, int64_t floats) {
    float *next = base ? base + *used : NULL;
    *used += fathom_padded(floats);
    return next;
}

/* Floats of packed queries, which have at most twice as many rows. */
static inline int64_t fathom_packed_floats(int rows, int width) { return 2 * rows * fathom_padded(width); }

extern const fathom_kernels fathom_scalar, fathom_avx2, fathom_avxvnni, fathom_avx512, fathom_neon;
extern const fathom_kernels *fathom_current; /* of the chosen instruction set */

/* Products and rounding of each instruction set, in products_*.c. */
#define FATHOM_DECLARE_PRODUCTS(isa)                                                                               \
    void fathom_product_##isa(const fathom_matrix *w, int begin, int end, const fathom_rows *x, float *y,          \
                              int64_t y_stride);                                                                   \
    void fathom_quantize_row_##isa(const float *x, int k, int8_t *q, float *scales, float *sums);
FATHOM_DECLARE_PRODUCTS(avx2)
FATHOM_DECLARE_PRODUCTS(avxvnni)
FATHOM_DECLARE_PRODUCTS(avx512)
FATHOM_DECLARE_PRODUCTS(neon)

#endif
