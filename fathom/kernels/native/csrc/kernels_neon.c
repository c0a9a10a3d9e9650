/* NEON with dot products (ARMv8.2). Functions that need i8mm have a target of their own and are called only where
 * fathom_features() has FATHOM_HAS_I8MM. */
#include "kernels_common.h"
#include "row_kernels.h"

const fathom_kernels fathom_neon = {
    .product = fathom_product_neon, .quantize_row = fathom_quantize_row_neon, FATHOM_ROW_KERNELS};
