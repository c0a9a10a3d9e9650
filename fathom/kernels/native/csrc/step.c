/* One step: embedding, layers, final norm, logits. */
#include "step.h"

#include "step_plan.h"

#include <string.h>

#define ROWS_APART 2 /* so few rows are worked on by every thread again, which is cheaper than to meet */

static void embed(const fathom_run *r, float *x, int64_t stride) {
    const fathom_model *m = r->model;
    int begin, end;
    fathom_divide_rows(r, r->rows, &begin, &end);
    for (int64_t n = begin; n < end; n++) {
        const int64_t token = r->batch->tokens[n];
        if (!m->embedding)
            fathom_unpack(&m->embedding_packed, (int)token, (int)token + 1, x + n * stride);
        else if (m->embedding_bf16)
            r->k->widen((const uint16_t *)m->embedding + token * m->hidden, m->hidden, x + n * stride);
        else
            memcpy(x + n * stride, (const float *)m->embedding + token * m->hidden, m->hidden * sizeof(float));
    }
    fathom_barrier(r->pool);
}

/* The residual stream of an MTP module: a projection of the normalised embedding and hidden state. */
static void embed_with_previous(fathom_run *r) {
    const fathom_mtp *mtp = r->model->mtp;
    const int hidden = r->model->hidden;
    const fathom_activations *pair = &r->normed;
    int begin, end;
    embed(r, r->sums, hidden);
    fathom_own_rows(r, r->rows, &begin, &end);
    for (int64_t n = begin; n < end; n++) {
        float *x = pair->x + 2 * n * hidden;
        r->k->rms_norm(r->sums + n * hidden, mtp->embedding_norm.weight, hidden, mtp->embedding_norm.eps, x);
        r->k->rms_norm(r->batch->previous + n * hidden, mtp->hidden_norm.weight, hidden, mtp->hidden_norm.eps,
                       x + hidden);
    }
    fathom_meet_rows(r);
    fathom_quantize_rows(r, &mtp->projection.weight, pair, r->rows, 2 * hidden);
    const fathom_rows rows = fathom_rows_at(pair, 0, r->rows, 2 * hidden);
    fathom_project(r, &mtp->projection, 1, &rows, r->x, hidden);
    fathom_barrier(r->pool);
}

/* Logits of ``count`` of the hidden states: rows ``row``, or the first where it is NULL. */
static void head(const fathom_run *r, const float *states, const int32_t *row, int count) {
    const fathom_linear linear = {.weight = r->model->head};
    const int hidden = r->model->hidden, eight = fathom_reads_8_bits(r, &linear.weight);
    int begin, end;
    fathom_own_rows(r, count, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const float *state = states + (row ? row[i] : i) * hidden;
        memcpy(r->normed.x + i * hidden, state, hidden * sizeof(float));
        if (eight) fathom_quantize_row_to(r, state, hidden, &r->normed, i);
    }
    fathom_meet_rows(r);
    const fathom_rows rows = fathom_rows_at(&r->normed, 0, count, hidden);
    fathom_project(r, &linear, 1, &rows, r->batch->logits, r->model->vocabulary);
}

/* The final norm of every row, and the logits of those that are wanted. */
static void finish(fathom_run *r, const fathom_norm *norm) {
    const int hidden = r->model->hidden;
    float *out = r->batch->hidden;
    int begin, end;
    fathom_divide_rows(r, r->rows, &begin, &end);
    for (int64_t n = begin; n < end; n++)
        r->k->rms_norm(r->x + n * hidden, norm->weight, hidden, norm->eps, out + n * hidden);
    fathom_barrier(r->pool);
    if (r->batch->logit_rows) head(r, out, r->batch->logit_row, r->batch->logit_rows);
}

static int64_t routing_width(const fathom_model *m) {
    int64_t width = 0;
    for (int i = 0; i < m->layers; i++)
        if (m->layer[i].feed_forward.router.experts) width += m->layer[i].feed_forward.router.chosen;
    return width;
}

static void run_step(int thread, int threads, void *argument) {
    fathom_run *r = (fathom_run *)argument + thread;
    const fathom_model *m = r->model;
    const int64_t stride = routing_width(m);
    int16_t *routing = r->batch->routing;
    (void)threads;
    if (r->batch->previous) {
        embed_with_previous(r);
        fathom_attention_layer(r, &m->mtp->layer);
        fathom_feed_forward_layer(r, &m->mtp->layer, NULL, 0);
        finish(r, &m->mtp->norm);
        return;
    }
    embed(r, r->x, m->hidden);
    for (int i = 0; i < m->layers; i++) {
        const fathom_router *router = &m->layer[i].feed_forward.router;
        fathom_attention_layer(r, &m->layer[i]);
        fathom_feed_forward_layer(r, &m->layer[i], routing, stride);
        if (routing && router->experts) routing += router->chosen;
    }
    finish(r, &m->norm);
}

/* Positions and slots of all rows. */
static int place_rows(const fathom_model *m, const fathom_batch *b, int32_t *position, int64_t *slot) {
    int row = 0;
    for (int i = 0; i < b->chunks; i++) {
        const fathom_chunk *c = &b->chunk[i];
        if (c->start + c->tokens - b->empty_slots > m->positions)
            return fathom_fail("the rotary table has %d positions", m->positions);
        for (int s = c->start; s < c->start + c->tokens; s++, row++) {
            const int at = s - c->first, page = at / m->page_size;
            if (row >= b->rows || page >= c->page_count) return fathom_fail("sequence %d has too few pages", i);
            position[row] = s - b->empty_slots;
            slot[row] = (int64_t)b->pages[c->page_offset + page] * m->page_size + at % m->page_size;
        }
    }
    return row == b->rows ? 0 : fathom_fail("%d tokens for sequences of %d", b->rows, row);
}

/* Prepare each thread's run of a batch. */
static int plan(fathom_pool *pool, const fathom_model *model, fathom_workspace *workspace, const fathom_batch *batch) {
    const fathom_run first = {.model = model,
                              .batch = batch,
                              .k = fathom_current,
                              .pool = pool,
                              .threads = fathom_pool_threads(pool),
                              .apart = batch->rows <= ROWS_APART,
                              .rows = batch->rows};
    return fathom_plan_memory(workspace, &first);
}

int fathom_step(fathom_pool *pool, const fathom_model *model, fathom_workspace *workspace, const fathom_batch *batch) {
    if (plan(pool, model, workspace, batch)) return -1;
    fathom_run *r = workspace->runs;
    if (place_rows(model, batch, (int32_t *)r->position, (int64_t *)r->slot)) return -1;
    fathom_place_items(r, batch->previous ? &model->mtp->layer.attention : &model->layer[0].attention);
    return fathom_pool_run(pool, run_step, workspace->runs);
}

static void run_logits(int thread, int threads, void *argument) {
    const fathom_run *r = (const fathom_run *)argument + thread;
    (void)threads;
    head(r, r->batch->previous, NULL, r->rows);
}

int fathom_logits(fathom_pool *pool, const fathom_model *model, fathom_workspace *workspace, const float *hidden,
                  int rows, float *logits) {
    const fathom_batch batch = {.rows = rows, .previous = hidden, .logits = logits};
    if (plan(pool, model, workspace, &batch)) return -1;
    return fathom_pool_run(pool, run_logits, workspace->runs);
}
