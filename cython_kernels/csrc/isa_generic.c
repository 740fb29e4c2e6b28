/* The baseline of the compiler's target (SSE2 on x86-64): runs anywhere. */
#define CK_ISA_NAME "generic"
#define CK_MODULE_INIT PyInit__isa_generic
#include "isa_module.h"
