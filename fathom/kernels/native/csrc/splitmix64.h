/* How splitmix64 mixes the bits of a number: random numbers and the experts of a token are made of it. */
#ifndef FATHOM_SPLITMIX64_H
#define FATHOM_SPLITMIX64_H

#include <stdint.h>

static inline uint64_t fathom_mixed(uint64_t word) {
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9u;
    word = (word ^ word >> 27) * 0x94D049BB133111EBu;
    return word ^ word >> 31;
}

#endif
