/* What the products of all instruction sets share: the block of a product that one tile computes, and the loops over
 * blocks. A tile is a few rows of activations by one to four panels; its sums stay in registers. A sum runs over
 * the columns in one order whatever the number of rows, so a row's result does not depend on the others.
 *
 * Where one tile holds all rows the weights are read once, panel after panel. More rows go block by block: the
 * activations of a block of columns stay in the second cache, a panel's part of it in the first, and sums wait in y. */
#ifndef FATHOM_PRODUCTS_H
#define FATHOM_PRODUCTS_H

#include "kernels_common.h"

#define INLINE FATHOM_INLINE
#define UNROLL FATHOM_UNROLL

enum {
    FATHOM_MOST_ROWS = 12,      /* of a tile */
    FATHOM_BLOCK_ROWS = 256,    /* of activations */
    FATHOM_BLOCK_COLUMNS = 256, /* of weights that are written as floats first */
    FATHOM_BLOCK_BYTES = 240 << 10, /* of activations */
    FATHOM_MOST_COLUMNS = 1024, /* of a block that several tiles read */
    FATHOM_BYTES_AHEAD = 2048,
    FATHOM_BLOCK_SCALES = 4096, /* groups times rows whose scales are laid out at once */
};

/* What a group of a row of integers is multiplied by, and what weights' zero point or minimum multiplies: the scaled
 * sum of the group, or the sum itself where it is added to sums of integers. */
typedef struct {
    float scale;
    union {
        float sum;
        int32_t start;
    };
} fathom_scale;

typedef struct {
    const uint8_t *w;       /* the first panel's part of the block; the next lies panel_bytes further */
    int64_t panel_bytes;
    int64_t ahead;          /* bytes from what a tile reads to what it asks memory for; 0: nothing */
    const uint8_t *x;       /* the first row's operands: floats, or integers of 8 bits */
    int64_t x_bytes;        /* from one row to the next */
    const fathom_scale *scales; /* of integers: for each group and each row of the tile */
    int columns;
    float *y;
    int64_t y_stride;
    int lanes;              /* rows of weights in these panels that exist */
    int add;                /* sums of earlier columns wait in y */
} fathom_block;

typedef void (*fathom_tile)(const fathom_block *block);

/* Tiles by rows, from 1 to ``most``: of one panel, of ``width`` panels (NULL: none) and, for one row, of four. */
typedef struct {
    const fathom_tile *one, *wide;
    fathom_tile four;
    int most, width;
} fathom_tiles;

/* How a product runs: its tiles, the bytes of ``unit`` columns of a panel and of a column of activations. */
typedef struct {
    const fathom_tiles *tiles;
    int unit, unit_bytes, column_bytes;
    void (*expand)(const uint8_t *w, int columns, float *panel); /* first writes a panel's part as floats */
    int zero_point, start;  /* of integers: what their sums are multiplied by; whether fathom_scale holds ``start`` */
} fathom_plan;

INLINE int fathom_least(int a, int b) { return a < b ? a : b; }

/* Rows of the tiles that ``rows`` are cut into, as even as can be: the first ``longer`` ones have one more. */
typedef struct {
    int tiles, rows, longer;
} fathom_cut;

INLINE fathom_cut cut_rows(int rows, int most) {
    const int tiles = (rows + most - 1) / most;
    return (fathom_cut){tiles, rows / tiles, rows % tiles};
}

INLINE int first_row(fathom_cut cut, int tile) { return tile * cut.rows + fathom_least(tile, cut.longer); }

/* A part of a product: rows [row, row + rows) of the activations, columns [column, column + columns). */
typedef struct {
    int row, rows, column, columns;
} fathom_part;

/* The sum of a group's integers, from itself times their scale. */
INLINE int sum_of_group(float scaled, float scale) {
    const float sum = scale > 0.0f ? scaled / scale : 0.0f;
    return (int)(sum + (sum < 0.0f ? -0.5f : 0.5f));
}

/* Lay out what tiles read in order: for each tile and group, for each row its scale. */
static void lay_out_scales(const fathom_plan *plan, const fathom_rows *x, fathom_part part, fathom_cut cut,
                           fathom_scale *out) {
    const int groups = part.columns / FATHOM_GROUP;
    for (int tile = 0; tile < cut.tiles; tile++) {
        const int first = first_row(cut, tile), rows = first_row(cut, tile + 1) - first;
        for (int n = 0; n < rows; n++) {
            const int64_t row = part.row + first + n, from = row * (x->columns / FATHOM_GROUP) + part.column / FATHOM_GROUP;
            const float *scales = x->scales + from, *sums = x->sums + from;
            for (int g = 0; g < groups; g++) {
                fathom_scale *to = &out[g * rows + n];
                to->scale = scales[g];
                if (plan->start)
                    to->start = plan->zero_point * sum_of_group(sums[g], scales[g]);
                else
                    to->sum = (float)plan->zero_point * sums[g];
            }
        }
        out += rows * groups;
    }
}

INLINE int panels_of_tile(const fathom_plan *plan, int rows, int left) {
    if (rows == 1 && left >= 4 && !plan->expand) return 4;
    return plan->tiles->wide && left >= plan->tiles->width ? plan->tiles->width : 1;
}

/* Run the tiles of a part of a product for panels [begin, end). */
static void run_part(const fathom_plan *plan, const fathom_matrix *w, int begin, int end, const fathom_rows *x,
                     fathom_part part, float *y, int64_t y_stride) {
    fathom_scale scales[FATHOM_BLOCK_SCALES];
    _Alignas(64) float expanded[2][FATHOM_PANEL * FATHOM_BLOCK_COLUMNS];
    const fathom_tiles *tiles = plan->tiles;
    const fathom_cut cut = cut_rows(part.rows, tiles->most);
    const int integers = plan->column_bytes == 1;
    const uint8_t *operands = integers ? (const uint8_t *)x->q : (const uint8_t *)x->x;
    fathom_block block = {.columns = part.columns, .y_stride = y_stride, .add = part.column > 0};
    block.x_bytes = integers ? x->columns : x->stride * (int64_t)sizeof(float);
    if (integers) lay_out_scales(plan, x, part, cut, scales);
    for (int panel = begin, panels; panel < end; panel += panels) {
        panels = panels_of_tile(plan, part.rows, end - panel);
        const fathom_tile *chosen = panels == 4 ? &tiles->four : panels > 1 ? tiles->wide : tiles->one;
        block.w = (const uint8_t *)w->data + panel * w->panel_bytes;
        block.w += part.column / plan->unit * (int64_t)plan->unit_bytes;
        const int64_t to_next = !plan->expand && end - panel > panels ? panels * w->panel_bytes : 0;
        block.panel_bytes = w->panel_bytes;
        block.lanes = w->rows - panel * FATHOM_PANEL;
        if (plan->expand) {
            for (int p = 0; p < panels; p++)
                plan->expand(block.w + p * w->panel_bytes, part.columns, expanded[p]);
            block.w = (const uint8_t *)expanded;
            block.panel_bytes = sizeof expanded[0];
        }
        for (int tile = 0; tile < cut.tiles; tile++) {
            const int first = first_row(cut, tile);
            block.ahead = cut.tiles == 1 && !plan->expand ? FATHOM_BYTES_AHEAD : tile == 0 ? to_next : 0;
            block.x = operands + (part.row + first) * block.x_bytes + (int64_t)part.column * plan->column_bytes;
            block.scales = scales + part.columns / FATHOM_GROUP * first;
            block.y = y + (part.row + first) * y_stride + panel * FATHOM_PANEL;
            chosen[first_row(cut, tile + 1) - first - 1](&block);
        }
    }
}

/* Columns of a part: all where one tile reads them, else so many that activations and panels stay in the caches. */
INLINE int columns_of_part(const fathom_plan *plan, int rows) {
    if (plan->expand) return FATHOM_BLOCK_COLUMNS;
    if (rows <= plan->tiles->most) return FATHOM_BLOCK_SCALES / rows * FATHOM_GROUP;
    const int kept = FATHOM_BLOCK_BYTES / (rows * plan->column_bytes) / FATHOM_GROUP;
    const int groups = fathom_least(kept, FATHOM_BLOCK_SCALES / rows);
    return FATHOM_GROUP * fathom_least(groups, FATHOM_MOST_COLUMNS / FATHOM_GROUP);
}

static void run_product(const fathom_plan *plan, const fathom_matrix *w, int begin, int end, const fathom_rows *x,
                        float *y, int64_t y_stride) {
    const fathom_cut cut = cut_rows(x->rows, FATHOM_BLOCK_ROWS);
    for (int block = 0; block < cut.tiles; block++) {
        fathom_part part = {.row = first_row(cut, block)};
        part.rows = first_row(cut, block + 1) - part.row;
        const int step = columns_of_part(plan, part.rows);
        for (; part.column < w->columns; part.column += step) {
            part.columns = fathom_least(w->columns - part.column, step);
            run_part(plan, w, begin, end, x, part, y, y_stride);
        }
    }
}
#endif
