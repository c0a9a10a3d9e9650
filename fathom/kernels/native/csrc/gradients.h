/* Gradients of norms and activations on a row, in vectors. */
#ifndef FATHOM_GRADIENTS_H
#define FATHOM_GRADIENTS_H

#include "elementwise.h"

typedef struct {
    vec hidden, grad_gate, grad_up, dot;
} silu_gradient;

/* d silu(x) = sigmoid + silu (1 - sigmoid). */
FATHOM_INLINE silu_gradient silu_multiply_slope(vec gate, vec up, vec slope, vec scale) {
    const vec one = v_set(1.0f), below = v_add(one, v_exp(v_sub(v_set(0.0f), gate)));
    const vec sigmoid = v_div(one, below), silu = v_div(gate, below), product = v_mul(silu, up);
    const vec scaled = v_mul(slope, scale), derivative = v_fma(silu, v_sub(one, sigmoid), sigmoid);
    return (silu_gradient){v_mul(product, scale), v_mul(v_mul(scaled, up), derivative), v_mul(scaled, silu),
                           v_mul(slope, product)};
}

static float row_silu_multiply_gradient(const float *gate, const float *up, const float *slope, float scale, int k,
                                        float *y, float *grad_gate, float *grad_up) {
    const vec factor = v_set(scale);
    vec dots = v_set(0.0f);
    int i = 0;
    for (; i + LANES <= k; i += LANES) {
        const silu_gradient found = silu_multiply_slope(v_load(gate + i), v_load(up + i), v_load(slope + i), factor);
        v_store(y + i, found.hidden);
        v_store(grad_gate + i, found.grad_gate);
        v_store(grad_up + i, found.grad_up);
        dots = v_add(dots, found.dot);
    }
    if (i < k) {
        const int n = k - i; /* what is no number of the row counts as zeros */
        const silu_gradient found =
            silu_multiply_slope(v_load_part(gate + i, n), v_load_part(up + i, n), v_load_part(slope + i, n), factor);
        v_store_part(y + i, found.hidden, n);
        v_store_part(grad_gate + i, found.grad_gate, n);
        v_store_part(grad_up + i, found.grad_up, n);
        dots = v_add(dots, found.dot);
    }
    return v_sum(dots);
}

static void row_rms_norm_gradient(const float *y, const float *weight, float inverse, const float *slope, int k,
                                  float *grad_x, float *grad_weight) {
    const vec scale = v_set(inverse);
    vec sums[2] = {v_set(0.0f), v_set(0.0f)};
    int i = 0;
    for (int odd = 0; i + LANES <= k; i += LANES, odd ^= 1) {
        const vec part = v_load(slope + i), result = v_load(y + i);
        v_store(grad_weight + i, v_fma(part, v_div(result, v_load(weight + i)), v_load(grad_weight + i)));
        sums[odd] = v_fma(part, result, sums[odd]);
    }
    if (i < k) {
        const int n = k - i;
        const vec part = v_load_part(slope + i, n), result = v_load_part(y + i, n);
        const vec product = v_mul(part, v_div(result, v_load_part(weight + i, n)));
        v_store_part(grad_weight + i, v_add(v_load_part(grad_weight + i, n), product), n);
        sums[0] = v_fma(part, result, sums[0]);
    }
    /* normed = y / weight; grad_x = (slope weight - normed mean(slope y)) / rms */
    const vec back = v_set(-v_sum(v_add(sums[0], sums[1])) / (float)k);
    for (i = 0; i + LANES <= k; i += LANES) {
        const vec w = v_load(weight + i), normed = v_div(v_load(y + i), w);
        v_store(grad_x + i, v_mul(v_fma(normed, back, v_mul(v_load(slope + i), w)), scale));
    }
    if (i == k) return;
    const int n = k - i;
    const vec w = v_load_part(weight + i, n), normed = v_div(v_load_part(y + i, n), w);
    v_store_part(grad_x + i, v_mul(v_fma(normed, back, v_mul(v_load_part(slope + i, n), w)), scale), n);
}

#endif
