/* AVX512_BF16, with products of bf16 by the tiles of AMX (Sapphire Rapids and later). */
#define CK_ISA_AVX512
#define CK_ISA_BF16
#define CK_ISA_AMX
#define CK_ISA_NAME "amx"
#define CK_MODULE_INIT PyInit__isa_amx
#include "isa_module.h"
