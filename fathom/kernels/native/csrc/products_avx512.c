/* Products for AVX-512 with VNNI: a panel is one vector wide. */
#include <immintrin.h>

#include "products.h"

typedef __m512 floats;
typedef __m512i integers;

#define LANES 16
#define PARTS 1
#define FLOAT_ROWS 12
#define FLOAT_TILES PAIRED_TILES
#define MANY_BY_THREE
#define QUANTIZED_ROWS 12
#define PARTS_AT_ONCE 1
#define Q8_ZERO_POINT -128
#define EXACT_STARTS 1

INLINE __mmask16 mask_of(int lanes) { return lanes >= 16 ? 0xffff : (__mmask16)((1u << lanes) - 1); }
INLINE floats load_lanes(const float *p, int lanes) { return _mm512_maskz_loadu_ps(mask_of(lanes), p); }
INLINE void store_lanes(float *p, int lanes, floats v) { _mm512_mask_storeu_ps(p, mask_of(lanes), v); }
INLINE floats load(const float *p) { return _mm512_load_ps(p); }
INLINE void store(float *p, floats v) { _mm512_store_ps(p, v); }
INLINE floats set1(float value) { return _mm512_set1_ps(value); }
INLINE floats multiply(floats a, floats b) { return _mm512_mul_ps(a, b); }
INLINE floats fma_(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE floats halves_at(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

INLINE floats even_bfloats(const uint8_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
INLINE floats odd_bfloats(const uint8_t *p) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32((int)0xffff0000u)));
}

INLINE integers word_at(const int32_t *p) { return _mm512_set1_epi32(*p); }
INLINE integers weights_at(const uint8_t *p, const int j, const int format) {
    const integers v = _mm512_loadu_si512(p);
    if (format == FATHOM_Q8) return _mm512_xor_si512(v, _mm512_set1_epi8(-128));
    return _mm512_and_si512(j < 4 ? v : _mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}
INLINE integers no_dot(void) { return _mm512_setzero_si512(); }
INLINE integers dot_step(integers dot, integers u, integers operand, const int format) {
    (void)format;
    return _mm512_dpbusd_epi32(dot, u, operand);
}
INLINE floats end_dot(integers dot, const int format) {
    (void)format;
    return _mm512_cvtepi32_ps(dot);
}

INLINE floats signed_byte(const uint8_t *p, const int i) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(_mm512_loadu_si512(p), 24 - 8 * i), 24));
}
INLINE floats nibble_of(const uint8_t *p, const int shift) {
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(_mm512_loadu_si512(p), shift), _mm512_set1_epi32(15)));
}

INLINE floats load_any(const float *p) { return _mm512_loadu_ps(p); }
/* Of a group; NaN or infinity where a number is not finite. */
INLINE float largest_size(const floats *v) {
    const floats a = _mm512_abs_ps(v[0]), b = _mm512_abs_ps(v[1]);
    if (_mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q)) return NAN;
    return _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}
INLINE int round_group(const floats *v, floats inverse, int8_t *q) {
    const integers a = _mm512_cvtps_epi32(_mm512_mul_ps(v[0], inverse));
    const integers b = _mm512_cvtps_epi32(_mm512_mul_ps(v[1], inverse));
    _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(q + 16), _mm512_cvtepi32_epi8(b));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}

#include "products_tiles.h"
PRODUCTS_OF(avx512)
