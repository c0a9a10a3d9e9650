/* Attention of many new tokens of one sequence, as products of tiles of queries with blocks of keys. */
#ifndef FATHOM_ATTEND_TILES_H
#define FATHOM_ATTEND_TILES_H

#include "attention.h"

/* New tokens of one sequence and all its heads. ``item`` has those of the first head of keys and values; those of head h
 * lie h * width and h * value_width columns further in the pages, and h * item.heads query heads further.
 *
 * Latent attention in its expanded form has ``key_up`` (latent x nope) and ``value_up`` (value x latent) of each of
 * ``kv_heads`` heads. The pages hold latents and the rotary part of the keys then, from which the keys and values of a
 * block are made, once for all queries. */
typedef struct {
    fathom_attention item;
    int32_t kv_heads;
    const fathom_matrix *key_up, *value_up; /* NULL: keys and values are read from the pages */
} fathom_prompt;

/* Bytes for fathom_attend_tiles by ``threads`` threads, to be aligned to 64 bytes. */
int64_t fathom_tiles_bytes(const fathom_prompt *prompt, int threads);

/* One thread's share; each of ``threads`` threads of the pool calls it with the same arguments, after what it reads has
 * been written by all. Outputs are complete when it returns. A sum is made in the same order by any
 * number of threads. A token that sees nothing gets zeros. */
void fathom_attend_tiles(const fathom_prompt *prompt, fathom_pool *pool, int thread, int threads, void *workspace);

/* The same on all threads of a pool. */
int fathom_attend_tiles_all(fathom_pool *pool, const fathom_prompt *prompt, void *workspace);
#endif
