/* AMX in plain C, for tests: products of bf16 by the same loops and packing as in isa_amx.c, on any CPU, slowly. */
#define CK_ISA_BF16
#define CK_ISA_AMX
#define CK_AMX_EMULATED
#define CK_ISA_NAME "amx_emulated"
#define CK_MODULE_INIT PyInit__isa_amx_emulated
#include "isa_module.h"
