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

/* 2^x for x <= 0, to 2e-7 of it; 0 below -126.5, NaN for NaN. */
static inline draw_floats draw_exp2(draw_floats x) {
    const float nearest = 12583039.0f; /* 1.5 x 2^23 + 127: in the low bits of a sum the integer and a float's bias */
    x = draw_larger(-127.0f - (draw_floats){0}, x); /* whose power is 0 */
    const draw_floats shifted = x + nearest;
    const draw_floats r = x - (shifted - nearest);
    draw_floats p = r * 0.0013264639f + 0.00967157735f; /* within 1e-7 of 2^r, and 1 at 0 */
    p = p * r + 0.0555073454f;
    p = p * r + 0.240222411f;
    p = p * r + 0.693146977f;
    p = p * r + 1.0f;
    return p * (draw_floats)((draw_bits)shifted << 23);
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
    float lanes[DRAW_LANES];
    memcpy(lanes, best, sizeof lanes);
    for (int width = DRAW_LANES / 2; width; width /= 2)
        for (int l = 0; l < width; l++) lanes[l] = lanes[l] > lanes[l + width] ? lanes[l] : lanes[l + width];
    return *lanes;
}

static inline void draw_maxima(const float *x, int k, float *maxima) {
    for (int begin = 0; begin < k; begin += FATHOM_DRAW_BLOCK)
        maxima[begin / FATHOM_DRAW_BLOCK] = draw_highest(x + begin, draw_count(k, begin));
}

/* Weights below ``best``. */
static inline draw_floats draw_weight(draw_floats x, draw_floats best, float scale) {
    return draw_exp2((x - best) * (scale * 1.44269504f));
}

static inline draw_floats draw_all(float value) { return value - (draw_floats){0}; }

static inline void draw_weights(const fathom_weighted *w, int begin, int count, float *weights) {
    for (int i = 0; i < count; i += DRAW_LANES) {
        const draw_floats x = draw_load(w->x + begin + i, count - i, -INFINITY);
        const draw_floats v = draw_weight(x, draw_all(w->best), w->scale);
        memcpy(weights + i, &v, count - i < DRAW_LANES ? (size_t)(count - i) * 4 : sizeof v);
    }
}

static inline void draw_masses(const float *x, int k, float scale, float *maxima, double *masses, float *copy) {
    for (int begin = 0; begin < k; begin += FATHOM_DRAW_BLOCK, x += FATHOM_DRAW_BLOCK) {
        const int count = draw_count(k, begin);
        const float best = draw_highest(x, count);
        if (copy) memcpy(copy + begin, x, (size_t)count * sizeof *x); /* while it is near */
        const draw_floats base = draw_all(best == -INFINITY ? 0 : best);
        draw_floats sum[4] = {{0}, {0}, {0}, {0}};
        int i = 0;
        for (; i + 4 * DRAW_LANES <= count; i += 4 * DRAW_LANES)
            for (int part = 0; part < 4; part++)
                sum[part] += draw_weight(draw_load(x + i + part * DRAW_LANES, DRAW_LANES, 0), base, scale);
        for (; i < count; i += DRAW_LANES) sum[0] += draw_weight(draw_load(x + i, count - i, -INFINITY), base, scale);
        maxima[begin / FATHOM_DRAW_BLOCK] = best;
        masses[begin / FATHOM_DRAW_BLOCK] = draw_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
}

/* The sum of a block's weights that are kept. */
static inline float draw_kept_mass(const fathom_weighted *w, int begin, int count) {
    draw_floats sum = {0};
    draw_bits lane;
    for (int l = 0; l < DRAW_LANES; l++) lane[l] = (uint32_t)l;
    for (int i = 0; i < count; i += DRAW_LANES) {
        const draw_floats x = draw_load(w->x + begin + i, count - i, -INFINITY);
        const draw_floats v = draw_weight(x, draw_all(w->best), w->scale);
        const draw_bits earlier = (draw_bits)(lane + (uint32_t)(begin + i) < (draw_bits){0} + (uint32_t)w->before);
        sum += (draw_floats)((draw_bits)v & ((draw_bits)(v > w->bound) | ((draw_bits)(v == w->bound) & earlier)));
    }
    return draw_sum(sum);
}

static inline void draw_kept(const fathom_weighted *w, const float *tops, double *masses) {
    for (int block = 0; block * FATHOM_DRAW_BLOCK < w->count; block++) {
        const int begin = block * FATHOM_DRAW_BLOCK, count = draw_count(w->count, begin);
        masses[block] = tops[block] < w->bound ? 0 : draw_kept_mass(w, begin, count);
    }
}

static inline void draw_allow(const int32_t *allowed, int k, float *x) {
    draw_bits lane;
    for (int l = 0; l < DRAW_LANES; l++) lane[l] = (uint32_t)l;
    for (int begin = 0; begin < k; begin += 32) {
        const uint32_t bits = (uint32_t)allowed[begin / 32];
        if (bits == 0xFFFFFFFFu) continue;
        const int end = k - begin < 32 ? k - begin : 32;
        for (int i = 0; i < end; i += DRAW_LANES) {
            const draw_bits mask = (draw_bits){0} - (((draw_bits){0} + (bits >> i) >> lane) & 1u);
            const draw_floats v = draw_where(mask, draw_load(x + begin + i, end - i, 0), -INFINITY - (draw_floats){0});
            memcpy(x + begin + i, &v, end - i < DRAW_LANES ? (size_t)(end - i) * 4 : sizeof v);
        }
    }
}

#define FATHOM_DRAW_KERNELS .draw_maxima = draw_maxima, .draw_weights = draw_weights, .draw_masses = draw_masses, .draw_kept = draw_kept, .draw_allow = draw_allow
#endif
