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
    READ_CODES = 8192 /* of pairs in a segment, at most */
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

/* Some columns of a segment: the first of a row's scales and codes are so many bytes after the row. */
typedef struct {
    const fathom_segment *segment;
    int scales, codes;
    int column, columns, group, left; /* the group of the first column, and how many columns are left in it */
} segment_part;

/* y = scale times integers of 8 bits. */
FATHOM_INLINE void scale_integers(const int8_t *codes, float scale, int count, float *y) {
    const vec factor = v_set(scale);
    int i = 0;
    for (; i + LANES <= count; i += LANES) v_store(y + i, v_mul(factor, v_load_int8(codes + i)));
    for (; i < count; i++) y[i] = scale * (float)codes[i];
}

/* The elements of a part from their codes, ``codes`` being those of its first column on. */
FATHOM_INLINE void read_bytes(const segment_part *part, const int8_t *codes, const uint8_t *scales, float *y) {
    int g = part->group, count = part->left;
    for (int i = 0; i < part->columns; g++) {
        count = count < part->columns - i ? count : part->columns - i;
        scale_integers(codes + i, load_scale(scales, g), count, y + i);
        i += count;
        count = part->segment->group;
    }
}

static inline uint64_t load_words(const uint8_t *words, int i) {
    uint64_t four;
    memcpy(&four, words + 2 * i, sizeof four);
    return four;
}

/* All codes of a segment of ``blocks`` blocks, a multiple of 4. */
FATHOM_INLINE void unpack_all_pairs(const uint8_t *words, int blocks, uint16_t *codes) {
    const int plain = PAIR_PLANES * blocks, five = 5 * blocks;
    const uint64_t ones = 0x0001000100010001;
    for (int i = 0; i < plain; i += 4) memcpy(codes + i, words + 2 * i, 8);
    for (int j = 0; j < blocks; j += 4) {
        const uint64_t high = load_words(words, 2 * five + j);
        FATHOM_UNROLL
        for (int p = 0; p < 5; p++) {
            const uint64_t low = load_words(words, p * blocks + j) >> 11 & 31 * ones;
            const uint64_t middle = (load_words(words, five + p * blocks + j) >> 11 & 31 * ones) << 5;
            const uint64_t code = low | middle | (high >> (11 + p) & ones) << 10;
            memcpy(codes + plain + p * blocks + j, &code, sizeof code);
        }
    }
}

/* Codes of pairs [begin, end) of a segment of ``blocks`` blocks, 16 to a block, four at a time where four words of a
 * plane are left; the upper bits of a code are another's. */
FATHOM_INLINE void unpack_pairs(const uint8_t *words, int blocks, int begin, int end, uint16_t *codes) {
    const int plain = PAIR_PLANES * blocks, five = 5 * blocks, low_end = end < plain ? end : plain;
    const uint64_t ones = 0x0001000100010001;
    int i = begin;
    if (blocks % 4 == 0 && begin == 0 && end == 16 * blocks) {
        unpack_all_pairs(words, blocks, codes);
        return;
    }
    for (; i + 4 <= low_end; i += 4) memcpy(codes + i - begin, words + 2 * i, 8);
    for (; i < low_end; i++) codes[i - begin] = fathom_u16(words + 2 * i);
    for (int p = (i - plain) / blocks; i < end; p++) {
        const int stop = plain + (p + 1) * blocks < end ? plain + (p + 1) * blocks : end;
        for (; i + 4 <= stop; i += 4) {
            const uint64_t low = load_words(words, i - plain) >> 11 & 31 * ones;
            const uint64_t middle = (load_words(words, five + i - plain) >> 11 & 31 * ones) << 5;
            const uint64_t high = load_words(words, 2 * five + i - plain - p * blocks) >> (11 + p) & ones;
            const uint64_t code = low | middle | high << 10;
            memcpy(codes + i - begin, &code, sizeof code);
        }
        for (; i < stop; i++) {
            const int low = load_word(words, i - plain) >> 11, middle = load_word(words, five + i - plain) >> 11;
            const int high = load_word(words, 2 * five + i - plain - p * blocks) >> (11 + p) & 1;
            codes[i - begin] = (uint16_t)(low | middle << 5 | high << 10);
        }
    }
}

/* Both elements of each pair. */
FATHOM_INLINE void split_pairs(const uint16_t *codes, int pairs, int8_t *elements) {
    for (int i = 0; i < pairs; i++) {
        const int16_t code = (int16_t)((int16_t)(uint16_t)(codes[i] << 5) >> 5);
        const uint16_t lifted = (uint16_t)(code + PAIR_OFFSET); /* 45 (first + 22) + second + 22 */
        const int16_t first = (int16_t)((uint32_t)lifted * 1457 >> 16) - FATHOM_PAIRED_MAX_CODE; /* / 45, down */
        elements[2 * i] = (int8_t)first;
        elements[2 * i + 1] = (int8_t)(code - PAIR_LEVELS * first);
    }
}

/* The elements of a part from the codes of its pairs. */
static void read_pairs(const segment_part *part, const uint16_t *codes, const uint8_t *scales, float *y) {
#ifdef FATHOM_SPLIT_PAIRS
    enum { STEP = 2 * LANES };
    if (part->column % 2 == 0 && (part->left | part->segment->group | part->columns) % STEP == 0) {
        const uint16_t *at = codes;
        int g = part->group, count = part->left;
        for (int i = 0; i < part->columns; g++, count = part->segment->group) {
            const vec scale = v_set(load_scale(scales, g));
            const int end = i + count < part->columns ? i + count : part->columns;
            for (; i < end; i += STEP, at += LANES) {
                vec both[2];
                v_split_pairs(at, both);
                v_store(y + i, v_mul(scale, both[0]));
                v_store(y + i + LANES, v_mul(scale, both[1]));
            }
        }
        return;
    }
#endif
    int8_t elements[2 * READ_CODES];
    const int odd = part->column % 2;
    split_pairs(codes, (odd + part->columns + 1) / 2, elements);
    read_bytes(part, elements + odd, scales, y);
}

/* Read a part of ``count`` rows. Codes of several rows are unpacked before the first is read: loads that are wider than
 * the stores before them would wait. */
static void read_part(const fathom_pages *pages, const segment_part *part, const uint8_t *row, int count, float *out,
                      int64_t stride) {
    const int64_t step = pages->row_bytes;
    if (part->segment->largest == FATHOM_EIGHT_BITS) {
        for (int i = 0; i < count; i++, row += step, out += stride)
            read_bytes(part, (const int8_t *)row + part->codes + part->column, row + part->scales, out);
        return;
    }
    uint16_t codes[READ_CODES];
    const int blocks = (part->segment->width + PAIR_BLOCK - 1) / PAIR_BLOCK;
    const int begin = part->column / 2, end = (part->column + part->columns + 1) / 2, pairs = end - begin;
    for (int rows; count > 0; count -= rows) {
        rows = count < READ_CODES / pairs ? count : READ_CODES / pairs;
        for (int i = 0; i < rows; i++)
            unpack_pairs(row + i * step + part->codes, blocks, begin, end, codes + pairs * i);
        for (int i = 0; i < rows; i++, row += step, out += stride)
            read_pairs(part, codes + pairs * i, row + part->scales, out);
    }
}

static void read_quantized(const fathom_pages *pages, const uint8_t *row, int count, int column, int columns,
                           float *out, int64_t stride) {
    int scales = 0, codes = 0;
    for (int s = 0; s < pages->segments; s++) codes += 2 * (pages->segment[s].width / pages->segment[s].group);
    for (int s = 0; s < pages->segments; s++) {
        const fathom_segment *segment = &pages->segment[s];
        const int left = segment->width - column, own = left < columns ? left : columns;
        if (own > 0) {
            const int group = column / segment->group;
            const int rest = (group + 1) * segment->group - column;
            const segment_part part = {segment, scales, codes, column, own, group, rest};
            read_part(pages, &part, row, count, out, stride);
            out += own;
            columns -= own;
        }
        column = left > 0 ? 0 : -left;
        scales += 2 * (segment->width / segment->group);
        codes += segment_bytes(segment);
    }
}

static void page_read_rows(const fathom_pages *pages, int64_t slot, int count, int column, int columns, float *out,
                           int64_t stride) {
    const uint8_t *row = (const uint8_t *)pages->rows + slot * pages->row_bytes;
    if (pages->format == FATHOM_PAGES_QUANTIZED) {
        read_quantized(pages, row, count, column, columns, out, stride);
        return;
    }
    for (int i = 0; i < count; i++, row += pages->row_bytes, out += stride)
        if (pages->format == FATHOM_PAGES_FLOAT32)
            memcpy(out, (const float *)row + column, sizeof(float) * (size_t)columns);
        else
            row_widen((const uint16_t *)row + column, columns, out);
}

#endif
