/* Products for AVX2, and with dot products of bytes where the compiler's flags have AVX-VNNI: half a panel a vector. */
#include <immintrin.h>

#include "products.h"

typedef __m256 floats;
typedef __m256i integers;

#define LANES 8
#define PARTS 2
#define FLOAT_ROWS 6
#define FLOAT_TILES SINGLE_TILES
#define PARTS_AT_ONCE PARTS

INLINE __m256i mask_of(int lanes) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE floats load_lanes(const float *p, int lanes) {
    return lanes >= LANES ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, mask_of(lanes));
}
INLINE void store_lanes(float *p, int lanes, floats v) {
    if (lanes >= LANES)
        _mm256_storeu_ps(p, v);
    else if (lanes > 0)
        _mm256_maskstore_ps(p, mask_of(lanes), v);
}
INLINE floats load(const float *p) { return _mm256_load_ps(p); }
INLINE floats load_any(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store(float *p, floats v) { _mm256_store_ps(p, v); }
INLINE floats set1(float value) { return _mm256_set1_ps(value); }
INLINE floats multiply(floats a, floats b) { return _mm256_mul_ps(a, b); }
INLINE floats fma_(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE floats halves_at(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE integers bytes_at(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

INLINE floats even_bfloats(const uint8_t *p) { return _mm256_castsi256_ps(_mm256_slli_epi32(bytes_at(p), 16)); }
INLINE floats odd_bfloats(const uint8_t *p) {
    return _mm256_castsi256_ps(_mm256_and_si256(bytes_at(p), _mm256_set1_epi32((int)0xffff0000u)));
}

INLINE integers word_at(const int32_t *p) { return _mm256_set1_epi32(*p); }
INLINE integers no_dot(void) { return _mm256_setzero_si256(); }
INLINE integers nibbles_of(integers v, const int j) {
    return _mm256_and_si256(j < 4 ? v : _mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}

#ifdef __AVXVNNI__
#define QUANTIZED_ROWS 6
#define Q8_ZERO_POINT -128
#define EXACT_STARTS 1

INLINE integers weights_at(const uint8_t *p, const int j, const int format) {
    return format == FATHOM_Q8 ? _mm256_xor_si256(bytes_at(p), _mm256_set1_epi8(-128)) : nibbles_of(bytes_at(p), j);
}
INLINE integers dot_step(integers dot, integers u, integers operand, const int format) {
    (void)format;
    return _mm256_dpbusd_avx_epi32(dot, u, operand);
}
INLINE floats end_dot(integers dot, const int format) {
    (void)format;
    return _mm256_cvtepi32_ps(dot);
}
#else
#define QUANTIZED_ROWS 4
#define Q8_ZERO_POINT 0
#define EXACT_STARTS 0

/* Two products of bytes are summed in 16 bits: at most 2 x 128 x 127 for 8 bits, whose signs go to the activations, and
 * 2 x 15 x 127 for nibbles, of which eight such sums fit. */
INLINE integers weights_at(const uint8_t *p, const int j, const int format) {
    return format == FATHOM_Q8 ? bytes_at(p) : nibbles_of(bytes_at(p), j);
}
INLINE integers dot_step(integers dot, integers u, integers operand, const int format) {
    if (format != FATHOM_Q8) return _mm256_add_epi16(dot, _mm256_maddubs_epi16(u, operand));
    const integers pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(u), _mm256_sign_epi8(operand, u));
    return _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE floats end_dot(integers dot, const int format) {
    return _mm256_cvtepi32_ps(format == FATHOM_Q8 ? dot : _mm256_madd_epi16(dot, _mm256_set1_epi16(1)));
}
#endif

INLINE floats signed_byte(const uint8_t *p, const int i) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(bytes_at(p), 24 - 8 * i), 24));
}
INLINE floats nibble_of(const uint8_t *p, const int shift) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(bytes_at(p), shift), _mm256_set1_epi32(15)));
}

/* Of a group; NaN or infinity where a number is not finite. */
INLINE float largest_size(const floats *v) {
    const floats sign = _mm256_set1_ps(-0.0f);
    const floats first = _mm256_cmp_ps(v[0], v[1], _CMP_UNORD_Q), second = _mm256_cmp_ps(v[2], v[3], _CMP_UNORD_Q);
    if (_mm256_movemask_ps(_mm256_or_ps(first, second))) return NAN;
    const floats a = _mm256_max_ps(_mm256_andnot_ps(sign, v[0]), _mm256_andnot_ps(sign, v[1]));
    const floats b = _mm256_max_ps(_mm256_andnot_ps(sign, v[2]), _mm256_andnot_ps(sign, v[3]));
    const floats all = _mm256_max_ps(a, b);
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

INLINE int round_group(const floats *v, floats inverse, int8_t *q) {
    integers w[4];
    UNROLL for (int i = 0; i < 4; i++) w[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    const integers bytes = _mm256_packs_epi16(_mm256_packs_epi32(w[0], w[1]), _mm256_packs_epi32(w[2], w[3]));
    _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    const integers all = _mm256_add_epi32(_mm256_add_epi32(w[0], w[1]), _mm256_add_epi32(w[2], w[3]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    sum = _mm_add_epi32(sum, _mm_unpackhi_epi64(sum, sum));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 1)));
}

#include "products_tiles.h"
