/* AVX2 with FMA and F16C. */
#include "kernels_common.h"
#include "row_kernels.h"

const fathom_kernels fathom_avx2 = {
    .product = fathom_product_avx2, .quantize_row = fathom_quantize_row_avx2, FATHOM_ROW_KERNELS};
