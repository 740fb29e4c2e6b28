/* AVX2 and FMA (Haswell, Zen and later). */
#define CK_ISA_AVX2
#define CK_ISA_NAME "avx2"
#define CK_MODULE_INIT PyInit__isa_avx2
#include "isa_module.h"
