/* One product on all threads of a pool: they round the activations, meet, and share the panels. */
#include <stdatomic.h>
#include <stdlib.h>

#include "kernels.h"
#include "pool.h"

#define ALIGNED(bytes) (((bytes) + 63) & ~(int64_t)63)
#define FEW_ROWS 16          /* up to here the weights' bytes cost the time, and equal shares of panels are fair */
#define PARTS 4              /* of a thread's share that it takes at a time when rows are many */
#define ROWS_OF_A_PART 256

typedef struct {
    fathom_pool *pool;
    const fathom_matrix *w;
    fathom_rows x;
    int8_t *q;
    float *scales, *sums, *y;
    int64_t y_stride;
    int panels;              /* of a part */
    atomic_int next;
} product_call;

/* Round this thread's share of all rows' groups. */
static void quantize_share(product_call *call, int thread, int threads) {
    const int64_t row_groups = call->x.columns / FATHOM_GROUP, groups = row_groups * call->x.rows;
    int64_t group = groups * thread / threads;
    const int64_t end = groups * (thread + 1) / threads;
    while (group < end) {
        const int64_t row = group / row_groups, first = group % row_groups;
        const int64_t count = row_groups - first < end - group ? row_groups - first : end - group;
        fathom_current->quantize_row(call->x.x + row * call->x.stride + first * FATHOM_GROUP, (int)count * FATHOM_GROUP,
                                     call->q + group * FATHOM_GROUP, call->scales + group, call->sums + group);
        group += count;
    }
}

static void run_parts(product_call *call, int panels) {
    const int across = (panels + call->panels - 1) / call->panels;
    const int down = (call->x.rows + ROWS_OF_A_PART - 1) / ROWS_OF_A_PART;
    for (int part; (part = atomic_fetch_add_explicit(&call->next, 1, memory_order_relaxed)) < across * down;) {
        const int begin = part % across * call->panels, block = part / across;
        const int first = (int)((int64_t)call->x.rows * block / down);
        const int last = (int)((int64_t)call->x.rows * (block + 1) / down);
        const fathom_rows some = fathom_some_rows(&call->x, first, last - first);
        fathom_current->product(call->w, begin, begin + call->panels < panels ? begin + call->panels : panels, &some,
                                call->y + first * call->y_stride, call->y_stride);
    }
}

static void run_product(int thread, int threads, void *given) {
    product_call *call = given;
    const int panels = fathom_panels(call->w);
    if (call->q) {
        quantize_share(call, thread, threads);
        fathom_barrier(call->pool);
    }
    if (call->x.rows > FEW_ROWS)
        run_parts(call, panels);
    else
        fathom_current->product(call->w, (int)((int64_t)panels * thread / threads),
                                (int)((int64_t)panels * (thread + 1) / threads), &call->x, call->y, call->y_stride);
}

int fathom_product(fathom_pool *pool, const fathom_matrix *w, const float *x, int64_t x_stride, int rows, int quantize,
                   float *y, int64_t y_stride) {
    if (rows < 0) return fathom_fail("a product of %d rows", rows);
    if (rows == 0) return 0;
    product_call call = {.pool = pool, .w = w, .x = {.x = x, .stride = x_stride, .rows = rows, .columns = w->columns},
                         .y = y, .y_stride = y_stride};
    void *memory = NULL;
    if (quantize && w->format >= FATHOM_Q8) {
        const int64_t values = (int64_t)rows * w->columns, scales = values / FATHOM_GROUP * (int64_t)sizeof(float);
        if (posix_memalign(&memory, 64, (size_t)(ALIGNED(values) + 2 * ALIGNED(scales))))
            return fathom_fail("no memory for %d rows of activations in 8 bits", rows);
        call.x.q = call.q = memory;
        call.x.scales = call.scales = (float *)(call.q + ALIGNED(values));
        call.x.sums = call.sums = (float *)((char *)call.scales + ALIGNED(scales));
    }
    const int panels = fathom_panels(w), shares = PARTS * fathom_pool_threads(pool);
    call.panels = panels >= 2 * shares ? panels / shares & ~1 : panels > 1 ? 2 : 1;
    const int failed = fathom_pool_run(pool, run_product, &call);
    free(memory);
    return failed;
}
