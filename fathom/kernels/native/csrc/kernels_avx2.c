/* AVX2 with FMA and F16C. */
#include "kernels_common.h"
#include "row_kernels.h"

const fathom_kernels fathom_avx2 = {
    .product = fathom_plain_product, .quantize_row = fathom_plain_quantize_row, FATHOM_ROW_KERNELS};
