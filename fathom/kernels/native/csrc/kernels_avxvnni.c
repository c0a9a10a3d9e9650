/* AVX2 with FMA, F16C and AVX-VNNI. */
#include "kernels_common.h"
#include "row_kernels.h"

const fathom_kernels fathom_avxvnni = {
    .product = fathom_product_avxvnni, .quantize_row = fathom_quantize_row_avxvnni, FATHOM_ROW_KERNELS};
