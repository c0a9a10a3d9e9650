/* AVX-512 (F, BW, VL, DQ, VNNI). Functions that need AVX512-BF16 have a target of their own and are called only where
 * fathom_features() has FATHOM_HAS_BF16. */
#include "kernels_common.h"

const fathom_kernels fathom_avx512 = FATHOM_PLAIN_KERNELS;
