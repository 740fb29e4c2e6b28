/* Everything that one instruction set's object holds: the ops for each storage type, then the table. All
 * is static; isa_<name>.c, which includes this, exports the table in a capsule and nothing else. */
#include <math.h>
#include <sched.h>
#include <string.h>

#include "kernels.h"
#include "split.h"
#include "simd.h"
#include "vmath.h"
#include "quantized_rows.h"
#include "gemm_kernel.h"
#include "gemm_plan.h"
#include "attention_plan.h"
#ifdef CK_ISA_AMX
#include "simd_amx.h"
#include "gemm_amx.h"
#else  /* no tiles, and nothing to make ready for them */
INLINE void t_begin(void) {}
INLINE void t_end(void) {}
#endif

#define CK_STORAGE 0
#include "real.h"
#include "gemm_pack.h"
#include "gemm_narrow.h"
#include "gemm_thin.h"
#include "quantized_pack.h"
#include "gemm.h"
#include "quantized.h"
#include "ops_embedding.h"
#include "ops_norm.h"
#include "ops_rope.h"
#include "attention_tile.h"
#include "attention_scores.h"
#include "attention_sinks.h"
#include "attention.h"
#include "attention_merge.h"
#include "attention_cached.h"
#include "ops_activation.h"
#include "ops_cross_entropy.h"
#include "ops_optimizer.h"
#include "ops_cast.h"

#undef CK_STORAGE
#define CK_STORAGE 1
#include "real.h"
#include "gemm_pack.h"
#include "gemm_narrow.h"
#include "gemm_thin.h"
#include "quantized_pack.h"
#include "gemm.h"
#include "quantized.h"
#include "ops_embedding.h"
#include "ops_norm.h"
#include "ops_rope.h"
#include "attention_tile.h"
#include "attention_scores.h"
#include "attention_sinks.h"
#include "attention.h"
#include "attention_merge.h"
#include "attention_cached.h"
#include "ops_activation.h"
#include "ops_cross_entropy.h"
#include "ops_optimizer.h"
#include "ops_cast.h"

#include "ops_vmath.h"
#include "peak.h"
#include "reduce.h"

#define CK_TABLE(isa_name)                                                                                  \
    static const ck_table table = {                                                                         \
        .abi = CK_ABI, .isa = isa_name, CK_REAL_OPS(CK_FILL_REAL) CK_F32_OPS(CK_FILL_F32)}
#define CK_FILL_REAL(op) .op = {op##_f32, op##_bf16},
#define CK_FILL_F32(op) .op = op,
