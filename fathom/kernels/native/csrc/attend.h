/* Softmax attention of a few queries to a block of keys, in vectors.
 *
 * Queries are packed in panels of r of them, r a power of two up to LANES. A vector holds m = LANES / r columns of
 * each, lane i m + j column j of query i, and meets the same m columns of a key again and again: a load, no shuffle.
 * The sums are folded once a block into scores[key][query], so that maxima, exponentials and sums of the softmax are
 * vertical too. */
#ifndef FATHOM_ATTEND_H
#define FATHOM_ATTEND_H

#include <float.h>

#include "elementwise.h"
#include "kernels.h"

#define VALUE_VECTORS (LANES == 16 ? 4 : 2) /* of a tile of four queries */
#define SCORES (LANES * (FATHOM_ATTEND_KEYS + 2 * LANES)) /* floats of a panel's scores, and where tiles may spill */

/* Rows of the next panel where ``left`` are left: the next power of two where a quarter of it is idle at most. */
static int panel_rows(int left) {
    int r = LANES;
    while (r > 1 && r / 2 >= left) r /= 2;
    return left >= r || 4 * left >= 3 * r ? r : r / 2;
}

static void attend_pack(const float *const *q, int rows, int width, float scale, float *packed) {
    for (int row = 0; row < rows;) {
        const int r = panel_rows(rows - row), m = LANES / r, steps = (width + m - 1) / m;
        const int held = rows - row < r ? rows - row : r;
        memset(packed, 0, sizeof(float) * (size_t)(steps * LANES));
        for (int k = 0; k < width; k += m) {
            const int columns = width - k < m ? width - k : m;
            for (int i = 0; i < held; i++)
                for (int j = 0; j < columns; j++) packed[k * r + i * m + j] = scale * q[row + i][k + j];
        }
        packed += steps * LANES;
        row += r;
    }
}

/* Write the scores of ``panels`` panels and ``count`` keys; beyond them up to m keys are overwritten. Four keys share a
 * pointer: the addresses of all others are that and multiples of the stride. Meanwhile ``count`` rows from ``ahead`` on
 * are fetched, unless it is NULL. */
FATHOM_INLINE void score_tile(const float *packed, int panels, int m, int count, const float *keys, int64_t stride,
                              int width, const float *ahead, float *scores) {
    const int steps = width / m, rest = width % m, padded = count < m ? m : count;
    const int64_t panel = (int64_t)(steps + (rest > 0)) * LANES;
    int64_t thrice = 3 * stride;
    const float *four[4] = {keys, keys + 4 * stride, keys + 8 * stride, keys + 12 * stride};
    vec sums[2][16];
    FATHOM_OPAQUE(stride);
    FATHOM_OPAQUE(thrice);
    FATHOM_UNROLL
    for (int p = 0; p < panels; p++)
        FATHOM_UNROLL
        for (int i = 0; i < padded; i++) sums[p][i] = v_set(0.0f);
    for (int k = 0; k < steps; k++, packed += LANES) {
        vec q[2];
        FATHOM_UNROLL
        for (int p = 0; p < panels; p++) q[p] = v_load(packed + p * panel);
        if (ahead && k % (16 / m) == 0) {
            FATHOM_UNROLL
            for (int i = 0; i < count; i++) __builtin_prefetch(ahead + i * stride + k * m);
        }
        FATHOM_UNROLL
        for (int i = 0; i < count; i++) {
            const vec key = v_spread(four[i / 4] + (i % 4 == 3 ? thrice : i % 4 * stride), m);
            FATHOM_UNROLL
            for (int p = 0; p < panels; p++) sums[p][i] = v_fma(q[p], key, sums[p][i]);
        }
        FATHOM_UNROLL
        for (int i = 0; i < count; i += 4) {
            four[i / 4] += m;
            FATHOM_OPAQUE(four[i / 4]);
        }
    }
    if (rest) {
        float tail[LANES] = {0};
        FATHOM_UNROLL
        for (int i = 0; i < count; i++) {
            memcpy(tail, keys + i * stride + steps * m, sizeof(float) * (size_t)rest);
            FATHOM_UNROLL
            for (int p = 0; p < panels; p++)
                sums[p][i] = v_fma(v_load(packed + p * panel), v_spread(tail, m), sums[p][i]);
        }
    }
    FATHOM_UNROLL
    for (int p = 0; p < panels; p++) {
        int left = padded;
        FATHOM_UNROLL
        for (int lanes = m; lanes > 1; lanes /= 2, left /= 2)
            FATHOM_UNROLL
            for (int i = 0; i < left / 2; i++) sums[p][i] = v_fold(sums[p][2 * i], sums[p][2 * i + 1]);
        FATHOM_UNROLL
        for (int i = 0; i < left; i++) v_store(scores + p * SCORES + i * LANES, sums[p][i]);
    }
}

/* The scores of all keys of a block: tiles of ``MOST`` keys, else of ``FEW``, else one by one. The last tile may begin
 * before the end of the one before it. */
#define SCORE_TILE(PANELS, M, COUNT)                                                                                   \
    FATHOM_APART void score_##PANELS##_##M##_##COUNT(const float *packed, const float *keys, int64_t stride, int width,\
                                                     const float *ahead, float *scores) {                              \
        score_tile(packed, PANELS, M, COUNT, keys, stride, width, ahead, scores);                                      \
    }
#define SCORE_TILES(COUNT, TILE)                                                                                       \
    if (count >= COUNT)                                                                                                \
        for (;; i = i + COUNT > count - COUNT ? count - COUNT : i + COUNT) {                                           \
            const float *tile = keys->keys + i * stride, *ahead = i + COUNT < count ? tile + COUNT * stride : next;    \
            TILE(packed, tile, stride, width, next ? ahead : next, scores + i * r);                                    \
            if (i + COUNT == count) return;                                                                            \
        }
#define SCORE_KEYS(PANELS, M, MOST, FEW)                                                                               \
    SCORE_TILE(PANELS, M, MOST)                                                                                        \
    SCORE_TILE(PANELS, M, FEW)                                                                                         \
    SCORE_TILE(PANELS, M, 1)                                                                                           \
    static void score_##PANELS##_##M(const float *packed, const fathom_keys *keys, int width, const float *next,       \
                                     float *scores) {                                                                  \
        const int r = LANES / M, count = keys->count;                                                                  \
        const int64_t stride = keys->key_stride;                                                                       \
        int i = 0;                                                                                                     \
        SCORE_TILES(MOST, score_##PANELS##_##M##_##MOST)                                                               \
        SCORE_TILES(FEW, score_##PANELS##_##M##_##FEW)                                                                 \
        SCORE_TILES(1, score_##PANELS##_##M##_1)                                                                       \
    }

#if LANES == 16
SCORE_KEYS(2, 1, 8, 2)
SCORE_KEYS(1, 1, 16, 4)
SCORE_KEYS(1, 2, 16, 4)
SCORE_KEYS(1, 4, 16, 4)
SCORE_KEYS(1, 8, 16, 4)
SCORE_KEYS(1, 16, 16, 4)
#else
SCORE_KEYS(2, 1, 4, 2)
SCORE_KEYS(1, 1, 8, 2)
#if LANES > 1
SCORE_KEYS(1, 2, 8, 2)
SCORE_KEYS(1, 4, 8, 2)
#endif
#if LANES > 4
SCORE_KEYS(1, 8, 8, 2)
#endif
#endif

static void score_panels(const float *packed, int panels, int m, const fathom_keys *keys, int width, const float *next,
                         float *scores) {
    if (panels == 2)
        score_2_1(packed, keys, width, next, scores);
    else if (m == 1)
        score_1_1(packed, keys, width, next, scores);
#if LANES > 1
    else if (m == 2)
        score_1_2(packed, keys, width, next, scores);
    else if (m == 4)
        score_1_4(packed, keys, width, next, scores);
#endif
#if LANES > 4
    else if (m == 8)
        score_1_8(packed, keys, width, next, scores);
#endif
#if LANES > 8
    else
        score_1_16(packed, keys, width, next, scores);
#endif
}

/* Every r-th lane from each on, together: their maximum or their sum in all of them. */
FATHOM_INLINE vec gather_lanes(vec v, int r, int sum) {
    for (int apart = LANES / 2; apart >= r; apart /= 2) {
        float twice[2 * LANES];
        v_store(twice, v);
        v_store(twice + LANES, v);
        const vec other = v_load(twice + apart);
        v = sum ? v_add(v, other) : v_max(v, other);
    }
    return v;
}

/* Numbers of ``rows`` queries in the lanes of a panel of r, again and again. */
FATHOM_INLINE vec repeat_rows(const float *x, int rows, int r) {
    if (r == LANES) return v_load_part(x, rows);
    float lanes[LANES] = {0};
    for (int i = 0; i < rows; i++)
        for (int j = i; j < LANES; j += r) lanes[j] = x[i];
    return v_load(lanes);
}

/* Turn a panel's scores into weights e^(score - max) and bring its queries' sums and accumulators to the new maxima. A
 * score that is a NaN is no maximum, but its weight is one. */
static void soften(const fathom_queries *queries, const fathom_keys *keys, int row, int r, float *scores) {
    const int rows = queries->rows - row < r ? queries->rows - row : r, total = keys->count * r;
    float before[LANES], kept[LANES];
    if (keys->first)
        for (int i = 0; i < rows; i++) {
            for (int key = 0; key < keys->first[row + i]; key++) scores[key * r + i] = -INFINITY;
            for (int key = keys->last[row + i]; key < keys->count; key++) scores[key * r + i] = -INFINITY;
        }
    for (int i = total; i % LANES; i++) scores[i] = -INFINITY;
    const vec old = repeat_rows(queries->max + row, rows, r);
    vec highest = v_set(-INFINITY), sums = v_set(0.0f);
    for (int i = 0; i < total; i += LANES) highest = v_max(v_load(scores + i), highest);
    highest = v_max(gather_lanes(highest, r, 0), old);
    const vec base = v_max(v_set(-FLT_MAX), highest); /* finite, so that e^(-infinity - base) is 0 */
    for (int i = 0; i < total; i += LANES) {
        const vec weights = v_exp(v_sub(v_load(scores + i), base));
        v_store(scores + i, weights);
        sums = v_add(sums, weights);
    }
    const vec keep = v_exp(v_sub(old, base));
    v_store(kept, keep);
    v_store(before, old);
    v_store_part(queries->max + row, highest, rows);
    const vec sum = v_fma(keep, repeat_rows(queries->sum + row, rows, r), gather_lanes(sums, r, 1));
    v_store_part(queries->sum + row, sum, rows);
    for (int i = 0; i < rows; i++) {
        if (kept[i] == 1.0f || before[i] == -INFINITY) continue;
        row_scale(kept[i], queries->value_width, queries->acc + (row + i) * queries->acc_stride);
    }
}

/* Add the weighted values of a block to a tile of the accumulators: ``rows`` queries, ``vectors`` vectors of columns,
 * or the first ``part`` columns of one. */
FATHOM_INLINE void mix_tile(const float *weights, int r, int rows, int vectors, int part, int count,
                            const float *values, int64_t value_stride, float *acc, int64_t stride) {
    vec sums[4][VALUE_VECTORS];
    FATHOM_UNROLL
    for (int i = 0; i < rows; i++)
        FATHOM_UNROLL
        for (int j = 0; j < vectors; j++)
            sums[i][j] = part ? v_load_part(acc + i * stride, part) : v_load(acc + i * stride + j * LANES);
    for (int key = 0; key < count; key++, weights += r, values += value_stride) {
        vec value[VALUE_VECTORS];
        FATHOM_UNROLL
        for (int j = 0; j < vectors; j++) value[j] = part ? v_load_part(values, part) : v_load(values + j * LANES);
        FATHOM_UNROLL
        for (int i = 0; i < rows; i++) {
            const vec weight = v_set(weights[i]);
            FATHOM_UNROLL
            for (int j = 0; j < vectors; j++) sums[i][j] = v_fma(weight, value[j], sums[i][j]);
        }
    }
    FATHOM_UNROLL
    for (int i = 0; i < rows; i++)
        FATHOM_UNROLL
        for (int j = 0; j < vectors; j++)
            if (part)
                v_store_part(acc + i * stride, sums[i][j], part);
            else
                v_store(acc + i * stride + j * LANES, sums[i][j]);
}

#define MIX_TILE(NAME, ROWS, VECTORS)                                                                                  \
    FATHOM_APART void NAME(const float *weights, int r, int count, const float *values, int64_t step, float *acc,      \
                           int64_t stride) {                                                                           \
        mix_tile(weights, r, ROWS, VECTORS, 0, count, values, step, acc, stride);                                      \
    }
MIX_TILE(mix_4_wide, 4, VALUE_VECTORS)
MIX_TILE(mix_2_wide, 2, VALUE_VECTORS)
MIX_TILE(mix_1_wide, 1, VALUE_VECTORS)

/* Add the values [begin, end) of a block to ``rows`` queries, from ``row`` of the panel ``weights`` on. */
FATHOM_INLINE void mix_rows(const fathom_queries *queries, const fathom_keys *keys, int row, int rows, int begin,
                            int end, const float *weights, int r) {
    const int64_t step = keys->value_stride, stride = queries->acc_stride;
    const float *values = keys->values + begin * step;
    float *acc = queries->acc + row * stride;
    int left = queries->value_width;
    weights += begin * r;
    for (; left >= VALUE_VECTORS * LANES; left -= VALUE_VECTORS * LANES) {
        (rows == 4   ? mix_4_wide
         : rows == 2 ? mix_2_wide
                     : mix_1_wide)(weights, r, end - begin, values, step, acc, stride);
        values += VALUE_VECTORS * LANES;
        acc += VALUE_VECTORS * LANES;
    }
    for (; left >= LANES; left -= LANES, values += LANES, acc += LANES)
        mix_tile(weights, r, rows, 1, 0, end - begin, values, step, acc, stride);
    if (left) mix_tile(weights, r, rows, 1, left, end - begin, values, step, acc, stride);
}

static void mix_one(const fathom_queries *queries, const fathom_keys *keys, int row, int begin, int end,
                    const float *weights, int r) {
    if (begin < end) mix_rows(queries, keys, row, 1, begin, end, weights, r);
}

/* Four queries: the keys that all of them see together, the others one query at a time. What a query does not see never
 * meets it, since 0 times a NaN is one. */
static void mix_four(const fathom_queries *queries, const fathom_keys *keys, int row, const float *weights, int r) {
    int begin = 0, end = keys->count;
    for (int i = row; i < row + 4 && keys->first; i++) {
        begin = keys->first[i] > begin ? keys->first[i] : begin;
        end = keys->last[i] < end ? keys->last[i] : end;
    }
    if (begin < end) mix_rows(queries, keys, row, 4, begin, end, weights, r);
    for (int i = 0; i < 4 && keys->first; i++) {
        const int first = keys->first[row + i], last = keys->last[row + i], none = begin >= end;
        mix_one(queries, keys, row + i, first, none ? last : begin, weights + i, r);
        if (!none) mix_one(queries, keys, row + i, end, last, weights + i, r);
    }
}

static void mix(const fathom_queries *queries, const fathom_keys *keys, int row, int r, const float *weights) {
    const int end = row + r < queries->rows ? row + r : queries->rows;
    for (; row + 4 <= end; row += 4, weights += 4) mix_four(queries, keys, row, weights, r);
    if (!keys->first && row + 2 <= end) {
        mix_rows(queries, keys, row, 2, 0, keys->count, weights, r);
        row += 2;
        weights += 2;
    }
    for (; row < end; row++, weights++)
        mix_one(queries, keys, row, keys->first ? keys->first[row] : 0, keys->first ? keys->last[row] : keys->count,
                weights, r);
}

static void attend_block(const fathom_queries *queries, const fathom_keys *keys) {
    float scores[2 * SCORES] __attribute__((aligned(64)));
    const float *packed = queries->packed;
    if (keys->count < 1) return;
    for (int row = 0; row < queries->rows;) {
        const int r = panel_rows(queries->rows - row), m = LANES / r;
        const int panels = m == 1 && panel_rows(queries->rows - row - r) == LANES && queries->rows - row > r ? 2 : 1;
        score_panels(packed, panels, m, keys, queries->width, row ? NULL : keys->next, scores);
        for (int p = 0; p < panels; p++, row += r) {
            soften(queries, keys, row, r, scores + p * SCORES);
            mix(queries, keys, row, r, scores + p * SCORES);
        }
        packed += (int64_t)panels * ((queries->width + m - 1) / m) * LANES;
    }
}

#endif
