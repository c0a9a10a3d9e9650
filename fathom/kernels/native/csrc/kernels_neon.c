/* NEON with dot products (ARMv8.2). Functions that need i8mm have a target of their own and are called only where
 * fathom_features() has FATHOM_HAS_I8MM. */
#include "kernels_common.h"
#include "row_kernels.h"

const fathom_kernels fathom_neon = {
    .product = fathom_plain_product, .quantize_row = fathom_plain_quantize_row, FATHOM_ROW_KERNELS};
