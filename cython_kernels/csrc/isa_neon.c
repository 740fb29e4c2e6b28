/* NEON of AArch64 (Armv8-A and later). */
#define CK_ISA_NEON
#define CK_ISA_NAME "neon"
#define CK_MODULE_INIT PyInit__isa_neon
#include "isa_module.h"
