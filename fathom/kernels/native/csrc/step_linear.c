/* Products of a step, each thread's part of them, and what goes with them: norms, biases, the residual stream. */
#include "step_run.h"

#define TILE_BYTES (256 << 10)  /* activations of a tile of rows, which stay in a core's cache while weights pass */
#define LEAST_TILE 16

void fathom_begin_part(const fathom_run *r, double total, fathom_part *part) {
    part->low = total * r->thread / r->threads;
    part->high = r->thread + 1 == r->threads ? total * 2 + 1 : total * (r->thread + 1) / r->threads;
    part->before = 0;
}

/* Units that begin before a bound belong to the threads before it. */
static int units_before(double bound, double before, int units, double cost) {
    const double place = (bound - before) / cost;
    if (place <= 0) return 0;
    if (place >= units) return units;
    const int whole = (int)place;
    return whole + (whole < place);
}

void fathom_take(fathom_part *part, int units, double cost, int *begin, int *end) {
    *begin = units_before(part->low, part->before, units, cost);
    *end = units_before(part->high, part->before, units, cost);
    part->before += units * cost;
}

void fathom_divide_rows(const fathom_run *r, int rows, int *begin, int *end) {
    *begin = (int)((int64_t)rows * r->thread / r->threads);
    *end = (int)((int64_t)rows * (r->thread + 1) / r->threads);
}

void fathom_own_rows(const fathom_run *r, int rows, int *begin, int *end) {
    *begin = 0;
    *end = rows;
    if (!r->apart) fathom_divide_rows(r, rows, begin, end);
}

void fathom_meet_rows(const fathom_run *r) {
    if (!r->apart) fathom_barrier(r->pool);
}

/* Weights are read once and multiplied by every row: a few rows cost little beside them. */
double fathom_panel_cost(const fathom_matrix *w, int rows) { return (double)w->panel_bytes * (rows + 4); }

int fathom_reads_8_bits(const fathom_run *r, const fathom_matrix *w) {
    return r->model->quantize && w->data && w->format >= FATHOM_Q8;
}

fathom_rows fathom_rows_at(const fathom_activations *a, int begin, int rows, int columns) {
    const fathom_rows all = {.x = a->x, .stride = columns, .q = a->q, .scales = a->scales, .sums = a->sums,
                             .columns = columns};
    return fathom_some_rows(&all, begin, rows);
}

void fathom_multiply(const fathom_run *r, const fathom_linear *w, int begin, int end, const fathom_rows *x, float *y,
                     int64_t stride) {
    const int first = begin * FATHOM_PANEL;
    const int last = end * FATHOM_PANEL < w->weight.rows ? end * FATHOM_PANEL : w->weight.rows;
    int most = (int)(TILE_BYTES / sizeof(float)) / x->columns / LEAST_TILE * LEAST_TILE;
    if (begin >= end) return;
    if (most < LEAST_TILE) most = LEAST_TILE;
    for (int n = 0; n < x->rows; n += most) {
        const fathom_rows tile = fathom_some_rows(x, n, x->rows - n < most ? x->rows - n : most);
        r->k->product(&w->weight, begin, end, &tile, y + n * stride, stride);
    }
    if (!w->bias) return;
    for (int n = 0; n < x->rows; n++)
        for (int i = first; i < last; i++) y[n * stride + i] += w->bias[i];
}

void fathom_quantize_row_to(const fathom_run *r, const float *x, int columns, const fathom_activations *to, int64_t n) {
    const int64_t group = n * (columns / FATHOM_GROUP);
    r->k->quantize_row(x, columns, to->q + n * columns, to->scales + group, to->sums + group);
}

void fathom_normalize(const fathom_run *r, const fathom_norm *norm, const float *x, int64_t stride, int rows,
                      const fathom_activations *out, int eight) {
    const int width = norm->width;
    int begin, end;
    fathom_own_rows(r, rows, &begin, &end);
    for (int64_t n = begin; n < end; n++) {
        float *y = out->x + n * width;
        r->k->rms_norm(x + n * stride, norm->weight, width, norm->eps, y);
        if (eight) fathom_quantize_row_to(r, y, width, out, n);
    }
    fathom_meet_rows(r);
}

void fathom_quantize_rows(const fathom_run *r, const fathom_matrix *w, const fathom_activations *a, int rows,
                          int columns) {
    int begin, end;
    if (!fathom_reads_8_bits(r, w)) return;
    fathom_own_rows(r, rows, &begin, &end);
    for (int64_t n = begin; n < end; n++) fathom_quantize_row_to(r, a->x + n * columns, columns, a, n);
    fathom_meet_rows(r);
}

void fathom_project(const fathom_run *r, const fathom_linear *parts, int count, const fathom_rows *x, float *y,
                    int64_t stride) {
    fathom_part part;
    double total = 0;
    int begin, end;
    for (int i = 0; i < count; i++)
        total += fathom_panels(&parts[i].weight) * fathom_panel_cost(&parts[i].weight, x->rows);
    fathom_begin_part(r, total, &part);
    for (int i = 0; i < count; i++) {
        const fathom_matrix *w = &parts[i].weight;
        fathom_take(&part, fathom_panels(w), fathom_panel_cost(w, x->rows), &begin, &end);
        fathom_multiply(r, &parts[i], begin, end, x, y, stride);
        y += w->rows;
    }
}

void fathom_project_add(const fathom_run *r, const fathom_linear *w, const fathom_rows *rows) {
    const int64_t width = r->model->hidden;
    fathom_part part;
    int begin, end;
    fathom_begin_part(r, fathom_panels(&w->weight), &part);
    fathom_take(&part, fathom_panels(&w->weight), 1, &begin, &end);
    if (begin >= end) return;
    fathom_multiply(r, w, begin, end, rows, r->sums, width);
    begin *= FATHOM_PANEL;
    end = end * FATHOM_PANEL < width ? end * FATHOM_PANEL : (int)width;
    for (int64_t n = 0; n < rows->rows; n++)
        r->k->add_scaled(1, r->sums + n * width + begin, end - begin, r->x + n * width + begin);
}
