/* One vector of floats of the instruction set that this file is compiled for, and what the kernels do with it, so that
 * their text exists once. Define FATHOM_NO_VECTORS before for plain C. ``v_min`` and ``v_max`` return b where either is
 * a NaN, so that a constant belongs in a. */
#ifndef FATHOM_VECTORS_H
#define FATHOM_VECTORS_H

#include "kernels_common.h"

#define FATHOM_APART static __attribute__((noinline)) /* a loop that needs all registers */
/* Keep the compiler from knowing a pointer or number, so that it makes no others from it, one for each use. */
#define FATHOM_OPAQUE(x) __asm__("" : "+r"(x))

#if defined(FATHOM_NO_VECTORS)
#define LANES 1
typedef float vec;
#define v_set(x) (x)
#define v_load(p) (*(p))
#define v_store(p, v) (*(p) = (v))
#define v_add(a, b) ((a) + (b))
#define v_sub(a, b) ((a) - (b))
#define v_mul(a, b) ((a) * (b))
#define v_div(a, b) ((a) / (b))
#define v_fma(a, b, c) ((a) * (b) + (c))
#define v_max(a, b) ((a) > (b) ? (a) : (b))
#define v_any_nan(v) ((v) != (v))
#define v_sum(v) (v)
#define v_top(v) (v)
#define v_exp(v) expf(v)
FATHOM_INLINE vec v_load_part(const float *p, int n) { return n ? *p : 0.0f; }
FATHOM_INLINE void v_store_part(float *p, vec v, int n) {
    if (n) *p = v;
}
FATHOM_INLINE vec v_spread(const float *p, int m) {
    (void)m;
    return *p;
}
FATHOM_INLINE vec v_fold(vec a, vec b) { return a + b; }
#define v_load_int8(p) ((float)*(p))
#define v_load_bfloat16(p) fathom_wide(*(p))

#elif defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
typedef double two_floats __attribute__((aligned(4), may_alias));
typedef __m512 vec;
#define v_set _mm512_set1_ps
#define v_load _mm512_loadu_ps
#define v_store _mm512_storeu_ps
#define v_add _mm512_add_ps
#define v_sub _mm512_sub_ps
#define v_mul _mm512_mul_ps
#define v_div _mm512_div_ps
#define v_fma _mm512_fmadd_ps
#define v_fnma _mm512_fnmadd_ps
#define v_min _mm512_min_ps
#define v_max _mm512_max_ps
#define v_round(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define v_scale _mm512_scalef_ps
#define v_any_nan(v) (_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0)
#define v_sum _mm512_reduce_add_ps
#define v_top _mm512_reduce_max_ps
FATHOM_INLINE vec v_load_part(const float *p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
FATHOM_INLINE void v_store_part(float *p, vec v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v); }
FATHOM_INLINE vec v_spread(const float *p, int m) {
    if (m == 1) return _mm512_set1_ps(*p);
    if (m == 2) return _mm512_castpd_ps(_mm512_set1_pd(*(const two_floats *)p));
    if (m == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    if (m == 8) return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
    return _mm512_loadu_ps(p);
}
FATHOM_INLINE vec v_fold(vec a, vec b) {
    const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm512_castpd_ps(_mm512_permutexvar_pd(order, _mm512_castps_pd(sums)));
}
FATHOM_INLINE vec v_load_fours(const float *p, int64_t stride) {
    const __m512 low = _mm512_insertf32x4(_mm512_castps128_ps512(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
    return _mm512_insertf32x4(_mm512_insertf32x4(low, _mm_loadu_ps(p + 2 * stride), 2), _mm_loadu_ps(p + 3 * stride), 3);
}
#define v_low_pairs _mm512_unpacklo_ps
#define v_high_pairs _mm512_unpackhi_ps
#define v_low_halves(a, b) _mm512_shuffle_ps(a, b, 0x44)
#define v_high_halves(a, b) _mm512_shuffle_ps(a, b, 0xee)
#define FATHOM_SPLIT_PAIRS
FATHOM_INLINE void v_split_pairs(const uint16_t *p, vec *both) {
    const __m256i codes = _mm256_srai_epi16(_mm256_slli_epi16(_mm256_loadu_si256((const __m256i *)p), 5), 5);
    const __m256i lifted = _mm256_add_epi16(codes, _mm256_set1_epi16(45 * 22 + 22));
    const __m256i first = _mm256_sub_epi16(_mm256_mulhi_epu16(lifted, _mm256_set1_epi16(1457)), _mm256_set1_epi16(22));
    const __m256i second = _mm256_sub_epi16(codes, _mm256_mullo_epi16(first, _mm256_set1_epi16(45)));
    const __m256i low = _mm256_unpacklo_epi16(first, second), high = _mm256_unpackhi_epi16(first, second);
    both[0] = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_permute2x128_si256(low, high, 0x20)));
    both[1] = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_permute2x128_si256(low, high, 0x31)));
}
#define v_load_int8(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
FATHOM_INLINE vec v_load_bfloat16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
typedef double two_floats __attribute__((aligned(4), may_alias));
typedef __m256 vec;
#define v_set _mm256_set1_ps
#define v_load _mm256_loadu_ps
#define v_store _mm256_storeu_ps
#define v_add _mm256_add_ps
#define v_sub _mm256_sub_ps
#define v_mul _mm256_mul_ps
#define v_div _mm256_div_ps
#define v_fma _mm256_fmadd_ps
#define v_fnma _mm256_fnmadd_ps
#define v_min _mm256_min_ps
#define v_max _mm256_max_ps
#define v_round(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define v_any_nan(v) (_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0)
FATHOM_INLINE vec v_scale(vec p, vec n) {
    const __m256i exponent = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(exponent, 1);
    const __m256i rest = _mm256_sub_epi32(exponent, half), bias = _mm256_set1_epi32(127);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
FATHOM_INLINE float v_sum(vec v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
FATHOM_INLINE float v_top(vec v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
FATHOM_INLINE vec v_load_part(const float *p, int n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes));
}
FATHOM_INLINE void v_store_part(float *p, vec v, int n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes), v);
}
FATHOM_INLINE vec v_spread(const float *p, int m) {
    if (m == 1) return _mm256_set1_ps(*p);
    if (m == 2) return _mm256_castpd_ps(_mm256_set1_pd(*(const two_floats *)p));
    if (m == 4) return _mm256_broadcast_ps((const __m128 *)p);
    return _mm256_loadu_ps(p);
}
FATHOM_INLINE vec v_fold(vec a, vec b) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_hadd_ps(a, b)), 0xd8));
}
FATHOM_INLINE vec v_load_fours(const float *p, int64_t stride) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}
#define v_low_pairs _mm256_unpacklo_ps
#define v_high_pairs _mm256_unpackhi_ps
#define v_low_halves(a, b) _mm256_shuffle_ps(a, b, 0x44)
#define v_high_halves(a, b) _mm256_shuffle_ps(a, b, 0xee)
#define FATHOM_SPLIT_PAIRS
FATHOM_INLINE void v_split_pairs(const uint16_t *p, vec *both) {
    const __m128i codes = _mm_srai_epi16(_mm_slli_epi16(_mm_loadu_si128((const __m128i *)p), 5), 5);
    const __m128i lifted = _mm_add_epi16(codes, _mm_set1_epi16(45 * 22 + 22));
    const __m128i first = _mm_sub_epi16(_mm_mulhi_epu16(lifted, _mm_set1_epi16(1457)), _mm_set1_epi16(22));
    const __m128i second = _mm_sub_epi16(codes, _mm_mullo_epi16(first, _mm_set1_epi16(45)));
    both[0] = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_unpacklo_epi16(first, second)));
    both[1] = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_unpackhi_epi16(first, second)));
}
#define v_load_int8(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
FATHOM_INLINE vec v_load_bfloat16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define LANES 4
typedef float32x4_t vec;
#define v_set vdupq_n_f32
#define v_load vld1q_f32
#define v_store vst1q_f32
#define v_add vaddq_f32
#define v_sub vsubq_f32
#define v_mul vmulq_f32
#define v_div vdivq_f32
#define v_fma(a, b, c) vfmaq_f32(c, a, b)
#define v_fnma(a, b, c) vfmsq_f32(c, a, b)
#define v_min vminq_f32
#define v_max vmaxq_f32
#define v_round vrndnq_f32
#define v_sum vaddvq_f32
#define v_top vmaxvq_f32
#define v_any_nan(v) (vminvq_u32(vceqq_f32(v, v)) == 0)
FATHOM_INLINE vec v_scale(vec p, vec n) {
    const int32x4_t exponent = vcvtq_s32_f32(n), half = vshrq_n_s32(exponent, 1), rest = vsubq_s32(exponent, half);
    const int32x4_t bias = vdupq_n_s32(127);
    p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23)));
    return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23)));
}
FATHOM_INLINE vec v_load_part(const float *p, int n) {
    float lanes[4] = {0};
    memcpy(lanes, p, sizeof(float) * (size_t)n);
    return vld1q_f32(lanes);
}
FATHOM_INLINE void v_store_part(float *p, vec v, int n) {
    float lanes[4];
    vst1q_f32(lanes, v);
    memcpy(p, lanes, sizeof(float) * (size_t)n);
}
FATHOM_INLINE vec v_spread(const float *p, int m) {
    if (m == 1) return vld1q_dup_f32(p);
    if (m == 2) return vcombine_f32(vld1_f32(p), vld1_f32(p));
    return vld1q_f32(p);
}
FATHOM_INLINE vec v_fold(vec a, vec b) { return vpaddq_f32(a, b); }
FATHOM_INLINE vec v_load_fours(const float *p, int64_t stride) {
    (void)stride;
    return vld1q_f32(p);
}
#define v_low_pairs vzip1q_f32
#define v_high_pairs vzip2q_f32
FATHOM_INLINE vec v_low_halves(vec a, vec b) { return vcombine_f32(vget_low_f32(a), vget_low_f32(b)); }
FATHOM_INLINE vec v_high_halves(vec a, vec b) { return vcombine_f32(vget_high_f32(a), vget_high_f32(b)); }
FATHOM_INLINE vec v_load_int8(const int8_t *p) {
    const int8_t lanes[8] = {p[0], p[1], p[2], p[3]};
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(lanes)))));
}
FATHOM_INLINE vec v_load_bfloat16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
#else
#error "no vectors for this instruction set: define FATHOM_NO_VECTORS"
#endif
/* v_spread(p, m): p[0..m-1], again and again. v_fold(a, b): the sums of neighbouring lanes of a, then those of b.
 * v_load_fours(p, stride): four floats from p, p + stride and so on; v_low_pairs and the like take one lane or two of a and
 * then of b from each four. v_split_pairs(p, both): both elements of each of LANES pairs of page_rows.h, two vectors. */

#if LANES > 1
/* Four vectors whose fours are rows 0 to 3 of small matrices: turn these, rows for columns. */
FATHOM_INLINE void v_turn_fours(vec v[4]) {
    const vec a = v_low_pairs(v[0], v[1]), b = v_low_pairs(v[2], v[3]);
    const vec c = v_high_pairs(v[0], v[1]), d = v_high_pairs(v[2], v[3]);
    v[0] = v_low_halves(a, b);
    v[1] = v_high_halves(a, b);
    v[2] = v_low_halves(c, d);
    v[3] = v_high_halves(c, d);
}

/* e^x within 2 units in the last place: 2^n e^r with |r| <= ln 2 / 2. Infinities and NaN as in expf. */
FATHOM_INLINE vec v_exp(vec x) {
    x = v_min(v_set(89.0f), v_max(v_set(-104.0f), x));
    const vec n = v_round(v_mul(x, v_set(1.44269504f)));
    const vec r = v_fnma(n, v_set(-2.12194440e-4f), v_fnma(n, v_set(0.693359375f), x));
    vec p = v_set(0.0013814540579915047f); /* the coefficients make the largest relative error 3e-9 */
    p = v_fma(p, r, v_set(0.00836874544620514f));
    p = v_fma(p, r, v_set(0.04166838899254799f));
    p = v_fma(p, r, v_set(0.1666652113199234f));
    p = v_fma(p, r, v_set(0.4999999403953552f));
    p = v_fma(v_mul(r, r), p, r);
    return v_scale(v_add(p, v_set(1.0f)), n);
}
#endif

#endif
