/* AVX2 with FMA, F16C and AVX-VNNI. */
#include "kernels_common.h"
#include "row_kernels.h"

const fathom_kernels fathom_avxvnni = {
    .product = fathom_plain_product, .quantize_row = fathom_plain_quantize_row, FATHOM_ROW_KERNELS};
