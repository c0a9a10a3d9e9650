/* Softmax attention of a few queries to a block of keys, in vectors.
 *
 * Queries are packed in panels of r of them, r a power of two up to LANES. A vector holds m = LANES / r columns of each,
 * lane i m + j column j of query i, and meets the same m columns of a key again and again: a load, no shuffle. The sums
 * are folded once a block into scores[key][query], so that maxima, exponentials and sums of the softmax are vertical too.
 */
#ifndef FATHOM_ATTEND_H
#define FATHOM_ATTEND_H

#include "kernels.h"
#include "vectors.h"

#if LANES == 16
#define KEYS_ALONE 16 /* keys that meet one panel at once, and two panels */
#define KEYS_TWICE 8
#define VALUE_VECTORS 4
#else
#define KEYS_ALONE 8
#define KEYS_TWICE 4
#define VALUE_VECTORS 2
#endif
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
        for (int i = 0; i < r; i++) {
            const float *x = row + i < rows ? q[row + i] : NULL;
            for (int k = 0; k < steps; k++)
                for (int j = 0; j < m; j++) {
                    const int column = k * m + j;
                    packed[k * LANES + i * m + j] = x && column < width ? scale * x[column] : 0.0f;
                }
        }
        packed += steps * LANES;
        row += r;
    }
}

/* Write the scores of ``panels`` panels and ``count`` keys; beyond them up to m keys are overwritten. */
FATHOM_INLINE void score_tile(const float *packed, int panels, int m, int count, const float *keys, int64_t stride,
                              int width, float *scores) {
    const int steps = width / m, rest = width % m, padded = count < m ? m : count;
    const int64_t panel = (int64_t)(steps + (rest > 0)) * LANES;
    vec sums[2][16];
    FATHOM_UNROLL
    for (int p = 0; p < panels; p++)
        FATHOM_UNROLL
        for (int i = 0; i < padded; i++) sums[p][i] = v_set(0.0f);
    for (int k = 0; k < steps; k++) {
        vec q[2];
        FATHOM_UNROLL
        for (int p = 0; p < panels; p++) q[p] = v_load(packed + p * panel + k * LANES);
        FATHOM_UNROLL
        for (int i = 0; i < count; i++) {
            const vec key = v_spread(keys + i * stride + k * m, m);
            FATHOM_UNROLL
            for (int p = 0; p < panels; p++) sums[p][i] = v_fma(q[p], key, sums[p][i]);
        }
    }
    if (rest) {
        float tail[LANES] = {0};
        FATHOM_UNROLL
        for (int i = 0; i < count; i++) {
            memcpy(tail, keys + i * stride + steps * m, sizeof(float) * (size_t)rest);
            FATHOM_UNROLL
            for (int p = 0; p < panels; p++)
                sums[p][i] = v_fma(v_load(packed + p * panel + steps * LANES), v_spread(tail, m), sums[p][i]);
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

/* The scores of all keys of a block. The last tile may begin before the end of the one before it. */
FATHOM_INLINE void score_keys(const float *packed, int panels, int m, const fathom_keys *keys, int width, float *scores) {
    const int most = panels == 2 ? KEYS_TWICE : KEYS_ALONE, few = most / 4, r = LANES / m, count = keys->count;
    int i = 0;
    if (count >= most)
        for (;; i = i + most > count - most ? count - most : i + most) {
            score_tile(packed, panels, m, most, keys->keys + i * keys->key_stride, keys->key_stride, width, scores + i * r);
            if (i + most == count) return;
        }
    if (count >= few)
        for (;; i = i + few > count - few ? count - few : i + few) {
            score_tile(packed, panels, m, few, keys->keys + i * keys->key_stride, keys->key_stride, width, scores + i * r);
            if (i + few == count) return;
        }
    for (; i < count; i++)
        score_tile(packed, panels, m, 1, keys->keys + i * keys->key_stride, keys->key_stride, width, scores + i * r);
}

static void score_panels(const float *packed, int panels, int m, const fathom_keys *keys, int width, float *scores) {
    if (panels == 2)
        score_keys(packed, 2, 1, keys, width, scores);
    else if (m == 1)
        score_keys(packed, 1, 1, keys, width, scores);
#if LANES > 1
    else if (m == 2)
        score_keys(packed, 1, 2, keys, width, scores);
    else if (m == 4)
        score_keys(packed, 1, 4, keys, width, scores);
#endif
#if LANES > 4
    else if (m == 8)
        score_keys(packed, 1, 8, keys, width, scores);
#endif
#if LANES > 8
    else
        score_keys(packed, 1, 16, keys, width, scores);
#endif
}

/* Turn a panel's scores into weights e^(score - max) and bring its queries' sums and accumulators to the new maxima. */
static void soften(const fathom_queries *queries, const fathom_keys *keys, int row, int r, float *scores) {
    const int rows = queries->rows - row < r ? queries->rows - row : r, total = keys->count * r;
    float lanes[LANES], base[LANES], kept[LANES];
    if (keys->first)
        for (int i = 0; i < rows; i++) {
            for (int key = 0; key < keys->first[row + i]; key++) scores[key * r + i] = -INFINITY;
            for (int key = keys->last[row + i]; key < keys->count; key++) scores[key * r + i] = -INFINITY;
        }
    for (int i = total; i % LANES; i++) scores[i] = -INFINITY;
    vec highest = v_load(scores);
    for (int i = LANES; i < total; i += LANES) highest = v_max(highest, v_load(scores + i));
    v_store(lanes, highest);
    int moved = 0;
    for (int i = 0; i < r; i++) {
        const float old = i < rows ? queries->max[row + i] : 0.0f;
        float top = old;
        for (int j = i; j < LANES; j += r) top = lanes[j] > top ? lanes[j] : top;
        if (i < rows) queries->max[row + i] = top;
        moved |= top != old;
        kept[i] = top == old ? 0.0f : old - top;
        for (int j = i; j < LANES; j += r) base[j] = top == -INFINITY ? 0.0f : top; /* weights of nothing but 0 */
    }
    const vec bases = v_load(base);
    vec sums = v_set(0.0f);
    for (int i = 0; i < total; i += LANES) {
        const vec weights = v_exp(v_sub(v_load(scores + i), bases));
        v_store(scores + i, weights);
        sums = v_add(sums, weights);
    }
    v_store(lanes, sums);
    for (int i = r; moved && i < LANES; i++) kept[i] = 0.0f;
    if (moved) v_store(kept, v_exp(v_load(kept)));
    for (int i = 0; i < rows; i++) {
        float sum = moved ? kept[i] * queries->sum[row + i] : queries->sum[row + i];
        for (int j = i; j < LANES; j += r) sum += lanes[j];
        queries->sum[row + i] = sum;
        if (!moved || kept[i] == 1.0f) continue;
        float *acc = queries->acc + (row + i) * queries->acc_stride;
        for (int k = 0; k < queries->value_width; k++) acc[k] *= kept[i];
    }
}

/* Add the weighted values of a block to a tile of the accumulators: ``rows`` queries, ``vectors`` vectors of columns, or
 * the first ``part`` columns of one. */
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

/* Add the values [begin, end) of a block to ``rows`` queries, from ``row`` of the panel ``weights`` on. */
FATHOM_INLINE void mix_rows(const fathom_queries *queries, const fathom_keys *keys, int row, int rows, int begin, int end,
                            const float *weights, int r) {
    const int64_t step = keys->value_stride, stride = queries->acc_stride;
    const float *values = keys->values + begin * step;
    float *acc = queries->acc + row * stride;
    int left = queries->value_width;
    weights += begin * r;
    for (; left >= VALUE_VECTORS * LANES; left -= VALUE_VECTORS * LANES) {
        mix_tile(weights, r, rows, VALUE_VECTORS, 0, end - begin, values, step, acc, stride);
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
        score_panels(packed, panels, m, keys, queries->width, scores);
        for (int p = 0; p < panels; p++, row += r) {
            soften(queries, keys, row, r, scores + p * SCORES);
            mix(queries, keys, row, r, scores + p * SCORES);
        }
        packed += (int64_t)panels * ((queries->width + m - 1) / m) * LANES;
    }
}

#endif
