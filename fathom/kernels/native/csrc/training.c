/* Operations on many rows, cut into parts that threads take as they come. */
#include "training.h"

#include <stdatomic.h>
#include <string.h>

#include "kernels.h"

#define ALONE 32768          /* numbers up to which waking other threads costs more than it gains */
#define NUMBERS_OF_A_PART 16384
#define COLUMNS_OF_A_PART 64 /* of rows that are added: whole lines of a cache */

typedef struct {
    void (*work)(const void *call, int64_t first, int64_t last);
    const void *call;
    int64_t count, size;     /* rows, or columns, and how many make a part */
    atomic_llong next;
} parts;

static void take_parts(void *given) {
    parts *p = given;
    for (int64_t first; (first = atomic_fetch_add_explicit(&p->next, p->size, memory_order_relaxed)) < p->count;)
        p->work(p->call, first, first + p->size < p->count ? first + p->size : p->count);
}

static void run(const fathom_many_rows *m, void (*work)(const void *, int64_t, int64_t), const void *call,
                int64_t count, int64_t size) {
    parts p = {.work = work, .call = call, .count = count, .size = size};
    if (m->parallel && m->threads > 1 && m->rows * m->width > ALONE)
        m->parallel(take_parts, &p, (unsigned)m->threads, 0);
    else
        take_parts(&p);
}

static int64_t part_rows(const fathom_many_rows *m) {
    return NUMBERS_OF_A_PART > m->width ? NUMBERS_OF_A_PART / m->width : 1;
}

typedef struct {
    const float *gate_up, *scales, *slopes;
    float *y, *grad_gate_up, *grad_scales;
    int64_t stride;
    int width;
} silu_call;

static void multiply_rows(const void *given, int64_t first, int64_t last) {
    const silu_call *c = given;
    for (int64_t r = first; r < last; r++) {
        const float *gate = c->gate_up + r * c->stride;
        fathom_current->silu_multiply(gate, gate + c->width, c->scales ? c->scales[r] : 1.0f, c->width,
                                      c->y + r * c->width);
    }
}

static void multiply_gradients(const void *given, int64_t first, int64_t last) {
    const silu_call *c = given;
    for (int64_t r = first; r < last; r++) {
        const float *gate = c->gate_up + r * c->stride;
        float *grad = c->grad_gate_up + 2 * r * c->width;
        const float found = fathom_current->silu_multiply_gradient(
            gate, gate + c->width, c->slopes + r * c->width, c->scales ? c->scales[r] : 1.0f, c->width,
            c->y + r * c->width, grad, grad + c->width);
        if (c->grad_scales) c->grad_scales[r] = found;
    }
}

void fathom_silu_multiply_rows(const fathom_many_rows *m, const float *gate_up, int64_t stride, const float *scales,
                               float *y) {
    const silu_call call = {.gate_up = gate_up, .scales = scales, .y = y, .stride = stride, .width = m->width};
    run(m, multiply_rows, &call, m->rows, part_rows(m));
}

void fathom_silu_multiply_gradients(const fathom_many_rows *m, const float *gate_up, int64_t stride,
                                    const float *scales, const float *slopes, float *y, float *grad_gate_up,
                                    float *grad_scales) {
    const silu_call call = {gate_up, scales, slopes, y, grad_gate_up, grad_scales, stride, m->width};
    run(m, multiply_gradients, &call, m->rows, part_rows(m));
}

typedef struct {
    const float *x, *weight;
    float *y, *inverses;
    int64_t stride;
    int width;
    float eps;
} norm_call;

static void norm_rows(const void *given, int64_t first, int64_t last) {
    const norm_call *c = given;
    for (int64_t r = first; r < last; r++)
        c->inverses[r] =
            fathom_current->rms_norm(c->x + r * c->stride, c->weight, c->width, c->eps, c->y + r * c->width);
}

void fathom_rms_norm_rows(const fathom_many_rows *m, const float *x, int64_t stride, const float *weight, float eps,
                          float *y, float *inverses) {
    const norm_call call = {
        .x = x, .weight = weight, .y = y, .inverses = inverses, .stride = stride, .width = m->width, .eps = eps};
    run(m, norm_rows, &call, m->rows, part_rows(m));
}

typedef struct {
    const float *y, *weight, *inverses, *slopes;
    float *grad_x, *grad_weights;
    int width;
} norm_slopes;

static void norm_gradients(const void *given, int64_t first, int64_t last) {
    const norm_slopes *c = given;
    float *grad_weight = c->grad_weights + first / FATHOM_NORM_ROWS * c->width;
    memset(grad_weight, 0, sizeof(float) * (size_t)c->width);
    for (int64_t r = first; r < last; r++)
        fathom_current->rms_norm_gradient(c->y + r * c->width, c->weight, c->inverses[r], c->slopes + r * c->width,
                                          c->width, c->grad_x + r * c->width, grad_weight);
}

void fathom_rms_norm_gradients(const fathom_many_rows *m, const float *y, const float *weight, const float *inverses,
                               const float *slopes, float *grad_x, float *grad_weights) {
    const norm_slopes call = {y, weight, inverses, slopes, grad_x, grad_weights, m->width};
    run(m, norm_gradients, &call, m->rows, FATHOM_NORM_ROWS);
}

typedef struct {
    const float *x;
    const int64_t *places;
    float *y;
    int64_t rows;
    int width;
} add_call;

static void add_columns(const void *given, int64_t first, int64_t last) {
    const add_call *c = given;
    for (int64_t r = 0; r < c->rows; r++)
        fathom_current->add_scaled(1.0f, c->x + r * c->width + first, (int)(last - first),
                                   c->y + c->places[r] * c->width + first);
}

void fathom_add_rows(const fathom_many_rows *m, const float *x, const int64_t *places, float *y) {
    const add_call call = {x, places, y, m->rows, m->width};
    int64_t size = m->width / (m->threads > 1 ? m->threads : 1) / COLUMNS_OF_A_PART * COLUMNS_OF_A_PART;
    run(m, add_columns, &call, m->width, size ? size : COLUMNS_OF_A_PART);
}
