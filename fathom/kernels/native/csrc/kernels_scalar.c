/* Plain C, for processors that have nothing better and as the reference of the others. */
#include "kernels_common.h"

const fathom_kernels fathom_scalar = FATHOM_PLAIN_KERNELS;
