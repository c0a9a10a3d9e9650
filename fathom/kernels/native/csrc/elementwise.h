/* Norms, activations and other operations on a row, in vectors. */
#ifndef FATHOM_ELEMENTWISE_H
#define FATHOM_ELEMENTWISE_H

#include "vectors.h"

/* 1 / rms(x). */
FATHOM_INLINE float row_inverse_rms(const float *x, int k, float eps) {
    vec sums[4] = {v_set(0.0f), v_set(0.0f), v_set(0.0f), v_set(0.0f)};
    int i = 0;
    for (; i + 4 * LANES <= k; i += 4 * LANES)
        FATHOM_UNROLL
        for (int j = 0; j < 4; j++) {
            const vec part = v_load(x + i + j * LANES);
            sums[j] = v_fma(part, part, sums[j]);
        }
    for (; i < k; i += LANES) {
        const vec part = k - i < LANES ? v_load_part(x + i, k - i) : v_load(x + i);
        sums[0] = v_fma(part, part, sums[0]);
    }
    const float squares = v_sum(v_add(v_add(sums[0], sums[1]), v_add(sums[2], sums[3])));
    return 1.0f / sqrtf(squares / (float)k + eps);
}

/* y = x / rms(x) * weight; without a weight where it is NULL. */
static float row_rms_norm(const float *x, const float *weight, int k, float eps, float *y) {
    const float inverse = row_inverse_rms(x, k, eps);
    const vec scale = v_set(inverse);
    int i = 0;
    for (; i + LANES <= k; i += LANES) {
        const vec normed = v_mul(v_load(x + i), scale);
        v_store(y + i, weight ? v_mul(normed, v_load(weight + i)) : normed);
    }
    if (i < k) {
        const vec normed = v_mul(v_load_part(x + i, k - i), scale);
        v_store_part(y + i, weight ? v_mul(normed, v_load_part(weight + i, k - i)) : normed, k - i);
    }
    return inverse;
}

FATHOM_INLINE vec v_silu(vec x) { return v_div(x, v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), x)))); }

static void row_silu_multiply(const float *gate, const float *up, float scale, int k, float *y) {
    const vec factor = v_set(scale);
    int i = 0;
    for (; i + LANES <= k; i += LANES)
        v_store(y + i, v_mul(v_mul(v_silu(v_load(gate + i)), v_load(up + i)), factor));
    if (i == k) return;
    const vec activation = v_mul(v_silu(v_load_part(gate + i, k - i)), v_load_part(up + i, k - i));
    v_store_part(y + i, v_mul(activation, factor), k - i);
}

static void row_add_scaled(float scale, const float *x, int k, float *y) {
    const vec factor = v_set(scale);
    int i = 0;
    for (; i + LANES <= k; i += LANES) v_store(y + i, v_fma(factor, v_load(x + i), v_load(y + i)));
    if (i < k) v_store_part(y + i, v_fma(factor, v_load_part(x + i, k - i), v_load_part(y + i, k - i)), k - i);
}

static void row_scale(float scale, int k, float *x) {
    const vec factor = v_set(scale);
    int i = 0;
    for (; i + LANES <= k; i += LANES) v_store(x + i, v_mul(factor, v_load(x + i)));
    for (; i < k; i++) x[i] *= scale;
}

static void row_rotate(float *x, const float *cosine, const float *sine, int pairs, int half) {
    const int step = half ? 1 : 2, apart = half ? pairs : 1;
    int i = 0;
    for (; half && i + LANES <= pairs; i += LANES) {
        const vec a = v_load(x + i), b = v_load(x + pairs + i), c = v_load(cosine + i), s = v_load(sine + i);
        v_store(x + i, v_sub(v_mul(a, c), v_mul(b, s)));
        v_store(x + pairs + i, v_fma(b, c, v_mul(a, s)));
    }
    for (; i < pairs; i++) {
        float *a = x + step * i, *b = a + apart;
        const float first = *a, second = *b;
        *a = first * cosine[i] - second * sine[i];
        *b = second * cosine[i] + first * sine[i];
    }
}

/* A NaN is no maximum, but its weight is one. */
static float row_soften(float *x, int k, float scale, float *max, float *sum) {
    const vec factor = v_set(scale);
    const float old = *max;
    vec highest = v_set(-INFINITY), second = highest, sums = v_set(0.0f);
    int i = 0;
    for (; i + 2 * LANES <= k; i += 2 * LANES) {
        highest = v_max(v_load(x + i), highest);
        second = v_max(v_load(x + i + LANES), second);
    }
    float top = v_top(v_max(second, highest));
    for (; i < k; i++) top = x[i] > top ? x[i] : top;
    top = top * scale > old ? top * scale : old;
    const float base = top > -FLT_MAX ? top : -FLT_MAX; /* finite, so that e^(-infinity - base) is 0 */
    const vec low = v_set(-base);
    for (i = 0; i + LANES <= k; i += LANES) {
        const vec weight = v_exp(v_fma(v_load(x + i), factor, low));
        sums = v_add(sums, weight);
        v_store(x + i, weight);
    }
    if (i < k) {
        const vec weight = v_exp(v_fma(v_load_part(x + i, k - i), factor, low));
        float lanes[LANES];
        v_store_part(x + i, weight, k - i);
        v_store(lanes, v_set(0.0f));
        v_store_part(lanes, weight, k - i);
        sums = v_add(sums, v_load(lanes));
    }
    const float keep = expf(old - base);
    *max = top;
    *sum = keep * *sum + v_sum(sums);
    return keep;
}

static void row_softmax(float *x, int k) {
    vec highest = v_set(-INFINITY);
    int i = 0;
    for (; i + LANES <= k; i += LANES) highest = v_max(highest, v_load(x + i));
    float top = v_top(highest);
    for (; i < k; i++) top = x[i] > top ? x[i] : top;
    const vec base = v_set(top); /* a NaN may be lost here, but not below */
    vec sums = v_set(0.0f);
    for (i = 0; i + LANES <= k; i += LANES) {
        const vec power = v_exp(v_sub(v_load(x + i), base));
        sums = v_add(sums, power);
        v_store(x + i, power);
    }
    float sum = v_sum(sums);
    for (; i < k; i++) sum += x[i] = expf(x[i] - top);
    row_scale(1.0f / sum, k, x);
}

/* The first of the largest, or the first NaN. Numbers are compared in runs; the best run is searched at the end. */
static int row_argmax(const float *x, int k) {
    enum { RUN = 8 * LANES };
    float best = -INFINITY;
    int begin = 0, end = k < RUN ? k : RUN;
    for (int i = 0; i < k; i += RUN) {
        float top = -INFINITY;
        int nan = 0;
        if (i + RUN <= k) {
            vec highest = v_set(-INFINITY);
            FATHOM_UNROLL
            for (int j = 0; j < 8; j++) {
                const vec part = v_load(x + i + j * LANES);
                highest = v_max(highest, part);
                nan |= v_any_nan(part);
            }
            top = v_top(highest);
        }
        if (nan || i + RUN > k)
            for (int j = i; j < k && j < i + RUN; j++) {
                if (x[j] != x[j]) return j;
                top = x[j] > top ? x[j] : top;
            }
        if (top > best) best = top, begin = i, end = i + RUN < k ? i + RUN : k;
    }
    for (int i = begin; i < end; i++)
        if (x[i] == best) return i;
    return 0;
}

static void row_widen(const uint16_t *x, int k, float *y) {
    int i = 0;
    for (; i + LANES <= k; i += LANES) v_store(y + i, v_load_bfloat16(x + i));
    for (; i < k; i++) y[i] = fathom_wide(x[i]);
}

static void row_narrow(const float *x, int k, uint16_t *y) {
    for (int i = 0; i < k; i++) y[i] = fathom_narrow(x[i]);
}

#endif
