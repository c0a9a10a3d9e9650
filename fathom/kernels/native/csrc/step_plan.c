/* Memory of a step: what its buffers need at most over all layers, laid out in one block that grows with the batch. */
#include "step_plan.h"

#include <stdlib.h>
#include <string.h>

#define LINE 64

typedef struct {
    char *base; /* NULL to count only */
    size_t used;
} layout;

/* Floats of a row in each kind of buffer, the largest of all layers. */
typedef struct {
    int64_t projected, queries, latents, absorbed, entry, mixed, middle, pairs, normed, gathered;
    int64_t experts, chosen, key_width, value_width;
} sizes;

static void *take(layout *l, size_t bytes) {
    void *at = l->base ? l->base + l->used : NULL;
    l->used += (bytes + LINE - 1) / LINE * LINE;
    return at;
}

static float *take_floats(layout *l, int64_t count) { return take(l, count * sizeof(float)); }

/* 8 bits of rows that ``x`` holds, where activations are rounded; else none, and quantized weights read floats. */
static void take_8_bits(layout *l, int quantize, int64_t count, fathom_activations *a) {
    const int64_t groups = count / FATHOM_GROUP + 1;
    if (!quantize) return;
    a->q = take(l, count);
    a->scales = take_floats(l, groups);
    a->sums = take_floats(l, groups);
}

static void widen(int64_t *width, int64_t other) {
    if (other > *width) *width = other;
}

static void measure_attention(const fathom_attention_weights *a, sizes *s) {
    widen(&s->projected, fathom_input_columns(a));
    widen(&s->mixed, (int64_t)a->heads * a->value);
    widen(&s->key_width, a->kind == FATHOM_MLA ? a->latent + a->rope : a->value);
    widen(&s->value_width, a->kind == FATHOM_MLA ? a->latent : a->value);
    if (a->kind != FATHOM_MLA) return;
    widen(&s->gathered, a->latent > a->nope ? a->latent : a->nope);
    widen(&s->absorbed, (int64_t)a->heads * (a->latent + a->rope));
    widen(&s->entry, a->latent + a->rope);
    if (!a->q_b.weight.data) return;
    widen(&s->queries, a->q_b.weight.rows);
    widen(&s->latents, a->q_norm.width);
}

static void measure_layer(const fathom_layer *layer, sizes *s) {
    const fathom_feed_forward *f = &layer->feed_forward;
    measure_attention(&layer->attention, s);
    if (f->dense.gate.weight.data) widen(&s->middle, f->dense.gate.weight.rows);
    if (!f->router.experts) return;
    widen(&s->experts, f->router.experts);
    widen(&s->chosen, f->router.chosen);
    widen(&s->pairs, (int64_t)f->router.chosen * f->experts[0].gate.weight.rows);
}

static void measure(const fathom_model *m, sizes *s) {
    *s = (sizes){.gathered = m->hidden, .normed = m->mtp ? 2 * (int64_t)m->hidden : m->hidden};
    for (int i = 0; i < m->layers; i++) measure_layer(&m->layer[i], s);
    if (m->mtp) measure_layer(&m->mtp->layer, s);
}

static void lay_out_shared(layout *l, const sizes *s, int64_t rows, fathom_run *r) {
    r->x = take_floats(l, rows * r->model->hidden);
    r->sums = take_floats(l, rows * r->model->hidden);
    r->projected = take_floats(l, rows * s->projected);
    r->queries = take_floats(l, rows * s->queries);
    r->absorbed = take_floats(l, rows * s->absorbed);
    r->attended = take_floats(l, rows * s->absorbed);
    r->entries = take_floats(l, rows * s->entry);
    r->scores = take_floats(l, rows * s->experts);
    r->mixed.x = take_floats(l, rows * s->mixed);
    r->middle.x = take_floats(l, rows * s->middle);
    r->up = take_floats(l, rows * s->middle);
    r->pairs.x = take_floats(l, rows * s->pairs);
    r->pairs_up = take_floats(l, rows * s->pairs);
    r->position = take(l, rows * sizeof *r->position);
    r->slot = take(l, rows * sizeof *r->slot);
    r->items = take(l, r->item_count * sizeof *r->items);
    r->prompts = take(l, r->prompt_count * sizeof *r->prompts);
}

/* What threads that work apart each have, and others share. */
static void lay_out_rows(layout *l, const sizes *s, int64_t rows, fathom_run *r) {
    r->normed.x = take_floats(l, rows * s->normed);
    r->latents.x = take_floats(l, rows * s->latents);
    take_8_bits(l, r->model->quantize, rows * s->normed, &r->normed);
    take_8_bits(l, r->model->quantize, rows * s->latents, &r->latents);
    take_8_bits(l, r->model->quantize, rows * s->mixed, &r->mixed);
    take_8_bits(l, r->model->quantize, rows * s->middle, &r->middle);
    take_8_bits(l, r->model->quantize, rows * s->pairs, &r->pairs);
    r->assignment.index = take(l, rows * s->chosen * sizeof(int32_t));
    r->assignment.weight = take_floats(l, rows * s->chosen);
}

static void lay_out_own(layout *l, const sizes *s, int64_t rows, fathom_run *r) {
    const int64_t pairs = rows * s->chosen;
    r->gathered.x = take_floats(l, rows * s->gathered);
    take_8_bits(l, r->model->quantize, rows * s->gathered, &r->gathered);
    r->room = take_floats(l, s->experts * FATHOM_SELECT_ROOM + 16);
    r->assignment.offset = take(l, (s->experts + 1) * sizeof(int32_t));
    r->assignment.taken = take(l, s->experts * sizeof(int32_t));
    r->assignment.token = take(l, pairs * sizeof(int32_t));
    r->assignment.share = take_floats(l, pairs);
    r->assignment.kept = take(l, pairs);
}

static void lay_out(layout *l, const sizes *s, fathom_run *runs) {
    const int rows = runs[0].rows, threads = runs[0].threads;
    lay_out_shared(l, s, rows, &runs[0]);
    lay_out_rows(l, s, rows, &runs[0]);
    for (int t = 1; t < threads; t++) {
        runs[t] = runs[0];
        runs[t].thread = t;
        if (runs[0].apart) lay_out_rows(l, s, rows, &runs[t]);
    }
    for (int t = 0; t < threads; t++) lay_out_own(l, s, rows, &runs[t]);
}

static int grow(char **block, size_t *bytes, size_t wanted, int zeros) {
    void *memory = NULL;
    if (*bytes >= wanted) return 0;
    wanted += wanted / 4;
    if (posix_memalign(&memory, LINE, wanted)) return fathom_fail("no memory for a step of %zu bytes", wanted);
    if (zeros) memset(memory, 0, wanted);
    free(*block);
    *block = memory;
    *bytes = wanted;
    return 0;
}

fathom_workspace *fathom_workspace_new(void) { return calloc(1, sizeof(fathom_workspace)); }

void fathom_workspace_free(fathom_workspace *w) {
    if (!w) return;
    free(w->runs);
    free(w->block);
    free(w->attend);
    free(w->tiles);
    free(w);
}

/* Count what attends by rows and in tiles; return the bytes that the tiles of one prompt need at most. */
static int64_t count_items(fathom_run *r) {
    const fathom_mtp *mtp = r->batch->previous ? r->model->mtp : NULL;
    const fathom_attention_weights *a = mtp ? &mtp->layer.attention : &r->model->layer[0].attention;
    int64_t bytes = 0;
    for (int i = 0; i < r->batch->chunks; i++) {
        const fathom_chunk *c = &r->batch->chunk[i];
        if (fathom_form_of(r->model, a, c) == FATHOM_BY_ROWS) {
            r->item_count += fathom_key_heads(a);
            continue;
        }
        const fathom_prompt prompt = fathom_prompt_of(r, a, c);
        widen(&bytes, fathom_tiles_bytes(&prompt, r->threads));
        r->prompt_count++;
    }
    return bytes;
}

int fathom_plan_memory(fathom_workspace *w, const fathom_run *first) {
    sizes s;
    layout l = {NULL, 0};
    const int threads = first->threads;
    if (threads > w->threads) {
        fathom_run *runs = realloc(w->runs, threads * sizeof *runs);
        if (!runs) return fathom_fail("no memory for %d threads", threads);
        w->runs = runs;
        w->threads = threads;
    }
    measure(first->model, &s);
    const int64_t attend = fathom_attend_bytes(threads, (int)s.key_width, (int)s.value_width);
    if (grow(&w->attend, &w->attend_bytes, attend, 1)) return -1;
    w->runs[0] = *first;
    if (grow(&w->tiles, &w->tiles_bytes, count_items(&w->runs[0]), 0)) return -1;
    w->runs[0].attend = w->attend;
    w->runs[0].tiles = w->tiles;
    lay_out(&l, &s, w->runs);
    if (grow(&w->block, &w->bytes, l.used, 0)) return -1;
    l = (layout){w->block, 0};
    lay_out(&l, &s, w->runs);
    return 0;
}
