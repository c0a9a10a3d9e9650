/* Entries of a table of kernels that work on rows, for the vectors of the instruction set that includes this. */
#ifndef FATHOM_ROW_KERNELS_H
#define FATHOM_ROW_KERNELS_H

#include "attend.h"
#include "elementwise.h"
#include "gradients.h"
#include "kernels_draw.h"
#include "page_rows.h"
#include "train_tiles.h"

#define FATHOM_ROW_KERNELS                                                                                             \
    .rms_norm = row_rms_norm, .silu_multiply = row_silu_multiply, .add_scaled = row_add_scaled, .rotate = row_rotate,  \
    .pack_queries = attend_pack, .attend = attend_block, .soften = row_soften, .softmax = row_softmax, .argmax = row_argmax,                 \
    .widen = row_widen, .narrow = row_narrow, .read_rows = page_read_rows, .write_row = page_write_row,                \
    .silu_multiply_gradient = row_silu_multiply_gradient, .rms_norm_gradient = row_rms_norm_gradient,                  \
    .strips_of_rows = strips_of_rows, .strips_of_columns = strips_of_columns, .small_product = small_product,          \
    .dot = row_dot, .blend = row_blend, .slopes = row_slopes, FATHOM_DRAW_KERNELS

#endif
