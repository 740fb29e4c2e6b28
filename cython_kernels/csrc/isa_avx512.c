/* AVX-512 F, BW, DQ, VL (Skylake-SP, Zen 4 and later). */
#define CK_ISA_AVX512
#define CK_ISA_NAME "avx512"
#define CK_MODULE_INIT PyInit__isa_avx512
#include "isa_module.h"
