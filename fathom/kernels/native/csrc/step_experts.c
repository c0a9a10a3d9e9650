/* Feed-forward layers: dense ones, and mixtures of experts, whose pairs of a token and an expert run grouped by expert. */
#include "step_run.h"

#include <string.h>

/* silu(gate x) * (up x) of this thread's panels; ``up`` has room like ``middle``. */
static void gate_up(const fathom_run *r, const fathom_swiglu *w, fathom_part *part, const fathom_rows *x, float *middle,
                    float *up) {
    const int width = w->gate.weight.rows;
    int begin, end;
    fathom_take(part, fathom_panels(&w->gate.weight), fathom_panel_cost(&w->gate.weight, x->rows), &begin, &end);
    if (begin >= end) return;
    fathom_multiply(r, &w->gate, begin, end, x, middle, width);
    fathom_multiply(r, &w->up, begin, end, x, up, width);
    begin *= FATHOM_PANEL;
    end = end * FATHOM_PANEL < width ? end * FATHOM_PANEL : width;
    for (int64_t n = 0; n < x->rows; n++) {
        float *gate = middle + n * width + begin;
        r->k->silu_multiply(gate, up + n * width + begin, 1.0f, end - begin, gate);
    }
}

static double gate_up_cost(const fathom_swiglu *w, int rows) {
    return fathom_panels(&w->gate.weight) * fathom_panel_cost(&w->gate.weight, rows);
}

static int experts_read_8_bits(const fathom_run *r, const fathom_feed_forward *f) {
    return fathom_reads_8_bits(r, &f->experts[0].gate.weight);
}

/* Logits of the router, and the shared experts, which do not wait for what it chooses. */
static void score_and_share(const fathom_run *r, const fathom_feed_forward *f, const fathom_rows *normed) {
    const fathom_linear router = {.weight = f->router.weight};
    const int panels = router.weight.data ? fathom_panels(&router.weight) : 0;
    const double cost = panels ? fathom_panel_cost(&router.weight, r->rows) : 1;
    const int shared = f->dense.gate.weight.data != NULL;
    fathom_part part;
    int begin, end;
    fathom_begin_part(r, panels * cost + (shared ? gate_up_cost(&f->dense, r->rows) : 0), &part);
    fathom_take(&part, panels, cost, &begin, &end);
    if (panels) fathom_multiply(r, &router, begin, end, normed, r->scores, f->router.experts);
    if (shared) gate_up(r, &f->dense, &part, normed, r->middle.x, r->up);
}

/* Choose every token's experts, write down which, and sort the pairs. */
static void choose(fathom_run *r, const fathom_router *router, int16_t *routing, int64_t stride) {
    const int chosen = router->chosen;
    int begin, end;
    fathom_own_rows(r, r->rows, &begin, &end);
    for (int64_t n = begin; n < end; n++) {
        int32_t *index = r->assignment.index + n * chosen;
        fathom_select(router, r->scores + n * router->experts, r->batch->tokens[n], r->room, index,
                      r->assignment.weight + n * chosen);
        if (!routing || (r->apart && r->thread)) continue;
        for (int i = 0; i < chosen; i++) routing[n * stride + i] = (int16_t)index[i];
    }
    fathom_meet_rows(r);
    fathom_sort_pairs(router, r->rows, &r->assignment);
}

/* The rows of one expert's tokens one after another; a single one is read where it is. */
static fathom_rows gather(const fathom_run *r, const int32_t *token, int count, int eight) {
    const int64_t width = r->model->hidden, groups = width / FATHOM_GROUP;
    if (count == 1) return fathom_rows_at(&r->normed, token[0], 1, (int)width);
    for (int64_t i = 0; i < count; i++) {
        const int64_t n = token[i];
        if (!eight) {
            memcpy(r->gathered.x + i * width, r->normed.x + n * width, width * sizeof(float));
            continue;
        }
        memcpy(r->gathered.q + i * width, r->normed.q + n * width, width);
        memcpy(r->gathered.scales + i * groups, r->normed.scales + n * groups, groups * sizeof(float));
        memcpy(r->gathered.sums + i * groups, r->normed.sums + n * groups, groups * sizeof(float));
    }
    return fathom_rows_at(&r->gathered, 0, count, (int)width);
}

static void run_experts(const fathom_run *r, const fathom_feed_forward *f) {
    const fathom_assignment *a = &r->assignment;
    const int experts = f->router.experts, width = f->experts[0].gate.weight.rows;
    const int eight = experts_read_8_bits(r, f);
    fathom_part part;
    double total = 0;
    for (int e = 0; e < experts; e++)
        if (a->offset[e + 1] > a->offset[e]) total += gate_up_cost(&f->experts[e], a->offset[e + 1] - a->offset[e]);
    fathom_begin_part(r, total, &part);
    for (int e = 0; e < experts; e++) {
        const int count = a->offset[e + 1] - a->offset[e];
        if (!count) continue;
        const double cost = gate_up_cost(&f->experts[e], count);
        if (part.before + cost <= part.low || part.before >= part.high) {
            part.before += cost;
            continue;
        }
        const fathom_rows rows = gather(r, a->token + a->offset[e], count, eight);
        const int64_t at = (int64_t)a->offset[e] * width;
        gate_up(r, &f->experts[e], &part, &rows, r->pairs.x + at, r->pairs_up + at);
    }
}

/* Add what this thread's columns of the experts' outputs are to the residual stream. */
static void add_experts(const fathom_run *r, const fathom_feed_forward *f) {
    const fathom_assignment *a = &r->assignment;
    const int64_t hidden = r->model->hidden, width = f->experts[0].gate.weight.rows;
    fathom_part part;
    int begin, end;
    fathom_begin_part(r, fathom_panels(&f->experts[0].down.weight), &part);
    fathom_take(&part, fathom_panels(&f->experts[0].down.weight), 1, &begin, &end);
    if (begin >= end) return;
    const int64_t first = (int64_t)begin * FATHOM_PANEL, past = (int64_t)end * FATHOM_PANEL;
    const int columns = (int)((past < hidden ? past : hidden) - first);
    for (int e = 0; e < f->router.experts; e++) {
        const int count = a->offset[e + 1] - a->offset[e];
        if (!count) continue;
        const fathom_rows rows = fathom_rows_at(&r->pairs, a->offset[e], count, (int)width);
        fathom_multiply(r, &f->experts[e].down, begin, end, &rows, r->sums, hidden);
        for (int64_t i = 0; i < count; i++) {
            const int64_t pair = a->offset[e] + i;
            r->k->add_scaled(a->share[pair], r->sums + i * hidden + first, columns,
                             r->x + a->token[pair] * hidden + first);
        }
    }
}

void fathom_feed_forward_layer(fathom_run *r, const fathom_layer *layer, int16_t *routing, int64_t stride) {
    const fathom_feed_forward *f = &layer->feed_forward;
    const int dense = f->dense.gate.weight.data != NULL, experts = f->router.experts;
    int eight = dense && fathom_reads_8_bits(r, &f->dense.gate.weight);
    if (experts) eight |= experts_read_8_bits(r, f);
    fathom_normalize(r, &layer->output_norm, r->x, r->model->hidden, r->rows, &r->normed, eight);
    const fathom_rows normed = fathom_rows_at(&r->normed, 0, r->rows, r->model->hidden);
    score_and_share(r, f, &normed);
    fathom_barrier(r->pool);
    if (experts) {
        choose(r, &f->router, routing, stride);
        run_experts(r, f);
        fathom_barrier(r->pool);
        fathom_quantize_rows(r, &f->experts[0].down.weight, &r->pairs, r->assignment.offset[experts],
                             f->experts[0].gate.weight.rows);
    }
    if (dense) {
        const int width = f->dense.gate.weight.rows;
        fathom_quantize_rows(r, &f->dense.down.weight, &r->middle, r->rows, width);
        const fathom_rows middle = fathom_rows_at(&r->middle, 0, r->rows, width);
        fathom_project_add(r, &f->dense.down, &middle);
    }
    if (experts) add_experts(r, f);
    fathom_barrier(r->pool);
}
