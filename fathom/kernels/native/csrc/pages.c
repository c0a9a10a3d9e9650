/* Rows of cache pages, by the kernels of the chosen instruction set. */
#include "pages.h"

#include "kernels.h"

void fathom_write_rows(const fathom_pages *pages, const int64_t *slots, int count, const float *x, int64_t stride) {
    for (int i = 0; i < count; i++) fathom_current->write_row(pages, slots[i], x + i * stride);
}

void fathom_read_rows(const fathom_pages *pages, int64_t slot, int count, int column, int columns, float *out,
                      int64_t stride) {
    fathom_current->read_rows(pages, slot, count, column, columns, out, stride);
}
