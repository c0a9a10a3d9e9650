/* Attention of the new tokens of a step to the pages of their sequences. */
#ifndef FATHOM_ATTENTION_H
#define FATHOM_ATTENTION_H

#include "pages.h"

/* New tokens of one sequence and the query heads that share one head of keys and values: GQA has one of these for each
 * key-value head of a sequence; absorbed MLA one for the sequence, with all its heads, the values being the first
 * ``value_width`` columns of the keys.
 *
 * Token t of the new ones has index ``position`` + t, and sees indices [begin, its own], of these the last ``window``
 * where that is not 0. Index i is in slot table[(i - first) / page_size] * page_size + (i - first) % page_size; a table
 * of NULL stands for 0, 1, 2 and so on. The new tokens' own rows have been written before. Items of one sequence that
 * differ in columns and queries only are best neighbours: its pages are then read once for all of them. */
typedef struct {
    const fathom_pages *keys, *values; /* the same for latents */
    const int32_t *table;
    int32_t page_size, first;
    int32_t begin;                     /* slots left empty at the front, which nothing sees; usually 0 */
    int32_t position, tokens, heads, window;
    int32_t key_column, width, value_column, value_width;
    float scale;                       /* of the scores */
    const float *q;                    /* head h of token t begins at q + t * q_token + h * q_head */
    int64_t q_token, q_head;
    float *out;                        /* value_width floats each, likewise */
    int64_t out_token, out_head;
} fathom_attention;

/* The first index that a token sees. */
static inline int fathom_first_seen(const fathom_attention *item, int token) {
    const int earliest = item->window ? item->position + token + 1 - item->window : 0;
    return earliest > item->begin ? earliest : item->begin;
}

/* Read columns [column, column + columns) of the ``count`` tokens from index i on: a row every ``stride`` floats. */
void fathom_read_tokens(const fathom_attention *item, const fathom_pages *pages, int i, int count, int column,
                        int columns, float *out, int64_t stride);

/* Bytes for fathom_attend by ``threads`` threads of keys and values up to these widths. To be aligned to 64 bytes and
 * filled with zeros once; calls may follow one another, a barrier between them. */
int64_t fathom_attend_bytes(int threads, int width, int value_width);

/* One thread's share of all items; each of ``threads`` threads calls it with the same arguments. The work is cut by
 * rows and keys, a long sequence too, and outputs are complete when all threads have returned. A token that sees
 * nothing gets zeros. */
void fathom_attend(const fathom_attention *items, int count, int thread, int threads, void *workspace);

/* The same on all threads of a pool. */
int fathom_attend_all(fathom_pool *pool, const fathom_attention *items, int count, void *workspace);
#endif
