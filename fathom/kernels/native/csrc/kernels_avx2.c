/* AVX2 with FMA and F16C. */
#include "kernels_common.h"

const fathom_kernels fathom_avx2 = FATHOM_PLAIN_KERNELS;
