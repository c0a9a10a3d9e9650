/* Plain C versions of the products and of numbers' formats. Each kernels_*.c includes them and compiles them with its
 * own flags, so that a loop that the compiler turns into vectors is written once; tables replace what pays by
 * intrinsics. */
#ifndef FATHOM_KERNELS_COMMON_H
#define FATHOM_KERNELS_COMMON_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

#define FATHOM_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define FATHOM_UNROLL _Pragma("unroll")
#else
#define FATHOM_UNROLL _Pragma("GCC unroll 16")
#endif

#define FATHOM_SMALLEST 1e-36f /* a group of smaller numbers rounds to zeros: 127 divided by it is still finite */

static inline float fathom_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    uint32_t bits = sign | (exponent + 112) << 23 | fraction << 13;
    float value;
    if (exponent == 31) bits = sign | 0x7f800000 | fraction << 13;
    if (exponent == 0) {
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float fathom_wide(uint16_t bfloat) {
    const uint32_t bits = (uint32_t)bfloat << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t fathom_narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 64); /* a NaN stays one */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline uint16_t fathom_u16(const uint8_t *bytes) {
    uint16_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* The sums of one row of activations with the 16 rows of a panel, format by format. */
static inline void fathom_panel_f32(const uint8_t *panel, int columns, const float *x, float *sums) {
    const float *w = (const float *)panel;
    for (int k = 0; k < columns; k++)
        for (int r = 0; r < FATHOM_PANEL; r++) sums[r] += w[FATHOM_PANEL * k + r] * x[k];
}

static inline void fathom_panel_bf16(const uint8_t *panel, int columns, const float *x, float *sums) {
    const uint16_t *w = (const uint16_t *)panel;
    for (int k = 0; k < columns; k++)
        for (int r = 0; r < FATHOM_PANEL; r++)
            sums[r] += fathom_wide(w[FATHOM_PANEL * (k & ~1) + 2 * r + (k & 1)]) * x[k];
}

/* The quantum of column k (0 to 31) of row r in a group. */
static inline int fathom_quantum(int format, const uint8_t *group, int k, int r) {
    if (format == FATHOM_Q8) return (int8_t)group[64 * (k / 4) + 4 * r + k % 4];
    const int byte = group[64 * (k % 16 / 4) + 4 * r + k % 4];
    return k < 16 ? byte & 15 : byte >> 4;
}

/* Bytes of a group of a panel, and where its steps begin. */
FATHOM_INLINE int fathom_group_steps(int format) { return format == FATHOM_Q8 ? 512 : 256; }
FATHOM_INLINE int fathom_group_bytes(int format) {
    return fathom_group_steps(format) + (format == FATHOM_Q4M ? 64 : 32);
}

/* Quantized weights: sum of w x over a group is d (sum q x + offset sum x) + m sum x. */
static inline void fathom_panel_quantized(const fathom_matrix *w, const uint8_t *panel, const fathom_rows *x, int n,
                                          float *sums) {
    const int groups = w->columns / FATHOM_GROUP, bytes = fathom_group_bytes(w->format);
    for (int g = 0; g < groups; g++) {
        const uint8_t *group = panel + (int64_t)g * bytes, *steps = group + fathom_group_steps(w->format);
        const float *row = x->q ? NULL : x->x + n * x->stride + FATHOM_GROUP * g;
        const int8_t *q = x->q ? x->q + (int64_t)n * x->columns + FATHOM_GROUP * g : NULL;
        float sum = x->q ? x->sums[(int64_t)n * groups + g] : 0.0f;
        for (int k = 0; k < FATHOM_GROUP && row; k++) sum += row[k];
        for (int r = 0; r < FATHOM_PANEL; r++) {
            float dot = 0.0f;
            int exact = 0;
            for (int k = 0; k < FATHOM_GROUP; k++) {
                const int weight = fathom_quantum(w->format, group, k, r);
                if (row)
                    dot += (float)weight * row[k];
                else
                    exact += weight * q[k];
            }
            if (!row) dot = (float)exact * x->scales[(int64_t)n * groups + g];
            if (w->format == FATHOM_Q4) dot -= 8.0f * sum;
            sums[r] += fathom_half(fathom_u16(steps + 2 * r)) * dot;
            if (w->format == FATHOM_Q4M) sums[r] += fathom_half(fathom_u16(steps + 32 + 2 * r)) * sum;
        }
    }
}

static inline void fathom_plain_product(const fathom_matrix *w, int begin, int end, const fathom_rows *x, float *y,
                                        int64_t y_stride) {
    for (int panel = begin; panel < end; panel++) {
        const uint8_t *data = (const uint8_t *)w->data + panel * w->panel_bytes;
        const int first = FATHOM_PANEL * panel, left = w->rows - first;
        for (int n = 0; n < x->rows; n++) {
            float sums[FATHOM_PANEL] = {0};
            if (w->format == FATHOM_F32)
                fathom_panel_f32(data, w->columns, x->x + n * x->stride, sums);
            else if (w->format == FATHOM_BF16)
                fathom_panel_bf16(data, w->columns, x->x + n * x->stride, sums);
            else
                fathom_panel_quantized(w, data, x, n, sums);
            if (left > 0)
                memcpy(y + n * y_stride + first, sums, sizeof(float) * (left < FATHOM_PANEL ? left : FATHOM_PANEL));
        }
    }
}

static inline void fathom_plain_quantize_row(const float *x, int k, int8_t *q, float *scales, float *sums) {
    for (int g = 0; g < k / FATHOM_GROUP; g++, x += FATHOM_GROUP, q += FATHOM_GROUP) {
        float largest = 0.0f;
        int finite = 1, sum = 0;
        for (int i = 0; i < FATHOM_GROUP; i++) {
            const float size = fabsf(x[i]);
            finite &= size <= FLT_MAX;
            largest = size > largest ? size : largest;
        }
        const float inverse = finite && largest >= FATHOM_SMALLEST ? 127.0f / largest : 0.0f;
        for (int i = 0; i < FATHOM_GROUP; i++) {
            q[i] = finite ? (int8_t)lrintf(x[i] * inverse) : 0;
            sum += q[i];
        }
        scales[g] = !finite ? NAN : inverse > 0.0f ? largest / 127.0f : 0.0f;
        sums[g] = scales[g] * (float)sum;
    }
}

#endif
