/* Every kernel of every instruction set that this processor has, against the scalar one, over odd shapes. Prints one line
 * a set; 1 where a result differs by more than rounding. Python's tests hold the scalar kernels against PyTorch; this
 * program also runs where PyTorch does not: under qemu, for other processors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static uint64_t state = 1;
static int failures;

static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static float uniform(void) { return (float)draw() / 1073741824.0f - 1.0f; }

static void fill(float *x, int count) {
    for (int i = 0; i < count; i++) x[i] = uniform();
}

/* Differences relative to the root mean square of what is right; what is not finite must be the same. */
static void close_to(const char *isa, const char *kernel, const float *found, const float *right, int count, float most) {
    double squares = 1e-12, worst = 0.0;
    for (int i = 0; i < count; i++) {
        const double apart = fabs((double)found[i] - right[i]);
        if (isfinite(right[i])) squares += (double)right[i] * right[i] / count;
        if (found[i] == right[i] || (isnan(right[i]) && isnan(found[i]))) continue;
        worst = isfinite(apart) && worst > apart ? worst : apart;
        if (!isfinite(apart)) break;
    }
    if (worst <= most * sqrt(squares)) return;
    failures++;
    fprintf(stderr, "%s %s: %g apart, of %g, %d numbers\n", isa, kernel, worst, sqrt(squares), count);
}

static void same(const char *isa, const char *kernel, const void *found, const void *right, size_t bytes) {
    if (memcmp(found, right, bytes) == 0) return;
    failures++;
    fprintf(stderr, "%s %s: not the same\n", isa, kernel);
}

/* Random panels: any bytes are quanta; steps are small and finite. */
static fathom_matrix panels(int format, int rows, int columns) {
    static const int groups_bytes[] = {0, 0, 512 + 32, 256 + 32, 256 + 64};
    const int count = (rows + FATHOM_PANEL - 1) / FATHOM_PANEL;
    int64_t bytes = format == FATHOM_F32    ? 64 * (int64_t)columns
                    : format == FATHOM_BF16 ? 64 * (int64_t)((columns + 1) / 2)
                                            : (int64_t)columns / FATHOM_GROUP * groups_bytes[format];
    uint8_t *data;
    if (posix_memalign((void **)&data, 64, (size_t)(bytes * count + 64))) exit(2);
    for (int64_t i = 0; i < bytes * count; i++) data[i] = (uint8_t)draw();
    if (format == FATHOM_F32) fill((float *)data, (int)(bytes * count / 4));
    if (format == FATHOM_BF16)
        for (int64_t i = 0; i < bytes * count / 2; i++) {
            const int odd = columns % 2 && i % 2 && i % (bytes / 2) / 32 == columns / 2;
            ((uint16_t *)data)[i] = odd ? 0 : (uint16_t)(0x3f00 | (draw() & 0x80ff)); /* 0.5 to 2 */
        }
    for (int64_t g = 0; format >= FATHOM_Q8 && g < bytes * count / groups_bytes[format]; g++) {
        const int steps = format == FATHOM_Q8 ? 512 : 256;
        uint16_t *step = (uint16_t *)(data + g * groups_bytes[format] + steps);
        for (int i = 0; i < (groups_bytes[format] - steps) / 2; i++) step[i] = (uint16_t)(0x2000 | (draw() & 0x83ff));
    }
    return (fathom_matrix){.data = data, .panel_bytes = bytes, .format = format, .rows = rows, .columns = columns};
}

static void try_product(const char *isa, const fathom_kernels *k, int format, int rows, int columns, int n, int quantize) {
    const int64_t stride = columns + 16 + draw() % 5, y_stride = rows + draw() % 5;
    const fathom_matrix w = panels(format, rows, columns);
    float *x = malloc(sizeof(float) * n * stride), *y[2];
    int8_t *q = malloc((size_t)n * columns);
    float *scales = malloc(sizeof(float) * n * columns / FATHOM_GROUP + 4), *sums = malloc(sizeof(float) * n * columns / FATHOM_GROUP + 4);
    fill(x, (int)(n * stride));
    for (int i = 0; quantize && i < n; i++)
        fathom_scalar.quantize_row(x + i * stride, columns, q + (int64_t)i * columns, scales + i * columns / FATHOM_GROUP, sums + i * columns / FATHOM_GROUP);
    const fathom_rows given = {.x = x, .stride = stride, .q = quantize ? q : NULL, .scales = scales, .sums = sums,
                               .rows = n, .columns = columns};
    const int count = (rows + FATHOM_PANEL - 1) / FATHOM_PANEL, cut = count / 2;
    for (int i = 0; i < 2; i++) {
        y[i] = calloc((size_t)(n * y_stride + 1), sizeof(float));
        const fathom_kernels *with = i ? k : &fathom_scalar;
        with->product(&w, 0, cut, &given, y[i], y_stride);
        with->product(&w, cut, count, &given, y[i], y_stride);
    }
    char name[64];
    snprintf(name, sizeof name, "product %d of %d x %d, %d rows%s", format, rows, columns, n, quantize ? " in 8 bits" : "");
    close_to(isa, name, y[1], y[0], (int)(n * y_stride), 2e-5f);
    free((void *)w.data), free(x), free(q), free(scales), free(sums), free(y[0]), free(y[1]);
}

static void try_products(const char *isa, const fathom_kernels *k) {
    static const int rows[] = {1, 15, 16, 17, 48, 83}, columns[] = {1, 2, 7, 32, 63, 160}, grouped[] = {32, 64, 96, 352};
    static const int many[] = {1, 2, 3, 4, 5, 7, 16, 33};
    for (int r = 0; r < 6; r++)
        for (int n = 0; n < 8; n++) {
            for (int c = 0; c < 6; c++)
                for (int format = FATHOM_F32; format <= FATHOM_BF16; format++) try_product(isa, k, format, rows[r], columns[c], many[n], 0);
            for (int c = 0; c < 4; c++)
                for (int format = FATHOM_Q8; format <= FATHOM_Q4M; format++)
                    for (int quantize = 0; quantize < 2; quantize++) try_product(isa, k, format, rows[r], grouped[c], many[n], quantize);
        }
}

static void try_quantize(const char *isa, const fathom_kernels *k) {
    for (int groups = 1; groups <= 5; groups++)
        for (int kind = 0; kind < 5; kind++) {
            float x[160], scales[2][5] = {{0}}, sums[2][5] = {{0}};
            int8_t q[2][160] = {{0}};
            fill(x, 160);
            if (kind == 1) memset(x, 0, sizeof x);
            if (kind == 2) x[3] = INFINITY, x[40] = NAN, x[100] = -INFINITY;
            for (int i = 0; i < 160; i++) x[i] *= kind == 3 ? 1e-38f : kind == 4 ? 1e30f : 1.0f;
            fathom_scalar.quantize_row(x, 32 * groups, q[0], scales[0], sums[0]);
            k->quantize_row(x, 32 * groups, q[1], scales[1], sums[1]);
            same(isa, "quantize_row", q[1], q[0], sizeof q[0]);
            close_to(isa, "quantize_row scales", scales[1], scales[0], groups, 1e-6f);
            close_to(isa, "quantize_row sums", sums[1], sums[0], groups, 1e-5f);
        }
}

static void try_rows(const char *isa, const fathom_kernels *k, int count) {
    enum { MOST = 300 };
    float x[MOST], z[MOST], y[2][MOST];
    uint16_t narrow[2][MOST];
    fill(x, MOST), fill(z, MOST);
    for (int i = 0; i < MOST; i++) x[i] *= 8.0f;
#define BOTH(name, most, call)                                   \
    for (int i = 0; i < 2; i++) {                                \
        const fathom_kernels *with = i ? k : &fathom_scalar;     \
        memcpy(y[i], z, sizeof z);                               \
        call;                                                    \
    }                                                            \
    close_to(isa, name, y[1], y[0], MOST, most)
    BOTH("rms_norm", 1e-5f, with->rms_norm(x, z, count, 1e-6f, y[i]));
    BOTH("rms_norm without weight", 1e-5f, with->rms_norm(x, NULL, count, 1e-6f, y[i]));
    BOTH("silu_multiply", 1e-5f, with->silu_multiply(x, z, 0.7f, count, y[i]));
    float slope[MOST], weight[MOST], grads[2][2][MOST] = {{{0}}}, dot[2];
    for (int i = 0; i < MOST; i++) slope[i] = z[MOST - 1 - i], weight[i] = z[i] + 2.0f;
    BOTH("silu_multiply_gradient", 1e-5f,
         dot[i] = with->silu_multiply_gradient(x, z, slope, 0.7f, count, y[i], grads[i][0], grads[i][1]));
    close_to(isa, "silu_multiply_gradient of gate and up", grads[1][0], grads[0][0], 2 * MOST, 1e-5f);
    close_to(isa, "silu_multiply_gradient of scale", &dot[1], &dot[0], 1, 1e-4f);
    BOTH("rms_norm_gradient", 1e-5f, with->rms_norm_gradient(x, weight, 0.7f, slope, count, y[i], grads[i][0]));
    close_to(isa, "rms_norm_gradient of weight", grads[1][0], grads[0][0], MOST, 1e-5f);
    BOTH("add_scaled", 1e-5f, with->add_scaled(0.7f, x, count, y[i]));
    BOTH("blend", 1e-5f, with->blend(0.5f, x, 0.3f, count, y[i]));
    BOTH("slopes", 1e-5f, with->slopes(y[i], y[i] + MOST / 2, count / 2, 0.5f, 1.5f, 0.25f));
    BOTH("dot", 5e-5f, y[i][0] = with->dot(x, z, count));
    BOTH("softmax", 1e-5f, (memcpy(y[i], x, sizeof x), with->softmax(y[i], count)));
    float top[] = {0.25f, 0.25f}, total[] = {2.0f, 2.0f}, kept[2];
    BOTH("soften", 1e-5f,
         (memcpy(y[i], x, sizeof x), kept[i] = with->soften(y[i], count, 0.5f, &top[i], &total[i])));
    close_to(isa, "soften maximum", &top[1], &top[0], 1, 1e-5f);
    close_to(isa, "soften sum", &total[1], &total[0], 1, 1e-5f);
    close_to(isa, "soften, kept", &kept[1], &kept[0], 1, 1e-5f);
    BOTH("rotate halves", 1e-5f, with->rotate(y[i], x, z, count / 2, 1));
    BOTH("rotate neighbours", 1e-5f, with->rotate(y[i], x, z, count / 2, 0));
    for (int i = 0; i < 2; i++) (i ? k : &fathom_scalar)->narrow(x, count, narrow[i]);
    same(isa, "narrow", narrow[1], narrow[0], sizeof(uint16_t) * count);
    BOTH("widen", 0.0f, with->widen(narrow[0], count, y[i]));
    if (k->argmax(x, count) != fathom_scalar.argmax(x, count)) failures++, fprintf(stderr, "%s argmax\n", isa);
    x[count / 2] = x[count - 1] = 99.0f;
    if (k->argmax(x, count) != count / 2) failures++, fprintf(stderr, "%s argmax of equals\n", isa);
    x[count - 1] = NAN;
    if (k->argmax(x, count) != count - 1) failures++, fprintf(stderr, "%s argmax of NaN\n", isa);
    x[0] = INFINITY;
    BOTH("silu_multiply, not finite", 1e-5f, with->silu_multiply(x, z, 0.7f, count, y[i]));
    for (int i = 0; i < 2; i++) (i ? k : &fathom_scalar)->narrow(x, count, narrow[i]);
    same(isa, "narrow, not finite", narrow[1], narrow[0], sizeof(uint16_t) * count);
#undef BOTH
}

static void try_attend(const char *isa, const fathom_kernels *k, int rows, int width, int value_width, int count, int masked) {
    enum { ROWS = 20, WIDTH = 160, BLOCKS = 3 };
    static float q[ROWS * WIDTH], keys[FATHOM_ATTEND_KEYS * WIDTH], acc[2][ROWS * WIDTH];
    float max[2][ROWS], sum[2][ROWS], *packed = malloc(sizeof(float) * fathom_packed_floats(rows, width));
    const float *each[ROWS];
    int32_t first[ROWS], last[ROWS];
    fill(q, ROWS * WIDTH);
    for (int r = 0; r < ROWS; r++) each[r] = q + (ROWS - 1 - r) * WIDTH;
    for (int i = 0; i < 2; i++) {
        memset(acc[i], 0, sizeof acc[i]);
        for (int r = 0; r < ROWS; r++) max[i][r] = -INFINITY, sum[i][r] = 0.0f;
    }
    for (int block = 0; block < BLOCKS; block++) {
        fill(keys, FATHOM_ATTEND_KEYS * WIDTH);
        for (int r = 0; r < ROWS; r++) {
            first[r] = (int)draw() % count;
            last[r] = block == 0 && r % 3 == 0 ? first[r] : first[r] + (int)draw() % (count - first[r] + 1);
        }
        for (int i = 0; i < 2; i++) {
            const fathom_kernels *with = i ? k : &fathom_scalar;
            const fathom_queries queries = {.packed = packed, .rows = rows, .width = width, .value_width = value_width,
                                            .acc = acc[i], .acc_stride = WIDTH, .max = max[i], .sum = sum[i]};
            const fathom_keys given = {.keys = keys, .values = keys, .key_stride = WIDTH, .value_stride = WIDTH,
                                       .count = count, .first = masked ? first : NULL, .last = masked ? last : NULL,
                                       .next = block % 2 ? keys : NULL};
            with->pack_queries(each, rows, width, 0.3f, packed);
            with->attend(&queries, &given);
        }
    }
    char name[80];
    snprintf(name, sizeof name, "attend, %d queries of %d (%d), %d keys%s", rows, width, value_width, count, masked ? ", masked" : "");
    close_to(isa, name, acc[1], acc[0], ROWS * WIDTH, 2e-5f);
    close_to(isa, "attend sums", sum[1], sum[0], rows, 2e-5f);
    close_to(isa, "attend maxima", max[1], max[0], rows, 2e-5f);
    free(packed);
}

/* Operands in strips differ from one instruction set to another, products of them do not. */
static void try_train(const char *isa, const fathom_kernels *k, int rows, int width, int depth, int causal) {
    enum { MOST = 64, LINE = MOST + 5 };
    static float a[MOST * LINE], b[MOST * LINE], c[2][MOST * LINE];
    static _Alignas(64) float strips[MOST * MOST];
    const int columns = (int)fathom_padded(width), diagonal = (int)draw() % 20, half = depth / 2;
    fill(a, MOST * LINE), fill(b, MOST * LINE);
    for (int m = 0; m < MOST; m++)
        for (int n = 0; n < MOST; n++) { /* as softmax leaves weights: row m sees columns to m + diagonal */
            if (causal == FATHOM_CAUSAL_SUMS && n > m + diagonal) a[m * LINE + n] = 0.0f;
            if (causal == FATHOM_CAUSAL_TURNED && n > m + diagonal) a[m * LINE + n] = 0.0f;
        }
    for (int i = 0; i < 2; i++) {
        const fathom_kernels *with = i ? k : &fathom_scalar;
        fathom_small_product p = {.a = a, .b = strips, .c = c[i], .a_stride = LINE, .c_stride = LINE, .b_rows = depth,
                                  .rows = rows, .columns = columns, .depth = depth, .causal = causal, .diagonal = diagonal};
        memset(c[i], 0, sizeof c[i]);
        memset(strips, 255, sizeof strips);
        if (causal == FATHOM_CAUSAL_COLUMNS) {
            const int first = width > 32 ? 32 : 0;
            with->strips_of_columns(b, LINE, first, depth, strips, columns, 0);
            with->strips_of_columns(b + first * LINE, LINE, width - first, depth, strips, columns, first);
        } else if (!with->strips_of_rows(b, LINE, half, width, strips, depth, 0) ||
                   !with->strips_of_rows(b + half * LINE, LINE, depth - half, width, strips, depth, half))
            failures++, fprintf(stderr, "%s strips_of_rows: not finite\n", isa);
        with->small_product(&p);
        p.add = 1, p.single = 1;
        with->small_product(&p);
        for (int m = 0; m < rows && causal == FATHOM_CAUSAL_COLUMNS; m++)
            for (int n = m + diagonal + 1; n < columns; n++) c[i][m * LINE + n] = 0.0f;
    }
    char name[80];
    snprintf(name, sizeof name, "small_product %d, %d rows, %d columns, depth %d", causal, rows, width, depth);
    close_to(isa, name, c[1], c[0], rows * LINE, 2e-5f);
    b[(depth - 1) * LINE + width - 1] = depth % 2 ? NAN : INFINITY;
    if (k->strips_of_rows(b, LINE, depth, width, strips, depth, 0))
        failures++, fprintf(stderr, "%s strips_of_rows: finite\n", isa);
}

static void try_pages(const char *isa, const fathom_kernels *k) {
    enum { WIDTH = 160, SLOTS = 6, BYTES = 4 * WIDTH };
    static const fathom_pages kinds[] = {
        {NULL, BYTES, FATHOM_PAGES_FLOAT32, WIDTH, 0, {{0}}},
        {NULL, BYTES / 2, FATHOM_PAGES_BFLOAT16, WIDTH, 0, {{0}}},
        {NULL, 2 * 9 + 160, FATHOM_PAGES_QUANTIZED, WIDTH, 2, {{128, FATHOM_EIGHT_BITS, 16}, {32, FATHOM_EIGHT_BITS, 32}}},
        {NULL, 2 * 3 + 88 + 32, FATHOM_PAGES_QUANTIZED, WIDTH, 2, {{128, FATHOM_PAIRED_MAX_CODE, 64}, {32, FATHOM_EIGHT_BITS, 32}}},
        {NULL, 60, FATHOM_PAGES_QUANTIZED, 52, 2, {{45, FATHOM_PAIRED_MAX_CODE, 15}, {7, FATHOM_EIGHT_BITS, 7}}},
    };
    for (int kind = 0; kind < (int)(sizeof kinds / sizeof *kinds); kind++) {
        static float x[WIDTH], found[2][SLOTS * (WIDTH + 3)];
        static _Alignas(64) uint8_t held[2][SLOTS * BYTES];
        memset(held, 0, sizeof held), memset(found, 0, sizeof found);
        const int width = kinds[kind].width, column = (int)draw() % width, columns = 1 + (int)draw() % (width - column);
        for (int slot = 0; slot < SLOTS; slot++) {
            fill(x, WIDTH);
            for (int i = 0; i < 2; i++) {
                fathom_pages pages = kinds[kind];
                pages.rows = held[i];
                (i ? k : &fathom_scalar)->write_row(&pages, SLOTS - 1 - slot, x);
            }
        }
        same(isa, "write_row", held[1], held[0], sizeof held[0]);
        for (int i = 0; i < 2; i++) {
            fathom_pages pages = kinds[kind];
            pages.rows = held[0];
            (i ? k : &fathom_scalar)->read_rows(&pages, 1, SLOTS - 1, column, columns, found[i], columns + 3);
        }
        close_to(isa, "read_rows", found[1], found[0], SLOTS * (WIDTH + 3), 1e-7f);
    }
}

static void try_draw(const char *isa, const fathom_kernels *k, int count) {
    enum { MOST = 1000, BLOCKS = MOST / 256 + 1 };
    float x[MOST], maxima[2][BLOCKS] = {{0}}, weights[2][MOST] = {{0}}, sums[2][3 * BLOCKS] = {{0}}, tops[BLOCKS];
    int32_t allowed[MOST / 32 + 1];
    fill(x, MOST);
    for (int i = 0; i < MOST / 32 + 1; i++) allowed[i] = i % 3 ? (int32_t)((uint32_t)i * 0x9E3779B1u) : -1;
    for (int i = 0; i < 2; i++) {
        const fathom_kernels *with = i ? k : &fathom_scalar;
        double masses[BLOCKS] = {0};
        with->draw_masses(x, count, 3.0f, maxima[i], masses, weights[i]);
        if (memcmp(weights[i], x, (size_t)count * sizeof *x)) failures++, fprintf(stderr, "%s draw_masses's copy\n", isa);
        for (int b = 0; b < BLOCKS; b++) sums[i][b] = (float)masses[b];
        with->draw_maxima(x, count, sums[i] + BLOCKS);
        fathom_weighted w = {x, count, count / 2, 1.0f, 3.0f, 0.0f};
        with->draw_weights(&w, count / 3, count - count / 3, weights[i]);
        with->draw_weights(&w, count / 2, 1, &w.bound); /* the same kernel's, so that the bound parts both alike */
        for (int b = 0; b < BLOCKS; b++) tops[b] = b == 1 ? 0 : 1; /* the second block is passed over */
        with->draw_kept(&w, tops, masses);
        for (int b = 0; b < BLOCKS; b++) sums[i][2 * BLOCKS + b] = (float)masses[b];
    }
    close_to(isa, "highest of blocks", maxima[1], maxima[0], BLOCKS, 0.0f);
    close_to(isa, "draw_maxima", sums[1] + BLOCKS, maxima[1], BLOCKS, 0.0f);
    close_to(isa, "draw_weights", weights[1], weights[0], MOST, 1e-5f);
    close_to(isa, "sums of weights", sums[1], sums[0], 3 * BLOCKS, 1e-5f);
    for (int i = 0; i < 2; i++) {
        memcpy(weights[i], x, sizeof x);
        (i ? k : &fathom_scalar)->draw_allow(allowed, count, weights[i]);
    }
    if (memcmp(weights[0], weights[1], sizeof *weights)) failures++, fprintf(stderr, "%s draw_allow\n", isa);
    double masses[BLOCKS];
    x[count / 2] = NAN;
    k->draw_masses(x, count, 1.0f, maxima[1], masses, NULL);
    if (!isnan(masses[count / 2 / 256])) failures++, fprintf(stderr, "%s draw_masses of NaN\n", isa);
}

static void try_all(int number) {
    static const int counts[] = {1, 2, 7, 8, 15, 16, 17, 33, 64, 100, 257};
    const char *isa = fathom_isa_name(number);
    if (fathom_use_isa(number)) exit(2);
    const fathom_kernels *k = fathom_current;
    try_products(isa, k);
    try_quantize(isa, k);
    try_pages(isa, k);
    for (int i = 0; i < 11; i++) try_rows(isa, k, counts[i]), try_draw(isa, k, 3 * counts[i] + 1);
    for (int rows = 1; rows <= 17; rows += 4)
        for (int count = 1; count <= FATHOM_ATTEND_KEYS; count += 9)
            for (int masked = 0; masked < 2; masked++) {
                try_attend(isa, k, rows, 64, 64, count, masked);
                try_attend(isa, k, rows, 144, 128, count, masked);
                try_attend(isa, k, rows, 37, 21, count, masked);
            }
    for (int rows = 1; rows <= 60; rows += 1 + rows / 3)
        for (int width = 1; width <= 64; width += 1 + width / 2)
            for (int causal = FATHOM_CAUSAL_COLUMNS; causal <= FATHOM_CAUSAL_TURNED; causal++)
                try_train(isa, k, rows, width, 1 + (int)draw() % 60, causal);
    printf("%s%s%s\n", isa, fathom_features() & FATHOM_HAS_BF16 ? " bf16" : "", fathom_features() & FATHOM_HAS_I8MM ? " i8mm" : "");
}

int main(void) {
    for (int isa = FATHOM_SCALAR; isa < FATHOM_ISAS; isa++)
        if (fathom_has_isa(isa)) try_all(isa);
    return failures != 0;
}
