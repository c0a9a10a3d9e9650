/* AVX2 with FMA, F16C and AVX-VNNI. */
#include "kernels_common.h"

const fathom_kernels fathom_avxvnni = FATHOM_PLAIN_KERNELS;
