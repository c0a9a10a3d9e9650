/* What training does with many rows between its products. The threads are those of the OpenMP runtime that PyTorch uses
 * itself: others would wait for these, which spin. Results do not depend on how many there are. */
#ifndef FATHOM_TRAINING_H
#define FATHOM_TRAINING_H

#include "fathom_native.h"

/* libgomp's GOMP_parallel, which LLVM's and Intel's runtimes have too. */
typedef void (*fathom_parallel)(void (*fn)(void *), void *arg, unsigned threads, unsigned flags);

typedef struct {
    fathom_parallel parallel;   /* NULL: the calling thread works alone */
    int32_t threads;            /* PyTorch's; few rows take one */
    int32_t width;              /* numbers of a row */
    int64_t rows;
} fathom_many_rows;

/* y = scale silu(gate) up: a row of gate and then up every ``stride`` floats; a scale for each row, or NULL for ones. */
void fathom_silu_multiply_rows(const fathom_many_rows *m, const float *gate_up, int64_t stride, const float *scales,
                               float *y);
/* Its gradients: y, which may be ``slopes``; those of gate and up, side by side; those of the scales unless NULL. */
void fathom_silu_multiply_gradients(const fathom_many_rows *m, const float *gate_up, int64_t stride,
                                    const float *scales, const float *slopes, float *y, float *grad_gate_up,
                                    float *grad_scales);
/* A row of x every ``stride`` floats; y and each row's 1 / rms(x). */
void fathom_rms_norm_rows(const fathom_many_rows *m, const float *x, int64_t stride, const float *weight, float eps,
                          float *y, float *inverses);
/* Its gradients, from these and a weight without zeros; that of the weight is the sum of ``grad_weights``, one row for
 * each FATHOM_NORM_ROWS rows. */
void fathom_rms_norm_gradients(const fathom_many_rows *m, const float *y, const float *weight, const float *inverses,
                               const float *slopes, float *grad_x, float *grad_weights);
/* y[places[r]] += x[r], in the order of the rows. */
void fathom_add_rows(const fathom_many_rows *m, const float *x, const int64_t *places, float *y);

#define FATHOM_NORM_ROWS 64
#endif
