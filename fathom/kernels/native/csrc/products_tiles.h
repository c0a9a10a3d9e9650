/* The tiles of a product, the product itself and the rounding of activations, written once over the vectors of one
 * instruction set. Before it is included, products_*.c define:
 *
 *   LANES, PARTS            floats of a vector, vectors of a panel
 *   floats, integers        the vector types
 *   FLOAT_ROWS, FLOAT_TILES rows of the largest tile of floats; SINGLE_TILES, or PAIRED_TILES that take two panels
 *   MANY_BY_THREE           defined where more rows of floats take tiles of eight by three panels: fewer loads, but
 *                           what is left of the panels takes tiles with few sums
 *   QUANTIZED_ROWS          rows of the largest tile of quantized weights
 *   PARTS_AT_ONCE           parts of a panel whose sums of bytes are kept at a time
 *   Q8_ZERO_POINT           -128 where dot_step takes unsigned weights, 0 where it takes signed ones
 *   EXACT_STARTS            whether sums of bytes begin with what the zero point takes from them, in 32 bits
 *
 * and the functions used below. */
#ifndef FATHOM_PRODUCTS_TILES_H
#define FATHOM_PRODUCTS_TILES_H

#define MOST_PANELS 4
#define HALF_TILES 4    /* of more, bfloat16 weights are written as floats once for all */
#define ROW_BASES 4    /* rows are reached from every third one, none to two strides on: few registers hold addresses */

INLINE float float_at(const uint8_t *p) { return *(const float *)p; }

#define ROW(i) (x[(i) / 3] + ((i) % 3) * b->x_bytes)
#define BEGIN_ROWS                                                            \
    const uint8_t *x[ROW_BASES];                                              \
    UNROLL for (int i = 0; i < ROW_BASES; i++) x[i] = b->x + 3 * i * b->x_bytes
#define NEXT_COLUMNS(bytes) UNROLL for (int i = 0; i < ROW_BASES; i++) x[i] += (bytes)

/* Where the sums of a row and a part of the panels lie, and how many of them exist. */
INLINE float *sums_at(const fathom_block *b, int row, int part) { return b->y + row * b->y_stride + part * LANES; }
INLINE int lanes_at(const fathom_block *b, int part) { return b->lanes - part * LANES; }

#define BEGIN_SUMS(rows, parts)                      \
    floats sums[FATHOM_MOST_ROWS][MOST_PANELS * PARTS]; \
    UNROLL for (int i = 0; i < (rows); i++)          \
        UNROLL for (int p = 0; p < (parts); p++)     \
            sums[i][p] = b->add ? load_lanes(sums_at(b, i, p), lanes_at(b, p)) : set1(0.0f)
#define END_SUMS(rows, parts)                \
    UNROLL for (int i = 0; i < (rows); i++)  \
        UNROLL for (int p = 0; p < (parts); p++) store_lanes(sums_at(b, i, p), lanes_at(b, p), sums[i][p])

/* Columns [0, columns) from w and x on. */
INLINE void add_columns(const fathom_block *b, const int rows, const int panels, const int columns, const uint8_t *w,
                        const uint8_t *const *x, floats sums[][MOST_PANELS * PARTS]) {
    UNROLL for (int k = 0; k < columns; k++) {
        floats v[MOST_PANELS * PARTS];
        UNROLL for (int p = 0; p < panels * PARTS; p++)
            v[p] = load((const float *)(w + p / PARTS * b->panel_bytes) + FATHOM_PANEL * k + p % PARTS * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            const floats operand = set1(float_at(ROW(i) + k * sizeof(float)));
            UNROLL for (int p = 0; p < panels * PARTS; p++) sums[i][p] = fma_(v[p], operand, sums[i][p]);
        }
    }
}

INLINE void float_tile(const fathom_block *b, const int rows, const int panels) {
    enum { AT_ONCE = 4, BYTES = sizeof(float) * FATHOM_PANEL };
    BEGIN_ROWS;
    BEGIN_SUMS(rows, panels * PARTS);
    const uint8_t *w = b->w;
    const int64_t ahead = b->ahead;
    int k = 0;
    for (; k + AT_ONCE <= b->columns; k += AT_ONCE, w += AT_ONCE * BYTES) {
        if (ahead)
            UNROLL for (int line = 0; line < panels * AT_ONCE; line++)
                __builtin_prefetch(w + line % panels * b->panel_bytes + line / panels * BYTES + ahead);
        add_columns(b, rows, panels, AT_ONCE, w, x, sums);
        NEXT_COLUMNS(AT_ONCE * sizeof(float));
    }
    for (; k < b->columns; k++, w += BYTES) {
        add_columns(b, rows, panels, 1, w, x, sums);
        NEXT_COLUMNS(sizeof(float));
    }
    END_SUMS(rows, panels * PARTS);
}

/* bfloat16 weights: a vector holds two columns. */
INLINE void half_tile(const fathom_block *b, const int rows, const int panels) {
    BEGIN_ROWS;
    BEGIN_SUMS(rows, panels * PARTS);
    const uint8_t *w = b->w;
    const int64_t ahead = b->ahead;
    for (int k = 0; k < b->columns; k += 2, w += sizeof(float) * FATHOM_PANEL) {
        const int second = k + 1 < b->columns;
        floats odd[MOST_PANELS * PARTS];
        UNROLL for (int p = 0; p < panels * PARTS; p++) {
            const uint8_t *pairs = w + p / PARTS * b->panel_bytes + p % PARTS * LANES * sizeof(float);
            if (ahead && p % PARTS == 0) __builtin_prefetch(pairs + ahead);
            const floats even = even_bfloats(pairs);
            odd[p] = odd_bfloats(pairs);
            UNROLL for (int i = 0; i < rows; i++) sums[i][p] = fma_(even, set1(float_at(ROW(i))), sums[i][p]);
        }
        if (second)
            UNROLL for (int i = 0; i < rows; i++) {
                const floats operand = set1(float_at(ROW(i) + sizeof(float)));
                UNROLL for (int p = 0; p < panels * PARTS; p++) sums[i][p] = fma_(odd[p], operand, sums[i][p]);
            }
        NEXT_COLUMNS(2 * sizeof(float));
    }
    END_SUMS(rows, panels * PARTS);
}

/* The vector that holds columns 4 j to 4 j + 3 of a group's rows from ``part`` on. */
INLINE const uint8_t *vector_at(const uint8_t *group, const int j, const int part, const int format) {
    return group + 64 * (format == FATHOM_Q8 ? j : j % 4) + 4 * LANES * part;
}

INLINE void quantized_tile(const fathom_block *b, const int rows, const int panels, const int format) {
    BEGIN_ROWS;
    BEGIN_SUMS(rows, panels * PARTS);
    const uint8_t *w = b->w;
    const int64_t ahead = b->ahead;
    const fathom_scale *scales = b->scales;
    for (int k = 0; k < b->columns; k += FATHOM_GROUP, w += fathom_group_bytes(format), scales += rows) {
        UNROLL for (int p = 0; p < panels * PARTS; p += PARTS_AT_ONCE) {
            const uint8_t *group = w + p / PARTS * b->panel_bytes;
            const uint8_t *steps = group + fathom_group_steps(format) + 2 * LANES * (p % PARTS);
            integers dots[FATHOM_MOST_ROWS][PARTS];
            if (ahead && p % PARTS == 0)
                UNROLL for (int j = 0; j < fathom_group_bytes(format); j += 64) __builtin_prefetch(group + ahead + j);
            UNROLL for (int i = 0; i < rows; i++)
                UNROLL for (int part = 0; part < PARTS_AT_ONCE; part++)
                    dots[i][part] = EXACT_STARTS && format != FATHOM_Q4M ? word_at(&scales[i].start) : no_dot();
            UNROLL for (int j = 0; j < 8; j++) {
                integers u[PARTS];
                UNROLL for (int part = 0; part < PARTS_AT_ONCE; part++)
                    u[part] = weights_at(vector_at(group, j, p % PARTS + part, format), j, format);
                UNROLL for (int i = 0; i < rows; i++) {
                    const integers operand = word_at((const int32_t *)(ROW(i) + 4 * j));
                    UNROLL for (int part = 0; part < PARTS_AT_ONCE; part++)
                        dots[i][part] = dot_step(dots[i][part], u[part], operand, format);
                }
            }
            UNROLL for (int part = 0; part < PARTS_AT_ONCE; part++) {
                const floats step = halves_at(steps + 2 * LANES * part);
                UNROLL for (int i = 0; i < rows; i++) {
                    const floats scale = set1(scales[i].scale), dot = end_dot(dots[i][part], format);
                    floats *total = &sums[i][p + part];
                    if (format == FATHOM_Q4M)
                        *total = fma_(halves_at(steps + 32 + 2 * LANES * part), set1(scales[i].sum), *total);
                    if (EXACT_STARTS || format == FATHOM_Q4M)
                        *total = fma_(step, multiply(dot, scale), *total);
                    else
                        *total = fma_(step, fma_(dot, scale, set1(scales[i].sum)), *total);
                }
            }
        }
        NEXT_COLUMNS(FATHOM_GROUP);
    }
    END_SUMS(rows, panels * PARTS);
}

/* Write a panel's part as floats, a column after another. */
INLINE void expand_groups(const uint8_t *w, int columns, float *panel, const int format) {
    for (int k = 0; k < columns; k += FATHOM_GROUP, w += fathom_group_bytes(format), panel += FATHOM_PANEL * FATHOM_GROUP)
        for (int part = 0; part < PARTS; part++) {
            const uint8_t *steps = w + fathom_group_steps(format) + 2 * LANES * part;
            const floats step = halves_at(steps), none = multiply(step, set1(format == FATHOM_Q4 ? -8 : 0));
            const floats least = format == FATHOM_Q4M ? halves_at(steps + 32) : none;
            for (int j = 0; j < 8; j++)
                UNROLL for (int i = 0; i < 4; i++) {
                    const uint8_t *v = vector_at(w, j, part, format);
                    const floats q = format == FATHOM_Q8 ? signed_byte(v, i) : nibble_of(v, 8 * i + j / 4 * 4);
                    store(panel + FATHOM_PANEL * (4 * j + i) + LANES * part, fma_(q, step, least));
                }
        }
}

static void expand_q8(const uint8_t *w, int columns, float *panel) { expand_groups(w, columns, panel, FATHOM_Q8); }
static void expand_q4(const uint8_t *w, int columns, float *panel) { expand_groups(w, columns, panel, FATHOM_Q4); }
static void expand_q4m(const uint8_t *w, int columns, float *panel) { expand_groups(w, columns, panel, FATHOM_Q4M); }

static void expand_bfloats(const uint8_t *w, int columns, float *panel) { /* the buffer's columns are even */
    for (int k = 0; k < columns; k += 2, w += sizeof(float) * FATHOM_PANEL, panel += 2 * FATHOM_PANEL)
        for (int part = 0; part < PARTS; part++) {
            store(panel + LANES * part, even_bfloats(w + 4 * LANES * part));
            store(panel + FATHOM_PANEL + LANES * part, odd_bfloats(w + 4 * LANES * part));
        }
}

#define QUANTIZED_TILE(name, format)                                                         \
    INLINE void name##_tile(const fathom_block *b, const int rows, const int panels) {       \
        quantized_tile(b, rows, panels, format);                                             \
    }
QUANTIZED_TILE(q8, FATHOM_Q8)
QUANTIZED_TILE(q4, FATHOM_Q4)
QUANTIZED_TILE(q4m, FATHOM_Q4M)

/* One function for each number of rows and panels. */
#define TILE(kind, rows, panels) \
    static void kind##_##rows##_##panels(const fathom_block *b) { kind##_tile(b, rows, panels); }
#define TILES_4(kind, panels) TILE(kind, 1, panels) TILE(kind, 2, panels) TILE(kind, 3, panels) TILE(kind, 4, panels)
#define TILES_6(kind, panels) TILES_4(kind, panels) TILE(kind, 5, panels) TILE(kind, 6, panels)
#define TILES_12(kind, panels)                                                                                    \
    TILES_6(kind, panels) TILE(kind, 7, panels) TILE(kind, 8, panels) TILE(kind, 9, panels) TILE(kind, 10, panels) \
    TILE(kind, 11, panels) TILE(kind, 12, panels)
#define TILES_8(kind, panels) TILES_6(kind, panels) TILE(kind, 7, panels) TILE(kind, 8, panels)
#define NAMES_4(kind, panels) kind##_1_##panels, kind##_2_##panels, kind##_3_##panels, kind##_4_##panels
#define NAMES_6(kind, panels) NAMES_4(kind, panels), kind##_5_##panels, kind##_6_##panels
#define NAMES_8(kind, panels) NAMES_6(kind, panels), kind##_7_##panels, kind##_8_##panels
#define NAMES_12(kind, panels)                                                                                    \
    NAMES_6(kind, panels), kind##_7_##panels, kind##_8_##panels, kind##_9_##panels, kind##_10_##panels,           \
        kind##_11_##panels, kind##_12_##panels
#define UP_TO_(what, rows) what##_##rows
#define UP_TO(what, rows) UP_TO_(what, rows)

#define SINGLE_TILES(kind, rows)                                               \
    UP_TO(TILES, rows)(kind, 1) TILE(kind, 1, 4)                               \
    static const fathom_tile kind##_one[] = {UP_TO(NAMES, rows)(kind, 1)};     \
    static const fathom_tiles kind##_tiles = {kind##_one, NULL, kind##_1_4, rows, 0};
#define PAIRED_TILES(kind, rows)                                               \
    UP_TO(TILES, rows)(kind, 1) UP_TO(TILES, rows)(kind, 2) TILE(kind, 1, 4)   \
    static const fathom_tile kind##_one[] = {UP_TO(NAMES, rows)(kind, 1)};     \
    static const fathom_tile kind##_two[] = {UP_TO(NAMES, rows)(kind, 2)};     \
    static const fathom_tiles kind##_tiles = {kind##_one, kind##_two, kind##_1_4, rows, 2};

FLOAT_TILES(float, FLOAT_ROWS)
FLOAT_TILES(half, FLOAT_ROWS)
#ifdef MANY_BY_THREE
TILES_8(float, 3)
static const fathom_tile float_three[] = {NAMES_8(float, 3)};
static const fathom_tiles many_tiles = {float_one, float_three, float_1_4, 8, 3};
#else
#define many_tiles float_tiles
#endif
SINGLE_TILES(q8, QUANTIZED_ROWS)
SINGLE_TILES(q4, QUANTIZED_ROWS)
SINGLE_TILES(q4m, QUANTIZED_ROWS)

static void multiply_panels(const fathom_matrix *w, int begin, int end, const fathom_rows *x, float *y,
                            int64_t y_stride) {
    static const fathom_plan by_floats[] = {[FATHOM_F32] = {&float_tiles, 1, 64, 4, NULL, 0, 0},
                                            [FATHOM_BF16] = {&float_tiles, 2, 64, 4, expand_bfloats, 0, 0},
                                            [FATHOM_Q8] = {&float_tiles, 32, 544, 4, expand_q8, 0, 0},
                                            [FATHOM_Q4] = {&float_tiles, 32, 288, 4, expand_q4, 0, 0},
                                            [FATHOM_Q4M] = {&float_tiles, 32, 320, 4, expand_q4m, 0, 0}};
    static const fathom_plan by_bytes[] = {[FATHOM_Q8] = {&q8_tiles, 32, 544, 1, NULL, Q8_ZERO_POINT, EXACT_STARTS},
                                           [FATHOM_Q4] = {&q4_tiles, 32, 288, 1, NULL, -8, EXACT_STARTS},
                                           [FATHOM_Q4M] = {&q4m_tiles, 32, 320, 1, NULL, 1, 0}};
    static const fathom_plan many_floats = {&many_tiles, 1, 64, 4, NULL, 0, 0};
    static const fathom_plan by_halves = {&half_tiles, 2, 64, 4, NULL, 0, 0};
    const fathom_plan *plan = w->format >= FATHOM_Q8 && x->q ? &by_bytes[w->format] : &by_floats[w->format];
    if (w->format == FATHOM_BF16 && x->rows <= HALF_TILES * FLOAT_ROWS) plan = &by_halves;
    if (w->format == FATHOM_F32 && x->rows > FLOAT_ROWS && (end - begin == 3 || end - begin > 4)) plan = &many_floats;
    run_product(plan, w, begin, end, x, y, y_stride);
}

/* 8 bits a value: groups of vectors are rounded as the plain kernel does. */
static void round_row(const float *x, int k, int8_t *q, float *scales, float *sums) {
    for (int g = 0; g < k / FATHOM_GROUP; g++, x += FATHOM_GROUP, q += FATHOM_GROUP) {
        floats v[FATHOM_GROUP / LANES];
        UNROLL for (int i = 0; i < FATHOM_GROUP / LANES; i++) v[i] = load_any(x + LANES * i);
        const float largest = largest_size(v);
        if (!(largest <= FLT_MAX)) {
            memset(q, 0, FATHOM_GROUP);
            scales[g] = sums[g] = NAN;
            continue;
        }
        const int counts = largest >= FATHOM_SMALLEST;
        const int sum = round_group(v, set1(counts ? 127.0f / largest : 0.0f), q);
        scales[g] = counts ? largest / 127.0f : 0.0f;
        sums[g] = scales[g] * (float)sum;
    }
}

#define PRODUCTS_OF(isa)                                                                                            \
    void fathom_product_##isa(const fathom_matrix *w, int begin, int end, const fathom_rows *x, float *y,           \
                              int64_t y_stride) {                                                                   \
        multiply_panels(w, begin, end, x, y, y_stride);                                                             \
    }                                                                                                               \
    void fathom_quantize_row_##isa(const float *x, int k, int8_t *q, float *scales, float *sums) {                  \
        round_row(x, k, q, scales, sums);                                                                           \
    }
#endif
