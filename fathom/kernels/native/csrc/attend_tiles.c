/* Attention of many tokens to blocks of keys. The keys and values of a block are written as panels of weights, so that
 * scores and weighted sums are products like those of any linear layer; between them each row of scores is softened,
 * and what earlier blocks left is brought to the new maximum. The outputs themselves hold the sums meanwhile. */
#include "attend_tiles.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "pool.h"

enum {
    TILE_TOKENS = 48,
    BLOCK_KEYS = 256,
    BLOCK_PANELS = BLOCK_KEYS / FATHOM_PANEL
};

/* The workspace and one thread's view of a block of keys. */
typedef struct {
    const fathom_prompt *prompt;
    int thread, threads;
    int start, begin, end;      /* indices of the first key of all, and of the block's keys */
    int key_width, latent;      /* of a row of latents; latent 0 where nothing is expanded */
    float *latents, *panels;    /* the block's latents with rotary keys, in rows and in panels */
    float *key_up;              /* of each head, nope x latent */
    float *keys, *values;       /* of each head, in panels */
    float *max, *sum;           /* of each token of each head */
    uint8_t *finite;            /* of each head, by panels of keys: whether its values are */
    float *scores, *mixed, *rows; /* this thread's */
} block;

static int64_t panelled(int64_t rows) { return (rows + FATHOM_PANEL - 1) / FATHOM_PANEL * FATHOM_PANEL; }

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Lay the workspace out, or measure it where it is NULL; return the floats it takes. */
static int64_t lay_out(block *b, float *base) {
    const fathom_prompt *p = b->prompt;
    const fathom_attention *item = &p->item;
    const int64_t states = (int64_t)p->kv_heads * item->heads * item->tokens;
    const int64_t widest = larger(item->width, item->value_width);
    int64_t used = 0;
    b->latent = p->key_up ? p->key_up->rows : 0;
    b->key_width = p->key_up ? b->latent + item->width - p->key_up->columns : 0;
    b->latents = fathom_next_floats(base, &used, BLOCK_KEYS * b->key_width);
    b->panels = fathom_next_floats(base, &used, BLOCK_KEYS * b->key_width);
    b->key_up = fathom_next_floats(base, &used, p->key_up ? (int64_t)p->kv_heads * b->latent * p->key_up->columns : 0);
    b->keys = fathom_next_floats(base, &used, p->kv_heads * BLOCK_KEYS * item->width);
    b->values = fathom_next_floats(base, &used, p->kv_heads * BLOCK_KEYS * panelled(item->value_width));
    b->max = fathom_next_floats(base, &used, states);
    b->sum = fathom_next_floats(base, &used, states);
    b->finite = (uint8_t *)fathom_next_floats(base, &used, p->kv_heads * BLOCK_PANELS);
    for (int t = 0; t <= b->thread; t++) {
        b->scores = fathom_next_floats(base, &used, TILE_TOKENS * BLOCK_KEYS);
        b->mixed = fathom_next_floats(base, &used, TILE_TOKENS * item->value_width);
        b->rows = fathom_next_floats(base, &used, larger(BLOCK_KEYS * widest, p->key_up ? b->latent * p->key_up->columns : 0));
    }
    return used;
}

int64_t fathom_tiles_bytes(const fathom_prompt *prompt, int threads) {
    block last = {.prompt = prompt, .thread = threads - 1};
    return lay_out(&last, NULL) * (int64_t)sizeof(float);
}

/* This thread's part [begin, end) of so many pieces of equal cost. */
static void divide(const block *b, int pieces, int *begin, int *end) {
    *begin = (int)((int64_t)pieces * b->thread / b->threads);
    *end = (int)((int64_t)pieces * (b->thread + 1) / b->threads);
}

/* Up to 16 rows as a panel of weights, filled up with zeros. */
static void write_panel(const float *rows, int64_t stride, int count, int width, float *panel) {
    for (int k = 0; k < width; k++, panel += FATHOM_PANEL)
        for (int i = 0; i < FATHOM_PANEL; i++) panel[i] = i < count ? rows[i * stride + k] : 0.0f;
}

/* Write the values of keys from ``first`` on as columns of the panels of a head; return whether they are all finite. */
static int write_values(const float *rows, int64_t stride, int first, int count, int width, float *panels) {
    int odd = 0;
    for (int i = 0; i < count; i++, rows += stride) {
        for (int k = 0; k < width; k++) odd |= !(fabsf(rows[k]) <= FLT_MAX);
        for (int k = 0; k < width; k += FATHOM_PANEL) {
            float *to = panels + (int64_t)k * BLOCK_KEYS + (first + i) * FATHOM_PANEL;
            for (int j = width - k; j < FATHOM_PANEL; j++) to[j] = 0.0f;
            if (width - k < FATHOM_PANEL)
                memcpy(to, rows + k, sizeof(float) * (size_t)(width - k));
            else
                memcpy(to, rows + k, sizeof(float) * FATHOM_PANEL);
        }
    }
    return !odd;
}

/* Each head's key_up as floats, its columns one after another. */
static void unpack_key_up(const block *b) {
    const fathom_matrix *up = b->prompt->key_up;
    int begin, end;
    divide(b, b->prompt->kv_heads, &begin, &end);
    for (int h = begin; h < end; h++) {
        float *to = b->key_up + (int64_t)h * b->latent * up->columns;
        fathom_unpack(&up[h], 0, b->latent, b->rows);
        for (int k = 0; k < up->columns; k++)
            for (int i = 0; i < b->latent; i++) to[k * b->latent + i] = b->rows[i * up->columns + k];
    }
}

/* Read this thread's panels of the block's latents. */
static void read_latents(const block *b) {
    const fathom_attention *item = &b->prompt->item;
    const int count = b->end - b->begin;
    int begin, end;
    divide(b, (int)panelled(count) / FATHOM_PANEL, &begin, &end);
    for (int p = begin; p < end; p++) {
        const int first = p * FATHOM_PANEL, left = count - first, rows = left < FATHOM_PANEL ? left : FATHOM_PANEL;
        float *to = b->latents + first * b->key_width;
        fathom_read_tokens(item, item->keys, b->begin + first, rows, 0, b->key_width, to, b->key_width);
        write_panel(to, b->key_width, rows, b->key_width, b->panels + first * b->key_width);
    }
}

/* The keys and values of panels [begin, end) of a head, from the block's latents. */
static void expand(const block *b, int head, int begin, int end, float *keys, float *values) {
    const fathom_prompt *p = b->prompt;
    const int nope = p->key_up->columns, width = p->item.width, value = p->item.value_width;
    const fathom_matrix latents = {.data = b->panels, .panel_bytes = (int64_t)sizeof(float) * FATHOM_PANEL * b->key_width,
                                   .format = FATHOM_F32, .rows = BLOCK_KEYS, .columns = b->latent};
    const fathom_rows up = {.x = b->key_up + (int64_t)head * b->latent * nope, .stride = b->latent, .rows = nope,
                            .columns = b->latent};
    const int first = begin * FATHOM_PANEL, left = b->end - b->begin - first;
    const int stride = (end - begin) * FATHOM_PANEL, count = left < stride ? left : stride;
    const fathom_rows rows = {.x = b->latents + first * b->key_width, .stride = b->key_width, .rows = count,
                              .columns = b->latent};
    fathom_current->product(&latents, begin, end, &up, b->rows - first, stride);
    for (int i = begin; i < end; i++) {
        float *to = keys + i * FATHOM_PANEL * width;
        const float *made = b->rows + (i - begin) * FATHOM_PANEL;
        for (int k = 0; k < nope; k++) memcpy(to + k * FATHOM_PANEL, made + k * stride, sizeof(float) * FATHOM_PANEL);
        memcpy(to + nope * FATHOM_PANEL, b->panels + (i * b->key_width + b->latent) * FATHOM_PANEL,
               sizeof(float) * (size_t)((width - nope) * FATHOM_PANEL));
    }
    fathom_current->product(&p->value_up[head], 0, fathom_panels(&p->value_up[head]), &rows, b->rows, value);
    for (int i = begin; i < end; i++) {
        const int at = (i - begin) * FATHOM_PANEL, some = count - at < FATHOM_PANEL ? count - at : FATHOM_PANEL;
        b->finite[head * BLOCK_PANELS + i] =
            (uint8_t)write_values(b->rows + at * value, value, first + at, some, value, values);
    }
}

/* The same from the pages. */
static void copy(const block *b, int head, int begin, int end, float *keys, float *values) {
    const fathom_attention *item = &b->prompt->item;
    const int width = item->width, value = item->value_width;
    for (int i = begin; i < end; i++) {
        const int first = i * FATHOM_PANEL, left = b->end - b->begin - first;
        const int count = left < FATHOM_PANEL ? left : FATHOM_PANEL;
        fathom_read_tokens(item, item->keys, b->begin + first, count, item->key_column + head * width, width, b->rows,
                           width);
        write_panel(b->rows, width, count, width, keys + first * width);
        fathom_read_tokens(item, item->values, b->begin + first, count, item->value_column + head * value, value,
                           b->rows, value);
        b->finite[head * BLOCK_PANELS + i] = (uint8_t)write_values(b->rows, value, first, count, value, values);
    }
}

/* Write this thread's panels of the block's keys and values. */
static void prepare(const block *b) {
    const fathom_prompt *p = b->prompt;
    const int panels = (int)panelled(b->end - b->begin) / FATHOM_PANEL;
    int begin, end;
    divide(b, p->kv_heads * panels, &begin, &end);
    for (int at = begin, next; at < end; at = next) {
        const int head = at / panels, first = at % panels;
        next = (head + 1) * panels < end ? (head + 1) * panels : end;
        (p->key_up ? expand : copy)(b, head, first, first + next - at, b->keys + head * BLOCK_KEYS * p->item.width,
                                    b->values + head * BLOCK_KEYS * panelled(p->item.value_width));
    }
}

/* Queries of one head and the keys of the block that they see, as offsets within it. */
typedef struct {
    int head, token, tokens;
    int begin, end;
} tile;

static tile tile_at(const block *b, int index) {
    const fathom_attention *item = &b->prompt->item;
    const int tiles = (item->tokens + TILE_TOKENS - 1) / TILE_TOKENS, token = index % tiles * TILE_TOKENS;
    tile t = {.head = index / tiles, .token = token};
    t.tokens = item->tokens - token < TILE_TOKENS ? item->tokens - token : TILE_TOKENS;
    t.begin = fathom_first_seen(item, token) - b->begin;
    t.begin = t.begin > 0 ? t.begin / FATHOM_PANEL * FATHOM_PANEL : 0;
    t.end = item->position + token + t.tokens - b->begin;
    t.end = t.end < b->end - b->begin ? t.end : b->end - b->begin;
    return t;
}

static int64_t tile_cost(const tile *t) { return t->tokens * (int64_t)(t->end > t->begin ? t->end - t->begin + 16 : 1); }

/* Where a token's output is, and its state. */
static float *output_of(const block *b, const tile *t, int i) {
    const fathom_attention *item = &b->prompt->item;
    return item->out + (t->token + i) * item->out_token + t->head * item->out_head;
}

/* Add the weighted values of the keys [begin, end) to what earlier blocks left, for rows [row, row + rows) of a tile. */
static void mix(const block *b, const tile *t, int row, int rows, int begin, int end, const float *keep) {
    const fathom_attention *item = &b->prompt->item;
    const int width = item->value_width, kv_head = t->head / item->heads;
    const float *panels = b->values + kv_head * BLOCK_KEYS * panelled(width) + begin * FATHOM_PANEL;
    const fathom_matrix values = {.data = panels, .panel_bytes = sizeof(float) * FATHOM_PANEL * BLOCK_KEYS,
                                  .format = FATHOM_F32, .rows = width, .columns = end - begin};
    const fathom_rows weights = {.x = b->scores + row * BLOCK_KEYS + begin, .stride = BLOCK_KEYS, .rows = rows,
                                 .columns = end - begin};
    if (begin >= end) return;
    fathom_current->product(&values, 0, fathom_panels(&values), &weights, b->mixed, width);
    for (int i = 0; i < rows; i++) {
        float *out = output_of(b, t, row + i);
        fathom_current->add_scaled(keep[row + i], out, width, b->mixed + i * width);
        memcpy(out, b->mixed + i * width, sizeof(float) * (size_t)width);
    }
}

static int within(int x, int least, int most) { return x < least ? least : x > most ? most : x; }

static void attend(const block *b, const tile *t) {
    const fathom_attention *item = &b->prompt->item;
    const int kv_head = t->head / item->heads, panels = (int)panelled(t->end) / FATHOM_PANEL;
    const int64_t state = (int64_t)t->head * item->tokens + t->token;
    const fathom_matrix keys = {.data = b->keys + kv_head * BLOCK_KEYS * item->width,
                                .panel_bytes = (int64_t)sizeof(float) * FATHOM_PANEL * item->width,
                                .format = FATHOM_F32, .rows = t->end, .columns = item->width};
    const fathom_rows q = {.x = item->q + t->token * item->q_token + t->head * item->q_head, .stride = item->q_token,
                           .rows = t->tokens, .columns = item->width};
    float keep[TILE_TOKENS];
    int first[TILE_TOKENS], last[TILE_TOKENS], finite = 1;
    fathom_current->product(&keys, t->begin / FATHOM_PANEL, panels, &q, b->scores, BLOCK_KEYS);
    for (int i = 0; i < t->tokens; i++) {
        float *scores = b->scores + i * BLOCK_KEYS;
        first[i] = within(fathom_first_seen(item, t->token + i) - b->begin, t->begin, t->end);
        last[i] = within(item->position + t->token + i + 1 - b->begin, first[i], t->end);
        for (int k = t->begin; k < first[i]; k++) scores[k] = 0.0f;
        for (int k = last[i]; k < t->end; k++) scores[k] = 0.0f;
        keep[i] = fathom_current->soften(scores + first[i], last[i] - first[i], item->scale, b->max + state + i,
                                         b->sum + state + i);
    }
    for (int p = t->begin / FATHOM_PANEL; p < panels; p++) finite &= b->finite[kv_head * BLOCK_PANELS + p];
    if (finite) {
        mix(b, t, 0, t->tokens, t->begin, t->end, keep);
        return;
    }
    /* What a query does not see never meets it, since 0 times a NaN is one. */
    for (int i = 0; i < t->tokens; i++) mix(b, t, i, 1, first[i], last[i], keep);
}

/* Begin the sums of a tile, attend to the block, and divide the outputs by the sums after the last key. */
static void run_tile(const block *b, const tile *t) {
    const fathom_attention *item = &b->prompt->item;
    const int64_t state = (int64_t)t->head * item->tokens + t->token;
    const int begins = b->begin == b->start, end = item->position + t->token + t->tokens;
    for (int i = 0; i < t->tokens && begins; i++) {
        b->max[state + i] = -INFINITY;
        b->sum[state + i] = 0.0f;
        memset(output_of(b, t, i), 0, sizeof(float) * (size_t)item->value_width);
    }
    if (t->begin < t->end) attend(b, t);
    if (end > b->end || (end <= b->begin && !begins)) return;
    for (int i = 0; i < t->tokens; i++) {
        const float sum = b->sum[state + i];
        if (sum == 0.0f) continue;
        memset(b->mixed, 0, sizeof(float) * (size_t)item->value_width);
        fathom_current->add_scaled(1.0f / sum, output_of(b, t, i), item->value_width, b->mixed);
        memcpy(output_of(b, t, i), b->mixed, sizeof(float) * (size_t)item->value_width);
    }
}

/* This thread's tiles: those whose middle lies in its part of the cost of all. */
static void run_tiles(const block *b) {
    const fathom_attention *item = &b->prompt->item;
    const int tiles = b->prompt->kv_heads * item->heads * ((item->tokens + TILE_TOKENS - 1) / TILE_TOKENS);
    int64_t total = 0, before = 0;
    for (int i = 0; i < tiles; i++) {
        const tile t = tile_at(b, i);
        total += tile_cost(&t);
    }
    for (int i = 0; i < tiles; i++) {
        const tile t = tile_at(b, i);
        const int64_t cost = tile_cost(&t), middle = before + cost / 2;
        if (middle * b->threads >= total * b->thread && middle * b->threads < total * (b->thread + 1)) run_tile(b, &t);
        before += cost;
    }
}

void fathom_attend_tiles(const fathom_prompt *prompt, fathom_pool *pool, int thread, int threads, void *workspace) {
    const fathom_attention *item = &prompt->item;
    block b = {.prompt = prompt, .thread = thread, .threads = threads, .start = fathom_first_seen(item, 0)};
    const int end = item->position + item->tokens;
    lay_out(&b, workspace);
    if (prompt->key_up) unpack_key_up(&b);
    b.begin = b.start = b.start < end ? b.start : end - 1;
    for (; b.begin < end; b.begin = b.end) {
        b.end = b.begin + BLOCK_KEYS < end ? b.begin + BLOCK_KEYS : end;
        if (prompt->key_up) {
            read_latents(&b);
            fathom_barrier(pool);
        }
        prepare(&b);
        fathom_barrier(pool);
        run_tiles(&b);
        fathom_barrier(pool);
    }
}

typedef struct {
    const fathom_prompt *prompt;
    fathom_pool *pool;
    void *workspace;
} call;

static void attend_on(int thread, int threads, void *argument) {
    const call *given = argument;
    fathom_attend_tiles(given->prompt, given->pool, thread, threads, given->workspace);
}

int fathom_attend_tiles_all(fathom_pool *pool, const fathom_prompt *prompt, void *workspace) {
    call given = {prompt, pool, workspace};
    return fathom_pool_run(pool, attend_on, &given);
}
