/* Weights into panels and back. Quantized formats go through blocks as GGUF has them: one row's group of 32 columns,
 * first a float16 step (Q4M: and a float16 minimum), then the quanta. */
#include "kernels_common.h"

/* Rounding is GGUF's, operation by operation: no product may be fused with a sum here. */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#define MOST_BLOCK_BYTES 34

enum { GGML_F32 = 0, GGML_Q4_0 = 2, GGML_Q4_1 = 3, GGML_Q8_0 = 8, GGML_BF16 = 30 };

static int block_head(int format) { return format == FATHOM_Q4M ? 4 : 2; }
static int block_bytes(int format) { return format == FATHOM_Q8 ? 34 : block_head(format) + 16; }

static int64_t panel_bytes(int format, int columns) {
    if (format == FATHOM_F32) return (int64_t)sizeof(float) * FATHOM_PANEL * columns;
    if (format == FATHOM_BF16) return (int64_t)sizeof(uint16_t) * FATHOM_PANEL * (columns + (columns & 1));
    return (int64_t)fathom_group_bytes(format) * (columns / FATHOM_GROUP);
}

int64_t fathom_packed_bytes(int format, int rows, int columns) {
    if (format < FATHOM_F32 || format > FATHOM_Q4M) return fathom_fail("there is no format of weights %d", format);
    if (rows < 1 || columns < 1)
        return fathom_fail("weights of %d rows and %d columns cannot be packed", rows, columns);
    if (format >= FATHOM_Q8 && columns % FATHOM_GROUP)
        return fathom_fail("rows of %d columns are not whole groups of %d", columns, FATHOM_GROUP);
    return panel_bytes(format, columns) * ((rows + FATHOM_PANEL - 1) / FATHOM_PANEL);
}

/* Put one row's block into its group of a panel. */
static void place_block(int format, const uint8_t *block, uint8_t *group, int row) {
    const uint8_t *quanta = block + block_head(format);
    uint8_t *steps = group + fathom_group_steps(format) + 2 * row;
    for (int word = 0; word < (format == FATHOM_Q8 ? 8 : 4); word++)
        memcpy(group + 64 * word + 4 * row, quanta + 4 * word, 4);
    memcpy(steps, block, 2);
    if (format == FATHOM_Q4M) memcpy(steps + 2 * FATHOM_PANEL, block + 2, 2);
}

/* To float16, ties to even. */
static uint16_t narrow_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const uint32_t size = bits & 0x7fffffff;
    if (size >= 0x7f800000) return (uint16_t)(sign | 0x7c00 | (size > 0x7f800000 ? 0x200 : 0));
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (size < 0x38800000) /* below 2^-14: steps of 2^-24 */
        return (uint16_t)(sign | (uint16_t)lrintf(fabsf(value) * 0x1p24f));
    return (uint16_t)(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}

/* Write a step, or fail where float16 cannot hold it. */
static int put_half(float value, uint8_t *out) {
    const uint16_t half = narrow_half(value);
    memcpy(out, &half, sizeof half);
    return (half & 0x7c00) != 0x7c00;
}

static float inverse_of(float step) {
    const float inverse = 1.0f / step;
    return step != 0.0f && fabsf(inverse) <= FLT_MAX ? inverse : 0.0f;
}

static int nibble(float value) { return value < 0.0f ? 0 : value > 15.0f ? 15 : (int)value; }

/* Round a group as GGUF's reference does; 0 where the numbers are not finite or beyond float16. */
static int quantize_q8(const float *x, uint8_t *block) {
    float largest = 0.0f;
    for (int i = 0; i < FATHOM_GROUP; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    const float step = largest / 127.0f, inverse = inverse_of(step);
    for (int i = 0; i < FATHOM_GROUP; i++) block[2 + i] = (uint8_t)(int8_t)roundf(x[i] * inverse);
    return put_half(step, block);
}

static int quantize_q4(const float *x, uint8_t *block) {
    float farthest = x[0];
    for (int i = 1; i < FATHOM_GROUP; i++) farthest = fabsf(x[i]) > fabsf(farthest) ? x[i] : farthest;
    const float step = farthest / -8.0f, inverse = inverse_of(step);
    for (int i = 0; i < FATHOM_GROUP / 2; i++)
        block[2 + i] = (uint8_t)(nibble(x[i] * inverse + 8.5f) | nibble(x[16 + i] * inverse + 8.5f) << 4);
    return put_half(step, block);
}

static int quantize_q4m(const float *x, uint8_t *block) {
    float least = x[0], most = x[0];
    for (int i = 1; i < FATHOM_GROUP; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    const float step = (most - least) / 15.0f, inverse = inverse_of(step);
    for (int i = 0; i < FATHOM_GROUP / 2; i++) {
        const float low = (x[i] - least) * inverse, high = (x[16 + i] - least) * inverse;
        block[4 + i] = (uint8_t)(nibble(low + 0.5f) | nibble(high + 0.5f) << 4);
    }
    return put_half(step, block) && put_half(least, block + 2);
}

static int quantize_group(int format, const float *x, uint8_t *block) {
    for (int i = 0; i < FATHOM_GROUP; i++)
        if (!(fabsf(x[i]) <= FLT_MAX)) return 0;
    if (format == FATHOM_Q8) return quantize_q8(x, block);
    return format == FATHOM_Q4 ? quantize_q4(x, block) : quantize_q4m(x, block);
}

static float weight_at(const void *weights, int bf16, int64_t index) {
    return bf16 ? fathom_wide(((const uint16_t *)weights)[index]) : ((const float *)weights)[index];
}

static void pack_float_row(int format, int columns, const void *weights, int bf16, int64_t first, uint8_t *panel,
                           int row) {
    for (int k = 0; k < columns; k++) {
        const float value = weight_at(weights, bf16, first + k);
        if (format == FATHOM_F32)
            ((float *)panel)[FATHOM_PANEL * k + row] = value;
        else
            ((uint16_t *)panel)[FATHOM_PANEL * (k & ~1) + 2 * row + (k & 1)] =
                bf16 ? ((const uint16_t *)weights)[first + k] : fathom_narrow(value);
    }
}

static int pack_quantized_row(int format, int columns, const void *weights, int bf16, int64_t first, uint8_t *panel,
                              int row) {
    uint8_t block[MOST_BLOCK_BYTES];
    float group[FATHOM_GROUP];
    for (int k = 0; k < columns; k += FATHOM_GROUP, panel += fathom_group_bytes(format)) {
        for (int i = 0; i < FATHOM_GROUP; i++) group[i] = weight_at(weights, bf16, first + k + i);
        if (!quantize_group(format, group, block)) return 0;
        place_block(format, block, panel, row);
    }
    return 1;
}

int fathom_pack(int format, int rows, int columns, const void *weights, int bf16, void *packed) {
    const int64_t bytes = fathom_packed_bytes(format, rows, columns);
    if (bytes < 0) return -1;
    memset(packed, 0, (size_t)bytes);
    for (int r = 0; r < rows; r++) {
        uint8_t *panel = (uint8_t *)packed + r / FATHOM_PANEL * panel_bytes(format, columns);
        const int64_t first = (int64_t)r * columns;
        if (format < FATHOM_Q8)
            pack_float_row(format, columns, weights, bf16, first, panel, r % FATHOM_PANEL);
        else if (!pack_quantized_row(format, columns, weights, bf16, first, panel, r % FATHOM_PANEL))
            return fathom_fail("row %d has numbers that are not finite or too large for a float16 step", r);
    }
    return 0;
}

int fathom_pack_gguf(int ggml_type, int rows, int columns, const void *blocks, void *packed) {
    if (ggml_type == GGML_F32) return fathom_pack(FATHOM_F32, rows, columns, blocks, 0, packed);
    if (ggml_type == GGML_BF16) return fathom_pack(FATHOM_BF16, rows, columns, blocks, 1, packed);
    const int format = ggml_type == GGML_Q8_0   ? FATHOM_Q8
                       : ggml_type == GGML_Q4_0 ? FATHOM_Q4
                       : ggml_type == GGML_Q4_1 ? FATHOM_Q4M
                                                : -1;
    if (format < 0) return fathom_fail("weights of GGML's type %d cannot be packed as they are", ggml_type);
    const int64_t bytes = fathom_packed_bytes(format, rows, columns);
    if (bytes < 0) return -1;
    const int64_t panel = panel_bytes(format, columns);
    if (rows % FATHOM_PANEL) memset((uint8_t *)packed + bytes - panel, 0, (size_t)panel);
    const uint8_t *block = blocks;
    for (int r = 0; r < rows; r++) {
        uint8_t *group = (uint8_t *)packed + r / FATHOM_PANEL * panel;
        for (int k = 0; k < columns; k += FATHOM_GROUP) {
            place_block(format, block, group, r % FATHOM_PANEL);
            block += block_bytes(format);
            group += fathom_group_bytes(format);
        }
    }
    return 0;
}

/* One row's group of a quantized panel as floats, exactly as GGUF dequantizes. */
static void unpack_group(int format, const uint8_t *group, int row, float *out) {
    const uint8_t *steps = group + fathom_group_steps(format) + 2 * row;
    const float step = fathom_half(fathom_u16(steps));
    const float least = format == FATHOM_Q4M ? fathom_half(fathom_u16(steps + 2 * FATHOM_PANEL)) : 0.0f;
    for (int k = 0; k < FATHOM_GROUP; k++) {
        const int quantum = fathom_quantum(format, group, k, row) - (format == FATHOM_Q4 ? 8 : 0);
        out[k] = step * (float)quantum;
        if (format == FATHOM_Q4M) out[k] += least;
    }
}

int fathom_unpack(const fathom_matrix *w, int begin, int end, float *out) {
    if (begin < 0 || begin > end || end > w->rows)
        return fathom_fail("rows %d to %d are not among a matrix's %d", begin, end, w->rows);
    for (int r = begin; r < end; r++, out += w->columns) {
        const uint8_t *panel = (const uint8_t *)w->data + r / FATHOM_PANEL * w->panel_bytes;
        const int row = r % FATHOM_PANEL;
        if (w->format == FATHOM_F32)
            for (int k = 0; k < w->columns; k++) out[k] = ((const float *)panel)[FATHOM_PANEL * k + row];
        else if (w->format == FATHOM_BF16)
            for (int k = 0; k < w->columns; k++)
                out[k] = fathom_wide(((const uint16_t *)panel)[FATHOM_PANEL * (k & ~1) + 2 * row + (k & 1)]);
        else
            for (int k = 0; k < w->columns; k += FATHOM_GROUP, panel += fathom_group_bytes(w->format))
                unpack_group(w->format, panel, row, out + k);
    }
    return 0;
}
