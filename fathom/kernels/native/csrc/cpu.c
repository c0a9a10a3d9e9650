/* Which instruction sets this processor and its operating system offer, and which kernels run. The compiler's own tests
 * (__builtin_cpu_supports) differ between compilers, so cpuid and the state that the system saves are read here.
 * FATHOM_WITH_* say which tables the build holds. */
#include "kernels.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

const fathom_kernels *fathom_current = &fathom_scalar;
static int current = FATHOM_SCALAR;

static const struct {
    const char *name;
    const fathom_kernels *kernels; /* NULL: not in this build */
} tables[FATHOM_ISAS] = {
    [FATHOM_SCALAR] = {"scalar", &fathom_scalar},
    [FATHOM_AVX2] = {"avx2",
#ifdef FATHOM_WITH_AVX2
                     &fathom_avx2
#endif
    },
    [FATHOM_AVXVNNI] = {"avxvnni",
#ifdef FATHOM_WITH_AVXVNNI
                        &fathom_avxvnni
#endif
    },
    [FATHOM_AVX512] = {"avx512",
#ifdef FATHOM_WITH_AVX512
                       &fathom_avx512
#endif
    },
    [FATHOM_NEON] = {"neon",
#ifdef FATHOM_WITH_NEON
                     &fathom_neon
#endif
    },
};

#ifdef __x86_64__
static int bit(unsigned word, int place) { return word >> place & 1; }

/* The register states that the operating system saves (XCR0). */
static unsigned saved_states(void) {
    unsigned low, high;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int leaf(int number, int part, unsigned r[4]) {
    return __get_cpuid_count(number, part, &r[0], &r[1], &r[2], &r[3]);
}

static unsigned processor_features(void) {
    unsigned one[4], seven[4] = {0}, more[4] = {0}, features = 0;
    if (!leaf(1, 0, one) || !bit(one[2], 27) || !bit(one[2], 28)) return 0; /* OSXSAVE, AVX */
    const unsigned states = saved_states();
    if ((states & 0x06) != 0x06 || !leaf(7, 0, seven)) return 0;
    if (seven[0] >= 1) leaf(7, 1, more);
    const int avx2 = bit(seven[1], 5) && bit(one[2], 12) && bit(one[2], 29); /* with FMA and F16C */
    if (!avx2) return 0;
    features |= 1u << FATHOM_AVX2;
    if (bit(more[0], 4)) features |= 1u << FATHOM_AVXVNNI;
    const int avx512 = (states & 0xe6) == 0xe6 && bit(seven[1], 16) && bit(seven[1], 17) && bit(seven[1], 30) &&
                       bit(seven[1], 31) && bit(seven[2], 11); /* F, DQ, BW, VL, VNNI */
    if (avx512) features |= 1u << FATHOM_AVX512;
    if (avx512 && bit(more[0], 5)) features |= FATHOM_HAS_BF16;
    return features;
}
#elif defined(__aarch64__) && defined(__linux__)
static unsigned processor_features(void) {
    const unsigned long one = getauxval(AT_HWCAP), two = getauxval(AT_HWCAP2);
    if (!(one >> 20 & 1)) return 0; /* ASIMDDP */
    return 1u << FATHOM_NEON | (two >> 13 & 1 ? FATHOM_HAS_I8MM : 0) | (two >> 14 & 1 ? FATHOM_HAS_BF16 : 0);
}
#elif defined(__aarch64__) && defined(__APPLE__)
static int has(const char *name) {
    int value = 0;
    size_t bytes = sizeof value;
    return sysctlbyname(name, &value, &bytes, NULL, 0) == 0 && value;
}

static unsigned processor_features(void) {
    return 1u << FATHOM_NEON | (has("hw.optional.arm.FEAT_I8MM") ? FATHOM_HAS_I8MM : 0) |
           (has("hw.optional.arm.FEAT_BF16") ? FATHOM_HAS_BF16 : 0);
}
#else
static unsigned processor_features(void) { return 0; }
#endif

static unsigned features;

unsigned fathom_features(void) { return features; }

int fathom_has_isa(int isa) {
    return isa >= 0 && isa < FATHOM_ISAS && tables[isa].kernels && (isa == FATHOM_SCALAR || features >> isa & 1);
}

int fathom_best_isa(void) {
    int best = FATHOM_SCALAR;
    for (int isa = 0; isa < FATHOM_ISAS; isa++)
        if (fathom_has_isa(isa)) best = isa;
    return best;
}

const char *fathom_isa_name(int isa) { return isa >= 0 && isa < FATHOM_ISAS ? tables[isa].name : "unknown"; }

int fathom_use_isa(int isa) {
    if (isa < 0 || isa >= FATHOM_ISAS) return fathom_fail("there is no instruction set %d", isa);
    if (!tables[isa].kernels) return fathom_fail("this build has no kernels for %s", tables[isa].name);
    if (!fathom_has_isa(isa)) return fathom_fail("this processor has no %s", tables[isa].name);
    current = isa;
    fathom_current = tables[isa].kernels;
    return 0;
}

int fathom_current_isa(void) { return current; }

__attribute__((constructor)) static void choose(void) {
    features = processor_features();
    fathom_use_isa(fathom_best_isa());
}
