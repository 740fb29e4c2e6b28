/* x86-64: CPUID leaves 1 and 7, and XCR0 for what the operating system saves at a task switch (Intel SDM vol. 1,
 * 14.3, 15.2). AArch64: what Linux tells of the processor in the auxiliary vector. */
#define _GNU_SOURCE
#include "cpu.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>

static unsigned xcr0(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

#define BIT(word, n) ((word) >> (n) & 1u)

int ck_cpu_supports(const char *isa) {
    if (strcmp(isa, "generic") == 0) return 1;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !BIT(c, 27) /* OSXSAVE */ || !BIT(c, 28) /* AVX */) return 0;
    const unsigned fma_f16c = BIT(c, 12) & BIT(c, 29), saved = xcr0();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const unsigned leaves = a;
    const int avx2 = fma_f16c && BIT(b, 5) && (saved & 0x6) == 0x6;  /* XMM, YMM */
    const int avx512 = avx2 && BIT(b, 16) /* F */ && BIT(b, 17) /* DQ */
                       && BIT(b, 30) /* BW */ && BIT(b, 31) /* VL */
                       && (saved & 0xe6) == 0xe6;  /* and opmask, ZMM */
    if (strcmp(isa, "avx2") == 0) return avx2;
    if (strcmp(isa, "avx512") == 0) return avx512;
    const int tiles = BIT(d, 22) /* AMX-BF16 */ && BIT(d, 24) /* AMX-TILE */;
    if (!avx512 || leaves < 1) return 0;
    __cpuid_count(7, 1, a, b, c, d);
    if (strcmp(isa, "avx512bf16") == 0) return BIT(a, 5);
    return strcmp(isa, "amx") == 0 && BIT(a, 5) && tiles;
}

/* Linux, Documentation/arch/x86/xstate.rst: the tiles' state, 8 KB for each thread, is kept for a process that asks. */
#define TILE_DATA 18
#define ARCH_REQ_XCOMP_PERM 0x1023

int ck_cpu_ask_for_tiles(void) {
    if ((xcr0() & 0x60000) != 0x60000) return ENOTSUP;  /* the tiles and what describes them */
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 ? 0 : errno;
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

#define HAS_BF16 (1UL << 14)  /* Linux, arch/arm64/include/uapi/asm/hwcap.h: HWCAP2_BF16 */

int ck_cpu_supports(const char *isa) {
    if (strcmp(isa, "neonbf16") == 0) return (getauxval(AT_HWCAP2) & HAS_BF16) != 0;
    return strcmp(isa, "generic") == 0 || strcmp(isa, "neon") == 0;  /* NEON is part of Armv8-A */
}
int ck_cpu_ask_for_tiles(void) { return ENOTSUP; }

#else

int ck_cpu_supports(const char *isa) { return strcmp(isa, "generic") == 0; }
int ck_cpu_ask_for_tiles(void) { return ENOTSUP; }

#endif
