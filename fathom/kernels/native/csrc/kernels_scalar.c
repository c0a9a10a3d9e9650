/* Plain C, for processors that have nothing better and as the reference of the others. */
#define FATHOM_NO_VECTORS
#include "kernels_common.h"
#include "row_kernels.h"

const fathom_kernels fathom_scalar = {
    .product = fathom_plain_product, .quantize_row = fathom_plain_quantize_row, FATHOM_ROW_KERNELS};
