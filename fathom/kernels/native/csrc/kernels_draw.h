/* Passes over one row of logits, for drawing from it; included by each kernels_*.c. GCC's vectors as wide as the
 * processor's, in C. */
#ifndef FATHOM_KERNELS_DRAW_H
#define FATHOM_KERNELS_DRAW_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "draw.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define DRAW_LANES 16
#define draw_larger(a, b) ((draw_floats)_mm512_max_ps((__m512)(a), (__m512)(b)))
#elif defined(__AVX2__)
#include <immintrin.h>
#define DRAW_LANES 8
#define draw_larger(a, b) ((draw_floats)_mm256_max_ps((__m256)(a), (__m256)(b)))
#else
#define DRAW_LANES 4
#define draw_larger(a, b) draw_where((draw_bits)((a) > (b)), a, b)
#endif
/* draw_larger(a, b): lane by lane, b where either is NaN. */

typedef float draw_floats __attribute__((vector_size(4 * DRAW_LANES)));
typedef uint32_t draw_bits __attribute__((vector_size(4 * DRAW_LANES)));

/* The first ``count`` of a vector's lanes, the others filled. */
static inline draw_floats draw_load(const float *x, int count, float fill) {
    draw_floats v;
    if (count >= DRAW_LANES) {
        memcpy(&v, x, sizeof v);
    } else {
        v = fill - (draw_floats){0};
        memcpy(&v, x, (size_t)count * sizeof(float));
    }
    return v;
}

static inline draw_floats draw_where(draw_bits mask, draw_floats yes, draw_floats no) {
    return (draw_floats)((mask & (draw_bits)yes) | (~mask & (draw_bits)no));
}

/* exp(x) for x <= 0, to 2e-7 of it; 0 below -87, NaN for NaN. */
static inline draw_floats draw_exp(draw_floats x) {
    const draw_bits kept = ~(draw_bits)(x < -87.0f);
    const draw_floats shifted = x * 1.44269504f + 12582912.0f; /* 1.5 x 2^23: the nearest integer is in the low bits */
    const draw_floats n = shifted - 12582912.0f;
    const draw_floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* log 2 in two parts */
    draw_floats p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const draw_bits power = ((draw_bits)shifted << 23) + 0x3F800000u;
    return (draw_floats)((draw_bits)(p * (draw_floats)power) & kept);
}

static inline float draw_sum(draw_floats v) {
    float lanes[DRAW_LANES], sum = 0;
    memcpy(lanes, &v, sizeof v);
    for (int width = DRAW_LANES / 2; width; width /= 2)
        for (int l = 0; l < width; l++) lanes[l] += lanes[l + width];
    return sum + lanes[0];
}

static inline int draw_count(int k, int begin) { return k - begin < FATHOM_DRAW_BLOCK ? k - begin : FATHOM_DRAW_BLOCK; }

/* The highest of up to a block of values, NaN left out. */
static inline float draw_highest(const float *x, int count) {
    draw_floats best[4];
    int i = 0;
    for (int part = 0; part < 4; part++) best[part] = -INFINITY - (draw_floats){0};
    for (; i + 4 * DRAW_LANES <= count; i += 4 * DRAW_LANES)
        for (int part = 0; part < 4; part++)
            best[part] = draw_larger(draw_load(x + i + part * DRAW_LANES, DRAW_LANES, 0), best[part]);
    for (; i < count; i += DRAW_LANES) best[0] = draw_larger(draw_load(x + i, count - i, -INFINITY), best[0]);
    best[0] = draw_larger(draw_larger(best[0], best[1]), draw_larger(best[2], best[3]));
    float lanes[DRAW_LANES], most = -INFINITY;
    memcpy(lanes, best, sizeof *best);
    for (int l = 0; l < DRAW_LANES; l++) most = lanes[l] > most ? lanes[l] : most;
    return most;
}

static inline void draw_maxima(const float *x, int k, float *maxima) {
    for (int begin = 0; begin < k; begin += FATHOM_DRAW_BLOCK)
        maxima[begin / FATHOM_DRAW_BLOCK] = draw_highest(x + begin, draw_count(k, begin));
}

static inline double draw_norm(const float *x, int k, float *maxima) {
    float best = -INFINITY;
    double total = 0;
    for (int begin = 0; begin < k; begin += FATHOM_DRAW_BLOCK) {
        const int count = draw_count(k, begin);
        const float most = draw_highest(x + begin, count);
        maxima[begin / FATHOM_DRAW_BLOCK] = most;
        if (most > best) {
            total *= exp((double)best - most);
            best = most;
        }
        const float base = best == -INFINITY ? 0 : best; /* so that NaN is seen, and nothing else, before any value */
        draw_floats sum[2] = {{0}, {0}};
        int i = 0;
        for (; i + 2 * DRAW_LANES <= count; i += 2 * DRAW_LANES) {
            sum[0] += draw_exp(draw_load(x + begin + i, DRAW_LANES, 0) - base);
            sum[1] += draw_exp(draw_load(x + begin + i + DRAW_LANES, DRAW_LANES, 0) - base);
        }
        for (; i < count; i += DRAW_LANES) sum[0] += draw_exp(draw_load(x + begin + i, count - i, -INFINITY) - base);
        total += draw_sum(sum[0] + sum[1]);
    }
    return log(total) + best;
}

static inline void draw_weights(const float *x, int k, float best, float scale, float *weights, double *masses) {
    for (int block = 0; block * FATHOM_DRAW_BLOCK < k; block++) {
        const int begin = block * FATHOM_DRAW_BLOCK, count = draw_count(k, begin);
        draw_floats sum = {0};
        for (int i = 0; i < count; i += DRAW_LANES) {
            const draw_floats v = draw_exp((draw_load(x + begin + i, count - i, -INFINITY) - best) * scale);
            sum += v;
            memcpy(weights + begin + i, &v, count - i < DRAW_LANES ? (size_t)(count - i) * 4 : sizeof v);
        }
        masses[block] = draw_sum(sum);
    }
}

static inline void draw_keep(float *weights, int k, float bound, int before, double *masses) {
    for (int block = 0; block * FATHOM_DRAW_BLOCK < k; block++) {
        if (masses[block] == 0) continue;
        const int begin = block * FATHOM_DRAW_BLOCK, count = draw_count(k, begin);
        draw_floats sum = {0};
        int i = 0;
        if (begin < before && before < begin + count) { /* the one block with both rules */
            float total = 0;
            for (; i < count; i++) {
                float *w = weights + begin + i;
                if (begin + i < before ? *w < bound : *w <= bound) *w = 0;
                total += *w;
            }
            masses[block] = total;
            continue;
        }
        const draw_bits equal = (draw_bits){0} - (uint32_t)(begin < before);
        for (; i < count; i += DRAW_LANES) {
            draw_floats v = draw_load(weights + begin + i, count - i, 0);
            v = (draw_floats)((draw_bits)v & ((draw_bits)(v > bound) | ((draw_bits)(v == bound) & equal)));
            sum += v;
            memcpy(weights + begin + i, &v, count - i < DRAW_LANES ? (size_t)(count - i) * 4 : sizeof v);
        }
        masses[block] = draw_sum(sum);
    }
}

#define FATHOM_DRAW_KERNELS .draw_maxima = draw_maxima, .draw_norm = draw_norm, .draw_weights = draw_weights, .draw_keep = draw_keep
#endif
