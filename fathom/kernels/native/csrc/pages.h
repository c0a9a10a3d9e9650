/* Rows of cache pages, as fathom/model/cache lays them out: a row is what one layer keeps of one token. */
#ifndef FATHOM_PAGES_H
#define FATHOM_PAGES_H

#include "fathom_native.h"

/* FATHOM_PAGES_QUANTIZED: first the bfloat16 scales of all groups, then each segment's codes, then a byte of zero where
 * the row would be odd (fathom/plan/cache_rows.py). */
typedef enum { FATHOM_PAGES_FLOAT32, FATHOM_PAGES_BFLOAT16, FATHOM_PAGES_QUANTIZED } fathom_page_format;

#define FATHOM_EIGHT_BITS 127     /* largest code of an element of one byte */
#define FATHOM_PAIRED_MAX_CODE 22 /* largest code where two elements share 11 bits */

/* ``width`` neighbouring elements with codes from -largest to largest, ``group`` elements to a scale. */
typedef struct {
    int32_t width, largest, group;
} fathom_segment;

/* Slot s lies ``row_bytes`` s bytes after ``rows``. Rows are aligned to their elements: 4 bytes, else 2. */
typedef struct {
    void *rows;
    int64_t row_bytes;
    int32_t format, width; /* width in elements */
    int32_t segments;      /* of quantized rows: 1 or 2, of ``width`` elements together */
    fathom_segment segment[2];
} fathom_pages;

/* Write a row of ``width`` floats to each slot; the row of slot i begins ``stride`` i floats after x. */
void fathom_write_rows(const fathom_pages *pages, const int64_t *slots, int count, const float *x, int64_t stride);
/* Read columns [column, column + columns) of ``count`` rows from slot ``slot`` on: a row every ``stride`` floats. */
void fathom_read_rows(const fathom_pages *pages, int64_t slot, int count, int column, int columns, float *out,
                      int64_t stride);
#endif
