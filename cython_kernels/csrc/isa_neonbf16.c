/* NEON with bf16 products (FEAT_BF16: Armv8.6-A, Neoverse V1 and N2, Apple M2 and later). */
#define CK_ISA_NEON
#define CK_ISA_BF16
#define CK_ISA_NAME "neonbf16"
#define CK_MODULE_INIT PyInit__isa_neonbf16
#include "isa_module.h"
