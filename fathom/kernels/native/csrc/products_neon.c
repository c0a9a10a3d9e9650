/* Products for NEON with dot products of bytes: a quarter of a panel a vector. */
#include <arm_neon.h>

#include "products.h"

typedef float32x4_t floats;
typedef int32x4_t integers;

#define LANES 4
#define PARTS 4
#define FLOAT_ROWS 6
#define FLOAT_TILES SINGLE_TILES
#define QUANTIZED_ROWS 4
#define PARTS_AT_ONCE PARTS
#define Q8_ZERO_POINT 0
#define EXACT_STARTS 1

INLINE floats load(const float *p) { return vld1q_f32(p); }
INLINE floats load_any(const float *p) { return vld1q_f32(p); }
INLINE void store(float *p, floats v) { vst1q_f32(p, v); }
INLINE floats load_lanes(const float *p, int lanes) {
    float some[LANES] = {0};
    if (lanes >= LANES) return vld1q_f32(p);
    for (int i = 0; i < lanes; i++) some[i] = p[i];
    return vld1q_f32(some);
}
INLINE void store_lanes(float *p, int lanes, floats v) {
    float some[LANES];
    if (lanes >= LANES) {
        vst1q_f32(p, v);
        return;
    }
    vst1q_f32(some, v);
    for (int i = 0; i < lanes; i++) p[i] = some[i];
}
INLINE floats set1(float value) { return vdupq_n_f32(value); }
INLINE floats multiply(floats a, floats b) { return vmulq_f32(a, b); }
INLINE floats fma_(floats a, floats b, floats c) { return vfmaq_f32(c, a, b); }
INLINE floats halves_at(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }

INLINE floats even_bfloats(const uint8_t *p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(vld1q_u8(p)), 16));
}
INLINE floats odd_bfloats(const uint8_t *p) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), vdupq_n_u32(0xffff0000u)));
}

INLINE integers word_at(const int32_t *p) { return vld1q_dup_s32(p); }
INLINE integers no_dot(void) { return vdupq_n_s32(0); }
INLINE integers weights_at(const uint8_t *p, const int j, const int format) {
    const uint8x16_t v = vld1q_u8(p);
    if (format == FATHOM_Q8) return vreinterpretq_s32_u8(v);
    return vreinterpretq_s32_u8(j < 4 ? vandq_u8(v, vdupq_n_u8(15)) : vshrq_n_u8(v, 4));
}
INLINE integers dot_step(integers dot, integers u, integers operand, const int format) {
    (void)format;
    return vdotq_s32(dot, vreinterpretq_s8_s32(u), vreinterpretq_s8_s32(operand));
}
INLINE floats end_dot(integers dot, const int format) {
    (void)format;
    return vcvtq_f32_s32(dot);
}

INLINE floats signed_byte(const uint8_t *p, const int i) {
    const int32x4_t top = vshlq_s32(vreinterpretq_s32_u8(vld1q_u8(p)), vdupq_n_s32(24 - 8 * i));
    return vcvtq_f32_s32(vshrq_n_s32(top, 24));
}
INLINE floats nibble_of(const uint8_t *p, const int shift) {
    const uint32x4_t down = vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), vdupq_n_s32(-shift));
    return vcvtq_f32_u32(vandq_u32(down, vdupq_n_u32(15)));
}

/* Of a group; NaN or infinity where a number is not finite. */
INLINE float largest_size(const floats *v) {
    floats most = vabsq_f32(v[0]); /* vmax keeps a NaN */
    UNROLL for (int i = 1; i < FATHOM_GROUP / LANES; i++) most = vmaxq_f32(most, vabsq_f32(v[i]));
    return vmaxvq_f32(most);
}

INLINE int round_group(const floats *v, floats inverse, int8_t *q) {
    integers sum = vdupq_n_s32(0);
    UNROLL for (int i = 0; i < FATHOM_GROUP / LANES; i += 2) {
        const integers a = vcvtnq_s32_f32(vmulq_f32(v[i], inverse)), b = vcvtnq_s32_f32(vmulq_f32(v[i + 1], inverse));
        sum = vaddq_s32(sum, vaddq_s32(a, b));
        vst1_s8(q + LANES * i, vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b))));
    }
    return vaddvq_s32(sum);
}

#include "products_tiles.h"
PRODUCTS_OF(neon)
