/* A step's attention over pages, cut into equal shares.
 *
 * The rows of an item (tokens times heads) are cut into tiles; a tile and the keys it sees are a unit of work. The few
 * rows of key-value heads of one sequence are a unit together, which reads the pages once. Units lie one after another
 * on a line, as long as what they cost, and each thread has an equal part of it. The unit that a boundary cuts is
 * computed in pieces, each over some of the keys; the thread that finishes the last piece merges them by their
 * log-sum-exps. */
#include "attention.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "kernels.h"
#include "pool.h"

enum {
    TILE_ROWS = 64,
    LEAST_ROWS = 4,    /* fewer rows cost as much: reading the keys */
    IN_PLACE_KEYS = 24, /* neighbouring float32 rows from which on they are not copied */
    TILE_BYTES = 24 << 10 /* of a block of keys, which stays in the nearest cache */
};

typedef struct {
    const fathom_attention *item;
    int items;        /* neighbours of one sequence that read the same rows of its pages, each other columns */
    int row, rows;    /* of each item */
    int begin, end;   /* keys that any of the rows sees */
    int64_t at, cost; /* on the line */
} unit;

/* What attending to some of a unit's keys leaves: a tile of accumulators, those of one item after another. */
typedef struct {
    float *acc, *max, *sum;
} partial;

/* One thread's part of the workspace. */
typedef struct {
    atomic_int *finished; /* pieces of the unit that begins in this thread's share and ends beyond it */
    partial own, entering, leaving;
    float *packed, *keys, *values;
    int64_t key_stride, value_stride;
} room;

typedef struct {
    const fathom_attention *items;
    int count, threads;
    int64_t total;                /* length of the line */
    int width, value_width;       /* the widest */
    uint8_t *workspace;
} plan;

/* A row of the tile of keys: not a multiple of 4096 bytes, whose rows would share few places of the cache. */
static int64_t tile_stride(int width) {
    const int64_t padded = fathom_padded(width);
    return padded % 256 ? padded : padded + 16;
}

static int64_t partial_floats(int value_width) { return TILE_ROWS * (fathom_padded(value_width) + 2); }

static int64_t room_floats(int width, int value_width) {
    return 16 + 3 * partial_floats(value_width) + fathom_packed_floats(TILE_ROWS, width) +
           FATHOM_ATTEND_KEYS * (tile_stride(width) + tile_stride(value_width));
}

int64_t fathom_attend_bytes(int threads, int width, int value_width) {
    return threads * room_floats(width, value_width) * (int64_t)sizeof(float);
}

static partial partial_at(float **at, int value_width) {
    float *max = *at + TILE_ROWS * fathom_padded(value_width);
    const partial made = {*at, max, max + TILE_ROWS};
    *at += partial_floats(value_width);
    return made;
}

static room room_of(const plan *p, int thread) {
    float *at = (float *)(void *)p->workspace + thread * room_floats(p->width, p->value_width);
    room made = {.finished = (atomic_int *)at};
    at += 16;
    made.own = partial_at(&at, p->value_width);
    made.entering = partial_at(&at, p->value_width);
    made.leaving = partial_at(&at, p->value_width);
    made.packed = at;
    at += fathom_packed_floats(TILE_ROWS, p->width);
    made.keys = at;
    made.key_stride = tile_stride(p->width);
    made.values = at + FATHOM_ATTEND_KEYS * made.key_stride;
    made.value_stride = tile_stride(p->value_width);
    return made;
}

static int together(const fathom_attention *a, const fathom_attention *b) {
    return a->keys == b->keys && a->values == b->values && a->table == b->table && a->first == b->first &&
           a->begin == b->begin && a->position == b->position && a->tokens == b->tokens && a->heads == b->heads &&
           a->window == b->window && a->page_size == b->page_size && a->width == b->width &&
           a->value_width == b->value_width;
}

/* How many of the items from ``item`` to ``end`` make units together. */
static int group_size(const fathom_attention *item, const fathom_attention *end) {
    const int rows = item->tokens * item->heads;
    int count = 1;
    while (item + count < end && (count + 1) * rows <= TILE_ROWS && together(item, item + count)) count++;
    return count;
}

static unit unit_at(const fathom_attention *item, int items, int row, int64_t at) {
    const int left = item->tokens * item->heads - row;
    unit u = {.item = item, .items = items, .row = row, .rows = left < TILE_ROWS ? left : TILE_ROWS, .at = at};
    u.begin = fathom_first_seen(item, row / item->heads);
    u.end = item->position + (row + u.rows - 1) / item->heads + 1;
    if (u.end < u.begin) u.end = u.begin;
    u.cost = (int64_t)items * (u.rows < LEAST_ROWS ? LEAST_ROWS : u.rows) * (u.end - u.begin + 1);
    return u;
}

static int64_t share(const plan *p, int thread) { return p->total * thread / p->threads; }

/* The first key of the part of a unit that begins at ``at`` on the line. Both threads beside a boundary agree. */
static int cut(const unit *u, int64_t at) {
    if (at <= u->at) return u->begin;
    if (at >= u->at + u->cost) return u->end;
    const int64_t keys = (at - u->at) * (u->end - u->begin) / u->cost;
    return u->begin + (int)(keys / FATHOM_ATTEND_KEYS * FATHOM_ATTEND_KEYS);
}

/* Tokens from index i on, at most ``most``, that lie in neighbouring slots; the first slot too. */
static int neighbours(const fathom_attention *item, int i, int most, int64_t *slot) {
    const int offset = i - item->first, size = item->page_size;
    if (!item->table) {
        *slot = offset;
        return most;
    }
    int page = offset / size, count = size - offset % size;
    *slot = (int64_t)item->table[page] * size + offset % size;
    for (; count < most && item->table[page + 1] == item->table[page] + 1; page++) count += size;
    return count < most ? count : most;
}

static const float *row_in_place(const fathom_pages *pages, int64_t slot, int column) {
    return (const float *)(const void *)((const uint8_t *)pages->rows + slot * pages->row_bytes) + column;
}

static int plain(const fathom_pages *pages) { return pages->format == FATHOM_PAGES_FLOAT32; }

void fathom_read_tokens(const fathom_attention *item, const fathom_pages *pages, int i, int count, int column,
                        int columns, float *out, int64_t stride) {
    for (int done = 0; done < count;) {
        int64_t slot;
        const int run = neighbours(item, i + done, count - done, &slot);
        fathom_current->read_rows(pages, slot, run, column, columns, out + done * stride, stride);
        done += run;
    }
}

/* Copy the keys and values of ``count`` tokens from index i on into the tiles. */
static void gather(const fathom_attention *item, int i, int count, const room *r, int shared) {
    fathom_read_tokens(item, item->keys, i, count, item->key_column, item->width, r->keys, r->key_stride);
    if (!shared)
        fathom_read_tokens(item, item->values, i, count, item->value_column, item->value_width, r->values,
                           r->value_stride);
}

/* How many keys a block has, at most. */
static int block_keys(const fathom_attention *item) {
    const int fitting = TILE_BYTES / (int)sizeof(float) / item->width / 16 * 16;
    return fitting < 16 ? 16 : fitting < FATHOM_ATTEND_KEYS ? fitting : FATHOM_ATTEND_KEYS;
}

/* The block of ``count`` keys from index i on: in place where they are float32 and, ``run`` of them, neighbours from
 * ``slot`` on; else in the tiles. */
static fathom_keys block_at(const fathom_attention *item, int i, int count, int run, int64_t slot, const room *r) {
    if (run) {
        const fathom_keys keys = {.keys = row_in_place(item->keys, slot, item->key_column),
                                  .values = row_in_place(item->values, slot, item->value_column),
                                  .key_stride = item->keys->row_bytes / (int64_t)sizeof(float),
                                  .value_stride = item->values->row_bytes / (int64_t)sizeof(float),
                                  .count = run};
        return keys;
    }
    const int shared = item->keys == item->values && item->value_column >= item->key_column &&
                       item->value_column + item->value_width <= item->key_column + item->width;
    gather(item, i, count, r, shared);
    const fathom_keys keys = {.keys = r->keys,
                              .values = shared ? r->keys + (item->value_column - item->key_column) : r->values,
                              .key_stride = r->key_stride,
                              .value_stride = shared ? r->key_stride : r->value_stride,
                              .count = count};
    return keys;
}

static int within(int x, int most) { return x < 0 ? 0 : x > most ? most : x; }

/* Which keys of a block from index i on each row sees, where some do not see all. */
static void limit(const unit *u, int i, fathom_keys *keys, int32_t *first, int32_t *last) {
    const fathom_attention *item = u->item;
    const int from = u->row / item->heads, to = (u->row + u->rows - 1) / item->heads;
    if (fathom_first_seen(item, to) <= i && item->position + from + 1 >= i + keys->count) return;
    for (int row = 0; row < u->rows; row++) {
        const int token = (u->row + row) / item->heads;
        first[row] = within(fathom_first_seen(item, token) - i, keys->count);
        last[row] = within(item->position + token + 1 - i, keys->count);
    }
    keys->first = first;
    keys->last = last;
}

/* Pack the queries of an item and clear what is to come of them. */
static fathom_queries queries_of(const unit *u, int index, const room *r, partial into) {
    const fathom_attention *item = u->item + index;
    const float *q[TILE_ROWS];
    const int64_t stride = fathom_padded(item->value_width), at = (int64_t)index * u->rows;
    float *packed = r->packed + index * fathom_packed_floats(u->rows, item->width);
    for (int i = 0; i < u->rows; i++) {
        const int token = (u->row + i) / item->heads, head = (u->row + i) % item->heads;
        q[i] = item->q + token * item->q_token + head * item->q_head;
        into.max[at + i] = -INFINITY;
        into.sum[at + i] = 0.0f;
    }
    memset(into.acc + at * stride, 0, sizeof(float) * (size_t)(u->rows * stride));
    fathom_current->pack_queries(q, u->rows, item->width, item->scale, packed);
    const fathom_queries queries = {.packed = packed, .rows = u->rows, .width = item->width,
                                    .value_width = item->value_width, .acc = into.acc + at * stride,
                                    .acc_stride = stride, .max = into.max + at, .sum = into.sum + at};
    return queries;
}

/* Attend from the rows of a unit to keys [begin, end). */
static void attend_piece(const unit *u, int begin, int end, const room *r, partial into) {
    const fathom_attention *item = u->item;
    const int in_place = plain(item->keys) && plain(item->values), most = block_keys(item);
    fathom_queries queries[TILE_ROWS];
    int32_t first[TILE_ROWS], last[TILE_ROWS];
    for (int j = 0; j < u->items; j++) queries[j] = queries_of(u, j, r, into);
    for (int i = begin; i < end;) {
        const int left = end - i, count = left < most ? left : most;
        int64_t slot, next;
        int run = neighbours(item, i, count, &slot);
        if (!in_place || run < (count < IN_PLACE_KEYS ? count : IN_PLACE_KEYS)) run = 0;
        const int done = run ? run : count;
        for (int j = 0; j < u->items; j++) {
            fathom_keys keys = block_at(item + j, i, count, run, slot, r);
            if (run && j + 1 < u->items)
                keys.next = row_in_place(item->keys, slot, item[j + 1].key_column);
            else if (run && done < left && neighbours(item, i + done, 1, &next))
                keys.next = row_in_place(item->keys, next, item->key_column);
            limit(u, i, &keys, first, last);
            fathom_current->attend(&queries[j], &keys);
        }
        i += done;
    }
}

/* Write an output: the sum of its pieces, each times e^(its max - the largest), over the sum of their sums. */
static void write_output(const partial *pieces, int count, int64_t row, int width, float *out) {
    float top = -INFINITY, sum = 0.0f;
    memset(out, 0, sizeof(float) * (size_t)width);
    for (int j = 0; j < count; j++) top = pieces[j].max[row] > top ? pieces[j].max[row] : top;
    for (int j = 0; j < count; j++)
        if (pieces[j].sum[row] != 0.0f) sum += expf(pieces[j].max[row] - top) * pieces[j].sum[row];
    for (int j = 0; j < count; j++)
        if (pieces[j].sum[row] != 0.0f)
            fathom_current->add_scaled(expf(pieces[j].max[row] - top) / sum, pieces[j].acc + row * fathom_padded(width),
                                       width, out);
}

static void write_outputs(const unit *u, const partial *pieces, int count) {
    for (int j = 0; j < u->items; j++)
        for (int i = 0; i < u->rows; i++) {
            const fathom_attention *item = u->item + j;
            const int token = (u->row + i) / item->heads, head = (u->row + i) % item->heads;
            float *out = item->out + token * item->out_token + head * item->out_head;
            write_output(pieces, count, j * u->rows + i, item->value_width, out);
        }
}

/* This thread's piece of a unit that boundaries cut; merge the pieces if it is the last to be finished. */
static void attend_cut(const plan *p, const unit *u, int thread, const room *r) {
    partial pieces[FATHOM_MOST_THREADS];
    int count = 0, starts = 0;
    for (int t = 0; t < p->threads; t++) {
        if (share(p, t) <= u->at && u->at < share(p, t + 1)) starts = t;
        if (cut(u, share(p, t)) >= cut(u, share(p, t + 1))) continue;
        const room other = room_of(p, t);
        pieces[count++] = share(p, t) > u->at ? other.entering : other.leaving;
    }
    const int begin = cut(u, share(p, thread)), end = cut(u, share(p, thread + 1));
    if (begin >= end) return;
    attend_piece(u, begin, end, r, share(p, thread) > u->at ? r->entering : r->leaving);
    atomic_int *finished = room_of(p, starts).finished;
    if (atomic_fetch_add_explicit(finished, 1, memory_order_acq_rel) + 1 < count) return;
    atomic_store_explicit(finished, 0, memory_order_relaxed);
    write_outputs(u, pieces, count);
}

/* The units of a plan one after another, beginning from a unit of zeros; 0 at the end. */
static int next_unit(const plan *p, unit *u) {
    const fathom_attention *item = u->items ? u->item : p->items, *end = p->items + p->count;
    int items = u->items, row = u->row + u->rows;
    if (items && row >= item->tokens * item->heads) {
        item += items;
        items = row = 0;
    }
    if (item >= end) return 0;
    *u = unit_at(item, items ? items : group_size(item, end), row, u->at + u->cost);
    return 1;
}

void fathom_attend(const fathom_attention *items, int count, int thread, int threads, void *workspace) {
    plan p = {.items = items, .count = count, .threads = threads, .workspace = workspace};
    unit u = {0};
    for (int i = 0; i < count; i++) {
        p.width = items[i].width > p.width ? items[i].width : p.width;
        p.value_width = items[i].value_width > p.value_width ? items[i].value_width : p.value_width;
    }
    while (next_unit(&p, &u)) p.total += u.cost;
    const int64_t from = share(&p, thread), to = share(&p, thread + 1);
    const room r = room_of(&p, thread);
    u = (unit){0};
    while (next_unit(&p, &u) && u.at < to) {
        const int64_t end = u.at + u.cost;
        if (end <= from) continue;
        if (u.begin == u.end && u.at >= from) {
            write_outputs(&u, NULL, 0);
        } else if (u.at < from || end > to) {
            attend_cut(&p, &u, thread, &r);
        } else {
            attend_piece(&u, u.begin, u.end, &r, r.own);
            write_outputs(&u, &r.own, 1);
        }
    }
}

typedef struct {
    const fathom_attention *items;
    int count;
    void *workspace;
} call;

static void attend_on(int thread, int threads, void *argument) {
    const call *given = argument;
    fathom_attend(given->items, given->count, thread, threads, given->workspace);
}

int fathom_attend_all(fathom_pool *pool, const fathom_attention *items, int count, void *workspace) {
    call given = {items, count, workspace};
    return fathom_pool_run(pool, attend_on, &given);
}
