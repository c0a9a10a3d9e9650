/* Reading and writing rows of cache pages in every format of pages.h. */
#ifndef FATHOM_PAGE_ROWS_H
#define FATHOM_PAGE_ROWS_H

#include "elementwise.h"
#include "kernels_common.h"
#include "pages.h"

enum {
    PAIR_LEVELS = 2 * FATHOM_PAIRED_MAX_CODE + 1,
    PAIR_OFFSET = PAIR_LEVELS * FATHOM_PAIRED_MAX_CODE + FATHOM_PAIRED_MAX_CODE,
    PAIR_PLANES = 11, /* of 16-bit words, a code in the low bits of each; five more planes lie in the bits above */
    PAIR_BLOCK = 32,  /* elements, in 22 bytes */
    PAIR_BLOCK_BYTES = 2 * PAIR_PLANES,
    READ_ELEMENTS = 512 /* of pairs that are decoded at once */
};
#define LEAST_MAGNITUDE 1e-30f /* a group of zeros still needs a scale */

static int segment_bytes(const fathom_segment *segment) {
    if (segment->largest == FATHOM_EIGHT_BITS) return segment->width;
    return (segment->width + PAIR_BLOCK - 1) / PAIR_BLOCK * PAIR_BLOCK_BYTES;
}

static inline int load_word(const uint8_t *words, int i) { return fathom_u16(words + 2 * i); }
static inline float load_scale(const uint8_t *scales, int i) { return fathom_wide(fathom_u16(scales + 2 * i)); }

/* x to the nearest integer, to even halfway, where |x| < 2^22; 0 for a NaN. */
static inline int nearest(float x) {
    const float shifted = x + 12582912.0f; /* 1.5 x 2^23: the integer is in the low bits */
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return x == x ? bits - 0x4b400000 : 0;
}

/* Write the scale of a group: its largest magnitude over the largest code, rounded up to a bfloat16. */
static void write_scale(const float *x, int count, int largest, uint8_t *at) {
    float top = LEAST_MAGNITUDE;
    int nan = 0;
    for (int i = 0; i < count; i++) {
        const float size = fabsf(x[i]);
        top = size > top ? size : top;
        nan |= size != size;
    }
    const float scale = nan ? NAN : top / (float)largest;
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    const uint16_t rounded = (uint16_t)((bits + 0xffff) >> 16);
    memcpy(at, &rounded, sizeof rounded);
}

/* The low 11 bits of the code of pair i: elements 2 i and 2 i + 1. */
static int pair_code(const float *x, const fathom_segment *segment, const uint8_t *scales, int i) {
    const int a = 2 * i, b = a + 1, width = segment->width;
    const int first = a < width ? nearest(x[a] / load_scale(scales, a / segment->group)) : 0;
    const int second = b < width ? nearest(x[b] / load_scale(scales, b / segment->group)) : 0;
    return (PAIR_LEVELS * first + second) & 2047;
}

static void write_pairs(const float *x, const fathom_segment *segment, const uint8_t *scales, uint8_t *bytes) {
    const int words_of_plane = segment_bytes(segment) / PAIR_BLOCK_BYTES;
    for (int j = 0; j < words_of_plane; j++) {
        int words[PAIR_PLANES];
        for (int p = 0; p < PAIR_PLANES; p++) words[p] = pair_code(x, segment, scales, p * words_of_plane + j);
        for (int p = 0; p < 5; p++) {
            const int code = pair_code(x, segment, scales, (PAIR_PLANES + p) * words_of_plane + j);
            words[p] |= code << 11;
            words[5 + p] |= code >> 5 << 11;
            words[10] |= code >> 10 << (11 + p);
        }
        for (int p = 0; p < PAIR_PLANES; p++) {
            const uint16_t word = (uint16_t)words[p];
            memcpy(bytes + 2 * (p * words_of_plane + j), &word, sizeof word);
        }
    }
}

static void write_quantized(const fathom_pages *pages, const float *x, uint8_t *row) {
    int groups = 0;
    for (int s = 0; s < pages->segments; s++) groups += pages->segment[s].width / pages->segment[s].group;
    uint8_t *scales = row, *codes = row + 2 * groups;
    row[pages->row_bytes - 1] = 0; /* what fills up an odd row, unless a code follows */
    for (int s = 0; s < pages->segments; s++) {
        const fathom_segment *segment = &pages->segment[s];
        const int own = segment->width / segment->group;
        for (int g = 0; g < own; g++)
            write_scale(x + g * segment->group, segment->group, segment->largest, scales + 2 * g);
        if (segment->largest != FATHOM_EIGHT_BITS)
            write_pairs(x, segment, scales, codes);
        else
            for (int g = 0, i = 0; g < own; g++) {
                const float scale = load_scale(scales, g);
                for (const int end = i + segment->group; i < end; i++) codes[i] = (uint8_t)nearest(x[i] / scale);
            }
        x += segment->width;
        scales += 2 * own;
        codes += segment_bytes(segment);
    }
}

static void page_write_row(const fathom_pages *pages, int64_t slot, const float *x) {
    uint8_t *row = (uint8_t *)pages->rows + slot * pages->row_bytes;
    if (pages->format == FATHOM_PAGES_FLOAT32)
        memcpy(row, x, sizeof(float) * (size_t)pages->width);
    else if (pages->format == FATHOM_PAGES_BFLOAT16)
        row_narrow(x, pages->width, (uint16_t *)row);
    else
        write_quantized(pages, x, row);
}

/* y = scale times integers of 8 bits. */
FATHOM_INLINE void scale_integers(const int8_t *codes, float scale, int count, float *y) {
    const vec factor = v_set(scale);
    int i = 0;
    for (; i + LANES <= count; i += LANES) v_store(y + i, v_mul(factor, v_load_int8(codes + i)));
    for (; i < count; i++) y[i] = scale * (float)codes[i];
}

/* Columns [column, column + columns) from codes, ``codes`` being that of ``column``. */
static void read_bytes(const int8_t *codes, int group, const uint8_t *scales, int column, int columns, float *y) {
    for (int i = 0; i < columns;) {
        const int g = (column + i) / group, end = (g + 1) * group - column, count = (end < columns ? end : columns) - i;
        scale_integers(codes + i, load_scale(scales, g), count, y + i);
        i += count;
    }
}

/* The codes of pairs [begin, end), as their bytes lie; the upper bits of a word are another code's. */
static void unpack_pairs(const uint8_t *bytes, int words_of_plane, int begin, int end, uint16_t *codes) {
    const int plain = PAIR_PLANES * words_of_plane, low = end < plain ? end : plain;
    int i = begin;
    if (i < low) {
        memcpy(codes, bytes + 2 * i, 2 * (size_t)(low - i));
        i = low;
    }
    for (; i < end; i++) {
        const int p = (i - plain) / words_of_plane, j = (i - plain) % words_of_plane;
        const int below = load_word(bytes, p * words_of_plane + j) >> 11;
        const int middle = load_word(bytes, (5 + p) * words_of_plane + j) >> 11;
        const int top = load_word(bytes, 10 * words_of_plane + j) >> (11 + p) & 1;
        codes[i - begin] = (uint16_t)(below | middle << 5 | top << 10);
    }
}

/* Both elements of each pair. */
static void split_pairs(const uint16_t *codes, int pairs, int8_t *elements) {
    for (int i = 0; i < pairs; i++) {
        const int16_t code = (int16_t)((int16_t)(uint16_t)(codes[i] << 5) >> 5);
        const uint16_t lifted = (uint16_t)(code + PAIR_OFFSET);                 /* 45 (first + 22) + second + 22 */
        const int16_t first = (int16_t)((uint32_t)lifted * 1457 >> 16) - FATHOM_PAIRED_MAX_CODE; /* by 45, rounded down */
        elements[2 * i] = (int8_t)first;
        elements[2 * i + 1] = (int8_t)(code - PAIR_LEVELS * first);
    }
}

static void read_pairs(const uint8_t *bytes, const fathom_segment *segment, const uint8_t *scales, int column,
                       int columns, float *y) {
    const int words_of_plane = segment_bytes(segment) / PAIR_BLOCK_BYTES;
    uint16_t codes[READ_ELEMENTS / 2];
    int8_t elements[READ_ELEMENTS];
    for (int done = 0; done < columns;) {
        const int begin = (column + done) / 2, odd = (column + done) % 2;
        const int left = columns - done, count = left < READ_ELEMENTS - 1 ? left : READ_ELEMENTS - 1 - odd;
        const int pairs = (odd + count + 1) / 2;
        unpack_pairs(bytes, words_of_plane, begin, begin + pairs, codes);
        split_pairs(codes, pairs, elements);
        read_bytes(elements + odd, segment->group, scales, column + done, count, y + done);
        done += count;
    }
}

static void read_quantized(const fathom_pages *pages, const uint8_t *row, int column, int columns, float *y) {
    int groups = 0;
    for (int s = 0; s < pages->segments; s++) groups += pages->segment[s].width / pages->segment[s].group;
    const uint8_t *scales = row, *codes = row + 2 * groups;
    for (int s = 0; s < pages->segments && columns > 0; s++) {
        const fathom_segment *segment = &pages->segment[s];
        const int left = segment->width - column, count = left < columns ? left : columns;
        if (count > 0) {
            if (segment->largest == FATHOM_EIGHT_BITS)
                read_bytes((const int8_t *)codes + column, segment->group, scales, column, count, y);
            else
                read_pairs(codes, segment, scales, column, count, y);
            y += count;
            columns -= count;
        }
        column = left > 0 ? 0 : -left;
        scales += 2 * (segment->width / segment->group);
        codes += segment_bytes(segment);
    }
}

static void page_read_rows(const fathom_pages *pages, int64_t slot, int count, int column, int columns, float *out,
                           int64_t stride) {
    const uint8_t *row = (const uint8_t *)pages->rows + slot * pages->row_bytes;
    for (int i = 0; i < count; i++, row += pages->row_bytes, out += stride)
        if (pages->format == FATHOM_PAGES_FLOAT32)
            memcpy(out, (const float *)row + column, sizeof(float) * (size_t)columns);
        else if (pages->format == FATHOM_PAGES_BFLOAT16)
            row_widen((const uint16_t *)row + column, columns, out);
        else
            read_quantized(pages, row, column, columns, out);
}

#endif
