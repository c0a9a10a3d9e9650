/* Attention of a layer: projections, rotary embedding, what is cached, attention over the pages, output.
 *
 * Latent attention of a few tokens is absorbed: the key half of kv_b_proj moves to the queries, the value half to the
 * output, and all heads attend to the latents themselves. For many tokens latents are expanded to keys and values. */
#include "step_run.h"

#include <string.h>

static void rotate(const fathom_run *r, float *x, int row, int pairs) {
    const int64_t at = (int64_t)r->position[row] * pairs;
    r->k->rotate(x, r->model->cosine + at, r->model->sine + at, pairs, r->model->half);
}

static void attend(fathom_run *r) {
    fathom_barrier(r->pool);
    for (int i = 0; i < r->prompt_count; i++)
        fathom_attend_tiles(&r->prompts[i], r->pool, r->thread, r->threads, r->tiles);
    if (!r->item_count) return;
    fathom_attend(r->items, r->item_count, r->thread, r->threads, r->attend);
    fathom_barrier(r->pool);
}

/* Normalise and rotate this thread's rows of the latents, and write them to their slots. */
static void cache_latents(fathom_run *r, const fathom_layer *layer, int64_t stride) {
    const fathom_attention_weights *a = &layer->attention;
    const int width = a->latent + a->rope;
    int begin, end;
    fathom_divide_rows(r, r->rows, &begin, &end);
    for (int64_t n = begin; n < end; n++) {
        const float *made = r->projected + n * stride + stride - width;
        float *entry = r->entries + n * width;
        r->k->rms_norm(made, a->kv_norm.weight, a->latent, a->kv_norm.eps, entry);
        memcpy(entry + a->latent, made + a->latent, a->rope * sizeof(float));
        rotate(r, entry + a->latent, (int)n, a->rope / 2);
    }
    fathom_write_rows(layer->pages[0], r->slot + begin, end - begin, r->entries + (int64_t)begin * width, width);
}

/* ``count`` rows of one head for its matrix, in 8 bits in memory of this thread where it reads them so. */
static fathom_rows rows_of_head(const fathom_run *r, const fathom_matrix *w, const float *x, int64_t stride, int count) {
    fathom_rows rows = {.x = x, .stride = stride, .rows = count, .columns = w->columns};
    if (!fathom_reads_8_bits(r, w)) return rows;
    for (int64_t n = 0; n < count; n++) fathom_quantize_row_to(r, x + n * stride, w->columns, &r->gathered, n);
    rows.q = r->gathered.q;
    rows.scales = r->gathered.scales;
    rows.sums = r->gathered.sums;
    return rows;
}

/* A product of each head: head h reads x + h * x_head and writes y + h * y_head, rows [first, first + count) of them. */
static void multiply_heads(const fathom_run *r, int heads, const fathom_matrix *w, int64_t first, int count,
                           const float *x, int64_t x_row, int64_t x_head, float *y, int64_t y_row, int64_t y_head) {
    const int panels = fathom_panels(w);
    fathom_part part;
    int begin, end;
    fathom_begin_part(r, (double)heads * panels, &part);
    for (int h = 0; h < heads; h++) {
        fathom_take(&part, panels, 1, &begin, &end);
        if (begin >= end) continue;
        const fathom_linear linear = {.weight = w[h]};
        const fathom_rows rows = rows_of_head(r, &w[h], x + first * x_row + h * x_head, x_row, count);
        fathom_multiply(r, &linear, begin, end, &rows, y + first * y_row + h * y_head, y_row);
    }
}

/* Rotate the queries' rotary parts: where they are for expanded latents, else behind what the latents meet. */
static void rotate_queries(const fathom_run *r, const fathom_attention_weights *a, float *q, int64_t stride) {
    const int width = a->nope + a->rope;
    for (int expanded = 0; expanded < 2; expanded++)
        for (int next = 0, from, to = 0, begin, end; fathom_next_rows(r, a, expanded, &next, &from, &to);) {
            fathom_divide_rows(r, to - from, &begin, &end);
            for (int64_t n = from + begin; n < from + end; n++)
                for (int h = 0; h < a->heads; h++) {
                    float *given = q + n * stride + h * width + a->nope;
                    float *out = r->absorbed + (n * a->heads + h) * (a->latent + a->rope) + a->latent;
                    if (!expanded) memcpy(out, given, a->rope * sizeof(float));
                    rotate(r, expanded ? given : out, (int)n, a->rope / 2);
                }
        }
}

static void latent_attention(fathom_run *r, const fathom_layer *layer, int64_t stride) {
    const fathom_attention_weights *a = &layer->attention;
    const int64_t width = a->nope + a->rope, wide = a->latent + a->rope, heads = a->heads;
    float *q = r->projected;
    int64_t q_row = stride;
    cache_latents(r, layer, stride);
    if (a->q_b.weight.data) {
        const int eight = fathom_reads_8_bits(r, &a->q_b.weight);
        fathom_normalize(r, &a->q_norm, r->projected, stride, r->rows, &r->latents, eight);
        const fathom_rows rows = fathom_rows_at(&r->latents, 0, r->rows, a->q_norm.width);
        q = r->queries;
        q_row = heads * width;
        fathom_project(r, &a->q_b, 1, &rows, r->queries, q_row);
        fathom_barrier(r->pool);
    }
    rotate_queries(r, a, q, q_row);
    for (int next = 0, from, to = 0; fathom_next_rows(r, a, 0, &next, &from, &to);)
        multiply_heads(r, a->heads, a->key_up, from, to - from, q, q_row, width, r->absorbed, heads * wide, wide);
    attend(r);
    for (int next = 0, from, to = 0; fathom_next_rows(r, a, 0, &next, &from, &to);)
        multiply_heads(r, a->heads, a->value_up, from, to - from, r->attended, heads * a->latent, a->latent, r->mixed.x,
                       heads * a->value, a->value);
    fathom_barrier(r->pool);
}

static void grouped_attention(fathom_run *r, const fathom_layer *layer, int64_t stride) {
    const fathom_attention_weights *a = &layer->attention;
    const int width = a->value, rotated = a->heads + a->kv_heads;
    int begin, end;
    fathom_divide_rows(r, r->rows, &begin, &end);
    for (int64_t n = begin; n < end; n++)
        for (int h = 0; h < rotated; h++) rotate(r, r->projected + n * stride + h * width, (int)n, width / 2);
    const float *keys = r->projected + begin * stride + a->heads * width;
    fathom_write_rows(layer->pages[0], r->slot + begin, end - begin, keys, stride);
    fathom_write_rows(layer->pages[1], r->slot + begin, end - begin, keys + a->kv_heads * width, stride);
    attend(r);
}

void fathom_attention_layer(fathom_run *r, const fathom_layer *layer) {
    const fathom_attention_weights *a = &layer->attention;
    const int64_t stride = fathom_input_columns(a);
    int eight = 0;
    for (int i = 0; i < a->inputs; i++) eight |= fathom_reads_8_bits(r, &a->input[i].weight);
    fathom_choose_pages(r, layer);
    fathom_normalize(r, &layer->input_norm, r->x, r->model->hidden, r->rows, &r->normed, eight);
    const fathom_rows normed = fathom_rows_at(&r->normed, 0, r->rows, r->model->hidden);
    fathom_project(r, a->input, a->inputs, &normed, r->projected, stride);
    fathom_barrier(r->pool);
    if (a->kind == FATHOM_MLA)
        latent_attention(r, layer, stride);
    else
        grouped_attention(r, layer, stride);
    fathom_quantize_rows(r, &a->output.weight, &r->mixed, r->rows, a->heads * a->value);
    const fathom_rows mixed = fathom_rows_at(&r->mixed, 0, r->rows, a->heads * a->value);
    fathom_project_add(r, &a->output, &mixed);
    fathom_barrier(r->pool);
}
