/* Fathom's native CPU library: products with packed weights, and whole steps of the engine. C11, no dependencies.
 *
 * Everything here is called from one thread at a time per pool (``fathom_pool``). Functions return 0, or -1 with a
 * sentence in ``fathom_error()``. Row-major matrices; N rows of activations, K columns, R rows of weights.
 *
 * Packed weights lie in panels of 16 rows, filled up with rows of zeros, so that vector lanes are rows and an operand of
 * the activations is one broadcast. A panel is the same for every instruction set:
 *
 *   F32    for each column k: 16 floats.
 *   BF16   for each pair of columns: 16 rows x 2 bfloat16; an odd last column is filled up with zeros.
 *   Q8     for each group of 32 columns: for j in 0..7 16 rows x 4 int8, columns 4 j to 4 j + 3; then 16 float16 steps d:
 *          w = d q. GGUF's Q8_0, whose values it holds exactly.
 *   Q4     for each group of 32 columns: for j in 0..3 16 rows x 4 bytes, low nibbles columns 4 j to 4 j + 3, high
 *          nibbles columns 16 + 4 j to 16 + 4 j + 3; then 16 float16 steps d: w = d (q - 8). GGUF's Q4_0.
 *   Q4M    as Q4, then 16 float16 minima m: w = d q + m. GGUF's Q4_1.
 */
#ifndef FATHOM_NATIVE_H
#define FATHOM_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#define FATHOM_PANEL 16
#define FATHOM_GROUP 32

typedef enum { FATHOM_F32, FATHOM_BF16, FATHOM_Q8, FATHOM_Q4, FATHOM_Q4M } fathom_format;

/* R x K weights. ``data`` is aligned to 64 bytes; ``panel_bytes`` lie from one panel to the next. */
typedef struct {
    const void *data;
    int64_t panel_bytes;
    int32_t format, rows, columns;
} fathom_matrix;

/* N rows of activations, a row every ``stride`` floats. With ``q`` (N x K int8) they are quantized too: x = scale q for
 * each group of 32 columns, ``scales`` and ``sums`` being N x K / 32 and a sum scale times the sum of its q. */
typedef struct {
    const float *x;
    int64_t stride;
    const int8_t *q;
    const float *scales, *sums;
    int32_t rows, columns;
} fathom_rows;

/* What this processor has, best last; FATHOM_ISA in the environment chooses a lower one. */
typedef enum { FATHOM_SCALAR, FATHOM_AVX2, FATHOM_AVXVNNI, FATHOM_AVX512, FATHOM_NEON, FATHOM_ISAS } fathom_isa;

const char *fathom_error(void);         /* of the last call that failed on this thread */
int fathom_fail(const char *format, ...); /* for the library itself: set that sentence, return -1 */
const char *fathom_sources(void);       /* a hash of the sources that were compiled */
int fathom_best_isa(void);              /* of this processor */
int fathom_has_isa(int isa);            /* whether this build and this processor have it */
const char *fathom_isa_name(int isa);
int fathom_use_isa(int isa);            /* refused where the processor has it not; for tests and FATHOM_ISA */
int fathom_current_isa(void);

/* What the processor has besides its instruction set's kernels need: for functions with a target of their own. */
#define FATHOM_HAS_BF16 (1u << 16)      /* AVX512-BF16; bfloat16 products of ARM */
#define FATHOM_HAS_I8MM (1u << 17)
unsigned fathom_features(void);

/* Threads that spin within a call and sleep between calls; the caller is one of them. A pool made before a fork starts
 * new threads in the child at its first call. */
typedef struct fathom_pool fathom_pool;
fathom_pool *fathom_pool_new(int threads);
void fathom_pool_free(fathom_pool *pool);
int fathom_pool_threads(const fathom_pool *pool);

/* Bytes of a packed matrix, and its panel's. */
int64_t fathom_packed_bytes(int format, int rows, int columns);
/* Pack R x K floats, or bfloat16 where ``bf16``; quantized formats round to nearest as GGUF's reference does. */
int fathom_pack(int format, int rows, int columns, const void *weights, int bf16, void *packed);
/* Pack rows of GGUF blocks (type Q8_0 = 8, Q4_0 = 2, Q4_1 = 3 of GGML) as they are. */
int fathom_pack_gguf(int ggml_type, int rows, int columns, const void *blocks, void *packed);
/* Write rows [begin, end) as floats. */
int fathom_unpack(const fathom_matrix *w, int begin, int end, float *out);
/* y = x w^T: N x R floats, a row every ``y_stride``. ``quantize`` rounds activations to 8 bits for quantized weights. */
int fathom_product(fathom_pool *pool, const fathom_matrix *w, const float *x, int64_t x_stride, int rows, int quantize,
                   float *y, int64_t y_stride);
#endif
