/* AVX-512 with BF16 (Cooper Lake, Sapphire Rapids, Zen 4 and later). */
#define CK_ISA_AVX512
#define CK_ISA_BF16
#define CK_ISA_NAME "avx512bf16"
#define CK_MODULE_INIT PyInit__isa_avx512bf16
#include "isa_module.h"
