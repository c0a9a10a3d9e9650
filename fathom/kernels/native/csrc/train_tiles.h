/* Kernels of attention in training: products of small matrices that lie in a cache, and what softmax adds to their rows.
 * The second operand of a product is written in strips first, two vectors wide (the last one may have one), row after
 * row; a tile is up to TILE_ROWS rows by one strip, whose sums stay in registers. */
#ifndef FATHOM_TRAIN_TILES_H
#define FATHOM_TRAIN_TILES_H

#include "kernels.h"
#include "vectors.h"

#define STRIP (2 * LANES)
#if LANES == 16 || LANES == 4
#define TILE_ROWS 12
#define FEW_ROWS 4
#else
#define TILE_ROWS 6
#define FEW_ROWS 2
#endif

/* Where a row of a strip lies, of so many rows and columns. */
FATHOM_INLINE float *strip_at(float *to, int rows, int columns, int strip, int row) {
    const int left = columns - strip * STRIP, width = left < STRIP ? left : STRIP;
    return to + (int64_t)strip * STRIP * rows + (int64_t)row * width;
}

static int strips_of_rows(const float *x, int64_t stride, int count, int width, float *to, int rows, int first) {
    const int columns = (int)fathom_padded(width);
    vec odd = v_set(0.0f); /* a number that is not finite makes it NaN */
    for (int i = 0; i < count; i++, x += stride)
        for (int strip = 0; strip * STRIP < columns; strip++) {
            float *at = strip_at(to, rows, columns, strip, first + i);
            const int end = columns - strip * STRIP < STRIP ? columns : (strip + 1) * STRIP;
            for (int k = strip * STRIP; k < end; k += LANES, at += LANES) {
                const int left = width - k;
                const vec v = left >= LANES ? v_load(x + k) : left > 0 ? v_load_part(x + k, left) : v_set(0.0f);
                odd = v_fma(v, v_set(0.0f), odd);
                v_store(at, v);
            }
        }
    return !v_any_nan(odd);
}

/* LANES rows as LANES columns of one strip, whose rows are ``step`` apart. */
FATHOM_INLINE void turn_rows(const float *x, int64_t stride, int width, float *to, int step) {
    int k = 0;
#if LANES > 1
    for (; k + 4 <= width; k += 4) {
        vec v[4];
        FATHOM_UNROLL
        for (int i = 0; i < 4; i++) v[i] = v_load_fours(x + i * stride + k, 4 * stride);
        v_turn_fours(v);
        FATHOM_UNROLL
        for (int i = 0; i < 4; i++) v_store(to + (int64_t)(k + i) * step, v[i]);
    }
#endif
    for (; k < width; k++)
        for (int i = 0; i < LANES; i++) to[(int64_t)k * step + i] = x[i * stride + k];
}

static void strips_of_columns(const float *x, int64_t stride, int count, int width, float *to, int columns, int first) {
    for (int i = 0; i < fathom_padded(count); i += LANES) {
        const int strip = (first + i) / STRIP, step = columns - strip * STRIP < STRIP ? LANES : STRIP;
        float *at = strip_at(to, width, columns, strip, 0) + (first + i) % STRIP;
        if (i + LANES <= count) {
            turn_rows(x + i * stride, stride, width, at, step);
            continue;
        }
        for (int k = 0; k < width; k++)
            for (int j = 0; j < LANES; j++) at[(int64_t)k * step + j] = i + j < count ? x[(i + j) * stride + k] : 0.0f;
    }
}

/* Columns [begin, end) of the sums of ``rows`` rows from ``first`` on and a strip of ``vectors`` vectors. Every third row
 * has a pointer; those of ``turned`` operands lie side by side. */
FATHOM_INLINE void small_tile(const fathom_small_product *p, int first, int strip, int begin, int end, const int rows,
                              const int vectors, const int turned) {
    int64_t stride = p->a_stride;
    const float *b = strip_at((float *)p->b, p->b_rows, p->columns, strip, begin);
    float *c = p->c + first * p->c_stride + strip * STRIP;
    const float *a[4];
    vec sums[TILE_ROWS][2];
    FATHOM_OPAQUE(stride);
    FATHOM_UNROLL
    for (int i = 0; i < 4; i++) a[i] = turned ? p->a + begin * stride + first : p->a + (first + 3 * i) * stride + begin;
    FATHOM_UNROLL
    for (int i = 0; i < rows; i++)
        FATHOM_UNROLL
        for (int j = 0; j < vectors; j++) sums[i][j] = p->add ? v_load(c + i * p->c_stride + j * LANES) : v_set(0.0f);
    for (int k = begin; k < end; k++, b += vectors * LANES) {
        vec v[2];
        FATHOM_UNROLL
        for (int j = 0; j < vectors; j++) v[j] = v_load(b + j * LANES);
        FATHOM_UNROLL
        for (int i = 0; i < rows; i++) {
            const vec operand = v_set(turned ? a[0][i] : a[i / 3][i % 3 * stride]);
            FATHOM_UNROLL
            for (int j = 0; j < vectors; j++) sums[i][j] = v_fma(v[j], operand, sums[i][j]);
        }
        FATHOM_UNROLL
        for (int i = 0; i < rows; i += turned ? rows : 3) {
            a[i / 3] += turned ? stride : 1;
            FATHOM_OPAQUE(a[i / 3]);
        }
    }
    FATHOM_UNROLL
    for (int i = 0; i < rows; i++)
        FATHOM_UNROLL
        for (int j = 0; j < vectors; j++) v_store(c + i * p->c_stride + j * LANES, sums[i][j]);
}

typedef void (*small_function)(const fathom_small_product *p, int first, int strip, int begin, int end);

#define SMALL_TILE(NAME, ROWS, VECTORS, TURNED)                                                            \
    FATHOM_APART void NAME(const fathom_small_product *p, int first, int strip, int begin, int end) {      \
        small_tile(p, first, strip, begin, end, ROWS, VECTORS, TURNED);                                    \
    }
#define SMALL_TILES(NAME, ROWS)       \
    SMALL_TILE(NAME##_1, ROWS, 1, 0)  \
    SMALL_TILE(NAME##_2, ROWS, 2, 0)  \
    SMALL_TILE(NAME##_t1, ROWS, 1, 1) \
    SMALL_TILE(NAME##_t2, ROWS, 2, 1)
SMALL_TILES(small_most, TILE_ROWS)
SMALL_TILES(small_few, FEW_ROWS)
SMALL_TILES(small_one, 1)

static void small_product(const fathom_small_product *p) {
    static const small_function tiles[3][2][2] = {{{small_most_1, small_most_2}, {small_most_t1, small_most_t2}},
                                                  {{small_few_1, small_few_2}, {small_few_t1, small_few_t2}},
                                                  {{small_one_1, small_one_2}, {small_one_t1, small_one_t2}}};
    for (int strip = 0; strip * STRIP < p->columns; strip++) {
        const int wide = p->columns - strip * STRIP >= STRIP;
        for (int row = 0, rows; row < p->rows; row += rows) {
            const int left = p->rows - row, kind = p->single || left < FEW_ROWS ? 2 : left < TILE_ROWS;
            rows = kind == 0 ? TILE_ROWS : kind == 1 ? FEW_ROWS : 1;
            const int last = p->diagonal + row + rows - 1;
            int begin = 0, end = p->depth;
            if (p->causal == FATHOM_CAUSAL_COLUMNS && strip * STRIP > last) continue;
            if (p->causal == FATHOM_CAUSAL_SUMS) end = last + 1 < end ? last + 1 : end;
            if (p->causal == FATHOM_CAUSAL_TURNED) begin = row > p->diagonal ? row - p->diagonal : 0;
            if (begin < end || !p->add) tiles[kind][p->causal == FATHOM_CAUSAL_TURNED][wide](p, row, strip, begin, end);
        }
    }
}

static float row_dot(const float *x, const float *y, int k) {
    vec sums = v_set(0.0f);
    int i = 0;
    for (; i + LANES <= k; i += LANES) sums = v_fma(v_load(x + i), v_load(y + i), sums);
    if (i < k) sums = v_fma(v_load_part(x + i, k - i), v_load_part(y + i, k - i), sums);
    return v_sum(sums);
}

static void row_blend(float keep, const float *x, float scale, int k, float *y) {
    const vec kept = v_set(keep), factor = v_set(scale);
    int i = 0;
    for (; i + LANES <= k; i += LANES) v_store(y + i, v_mul(v_fma(kept, v_load(y + i), v_load(x + i)), factor));
    if (i < k) {
        const vec sum = v_fma(kept, v_load_part(y + i, k - i), v_load_part(x + i, k - i));
        v_store_part(y + i, v_mul(sum, factor), k - i);
    }
}

static void row_slopes(float *scores, float *slopes, int k, float scale, float lse, float delta) {
    const vec factor = v_set(scale), low = v_set(-lse), mean = v_set(delta);
    int i = 0;
    for (; i + LANES <= k; i += LANES) {
        const vec weight = v_exp(v_fma(v_load(scores + i), factor, low));
        v_store(scores + i, weight);
        v_store(slopes + i, v_mul(v_mul(weight, factor), v_sub(v_load(slopes + i), mean)));
    }
    if (i < k) {
        const vec weight = v_exp(v_fma(v_load_part(scores + i, k - i), factor, low));
        v_store_part(scores + i, weight, k - i);
        v_store_part(slopes + i, v_mul(v_mul(weight, factor), v_sub(v_load_part(slopes + i, k - i), mean)), k - i);
    }
}

#undef STRIP
#undef TILE_ROWS
#undef FEW_ROWS
#endif
