/* AVX-512 (F, BW, VL, DQ, VNNI). Functions that need AVX512-BF16 have a target of their own and are called only where
 * fathom_features() has FATHOM_HAS_BF16. */
#include "kernels_common.h"
#include "row_kernels.h"

const fathom_kernels fathom_avx512 = {
    .product = fathom_product_avx512, .quantize_row = fathom_quantize_row_avx512, FATHOM_ROW_KERNELS};
