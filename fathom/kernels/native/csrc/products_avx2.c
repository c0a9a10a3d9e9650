#include "products_avx2.h"

PRODUCTS_OF(avx2)
