/* The ABI between the doors (the .pyx files), the pool and the kernels.
 *
 * Every kernel has one shape: void kernel(const void *args, const ck_team *team). It is called once by
 * each thread of a team, with the same args; it takes its own part of the work by a pure function of the
 * sizes and of the team's size (split.h), so its result depends on the number of threads alone and never
 * on timing.
 *
 * Strides are counted in elements, never in bytes. The last dimension is contiguous, so it has no stride
 * here. "real" stands for the storage type of the table's row, fp32 or bf16; arithmetic is fp32 in both. */
#ifndef CK_KERNELS_H
#define CK_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define CK_ABI 1
#define CK_TABLE_CAPSULE "cktrain.cython_kernels.table"
#define CK_RUNTIME_CAPSULE "cktrain.cython_kernels.runtime"

#define CK_F32 0
#define CK_BF16 1
#define CK_STORAGES 2
#define CK_I32 2
#define CK_U8 3
#define CK_SCRATCH_BYTES (4 << 20)  /* workspace per thread */

#define CK_SHARED_BYTES (16 << 20)  /* workspace of a whole team */

typedef struct { int64_t l1, l2, l3; } ck_caches;  /* bytes: data of a core, of a core, of all that share it */

typedef struct ck_team {
    int index, size;        /* this thread, and how many take part */
    char *scratch;          /* this thread's CK_SCRATCH_BYTES, 64-byte aligned, contents undefined; those of
                             * the team lie one after the other in the order of the index */
    char *shared;           /* the team's CK_SHARED_BYTES, one for all, 64-byte aligned, contents undefined */
    const ck_caches *caches;
    void (*wait)(const struct ck_team *team);
} ck_team;

/* All threads of the team arrive before any goes on; writes made before are seen after. */
static inline void ck_barrier(const ck_team *team) {
    if (team->size > 1) team->wait(team);
}

/* The workspace of another thread of the team; a barrier must stand between its writes and our reads. */
static inline void *ck_scratch_of(const ck_team *team, int index) {
    return team->scratch + (ptrdiff_t)(index - team->index) * CK_SCRATCH_BYTES;
}

typedef void (*ck_kernel)(const void *args, const ck_team *team);

/* c (m, n) = or += a (m, k) . b (k, n) + bias f32 (n) + residual (m, n), of c's type. Any of the strides of a
 * and b may be the unit one. column_sums f32 (m) = or += sum over k of a: the bias gradient, when a is dy
 * transposed. residual may be c. With `lower`, of a symmetric c, register tiles above the diagonal are left out.
 *
 * With a `format` (quantized_blocks.h) b is rows of blocks, `block_row` bytes apart, and c's first column stands at b's
 * `first_col`; b_row and b_col are those of the values, one of them 1. */
typedef struct {
    void *c;
    const void *a, *b, *residual;
    const float *bias;
    float *column_sums;
    int64_t m, n, k, c_row, a_row, a_col, b_row, b_col, residual_row;
    int accumulate, lower, format;
    int64_t block_row, block_values, first_col;
} ck_gemm_args;

/* y (n, k) = the rows of w, blocks of `format`, that ids name; NULL: all of them. */
typedef struct {
    void *y;
    const uint8_t *w;
    const int32_t *ids;
    int64_t n, k, y_row, w_row;
    int format;
} ck_dequantize_args;

/* c (m, m) = scale a . a transposed + shift on the diagonal; product.b is a. */
typedef struct {
    ck_gemm_args product;
    float scale, shift;
} ck_symmetric_product_args;

typedef struct {
    void *y;                /* forward: y (n, c); backward: dtable f32 (v, c) */
    const void *x;          /* forward: table (v, c); backward: dy (n, c) */
    const int32_t *ids;
    int64_t n, c, y_row, x_row;
} ck_embedding_args;

/* Rows are (n, h) pairs of c elements each; a plain matrix has h = 1. */
typedef struct {
    void *y;
    float *mean, *rstd;
    const void *x, *residual;  /* residual is NULL or added to y */
    const float *w, *b;
    int64_t n, h, c, y_n, y_h, x_n, x_h, residual_n, residual_h;
    float eps, offset;      /* offset: added to w */
} ck_norm_forward_args;

typedef struct {
    void *dx;
    float *dw, *db;
    const void *dy, *x;
    const float *w, *mean, *rstd;
    int64_t n, h, c, dx_n, dx_h, dy_n, dy_h, x_n, x_h;
    int accumulate;
    float offset;
} ck_norm_backward_args;

typedef struct {
    void *y;
    const void *x;
    const float *cos, *sin;
    const int32_t *positions;
    int64_t n, h, d, y_n, y_h, x_n, x_h;
    int inverse;
} ck_rope_args;

typedef struct { int64_t batch, row, head; } ck_strides;

/* q, o, dq, do (B, S, H, D); k, v, dk, dv (B, T, K, D); lse, delta f32 (B, H, S). The rest may be NULL: first and end
 * int32 (B, S), in [0, T]; sinks, dsinks f32 (H); bias and dbias f32 (B, H, S, T), where an axis of one element has the
 * stride 0. softcap 0 is none. */
typedef struct {
    void *o, *dq, *dk, *dv;
    float *lse, *delta, *dsinks, *dbias;
    const void *q, *k, *v, *dout;
    const float *sinks, *bias;
    const int32_t *first, *end;
    int64_t b, s, t, h, kv, d, window;
    ck_strides o_s, q_s, k_s, v_s, dq_s, dk_s, dv_s, dout_s, bias_s, dbias_s;
    float scale, softcap;
    int causal;
} ck_attention_args;

/* o, real or f32, and part (B, S, H, D); lse, part_lse f32 (B, H, S). */
typedef struct {
    void *o;
    float *lse;
    const void *part;
    const float *part_lse;
    int64_t b, s, h, d;
    ck_strides o_s, part_s;
    int o_is_f32;
} ck_attention_merge_args;

/* q, o (B, H, D) and k, v (B, K, D) of one new token per sequence; keys, values (B, P, K, D), f32 or bf16: position i of a
 * sequence stands in row i mod P. lengths (B): tokens before the new one. chunks: partial results of a sequence at most. */
typedef struct {
    void *o, *keys, *values;
    const void *q, *k, *v;
    const int32_t *lengths;
    int64_t b, p, h, kv, d, window, chunks;
    ck_strides o_s, q_s, k_s, v_s, keys_s, values_s;
    float scale, softcap;
    int cache_is_bf16;
} ck_attention_cached_args;

typedef struct {
    void *y;                /* forward: y (n, i); backward: recomputed y or NULL */
    void *dgate_up;
    const void *dy, *gate_up;
    int64_t n, i, y_row, dgate_up_row, dy_row, gate_up_row;
} ck_gated_args;

/* Elementwise over (n, c): gelu, add, softcap. */
typedef struct {
    void *out;
    const void *a, *b;
    int64_t n, c, out_row, a_row, b_row;
    int tanh;
    float alpha;            /* add: out = a + alpha b; softcap: the bound */
} ck_pointwise_args;

/* Elements are kept where the hash of (key of the row, first_column + column) is at least `threshold`. */
typedef struct {
    void *out;
    const void *x;
    const int32_t *keys;
    int64_t n, c, out_row, x_row, first_column;
    uint32_t threshold;
    float scale;            /* of what is kept */
    int accumulate;
} ck_dropout_args;

typedef struct {
    float *row_max, *row_sum, *target_logit;
    void *dlogits;
    const float *lse;
    const void *logits;
    const int32_t *targets;
    int64_t n, v, logits_row, dlogits_row, ignore_index, vocab_start;
    float softcap;          /* of the logits; 0 is none */
} ck_cross_entropy_args;

typedef struct {
    float *param, *m, *v;
    const float *grad;
    uint16_t *copy;         /* adamw: the new param in bf16, or NULL */
    int64_t n, step;
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
    int nesterov;           /* sgd: beta1 is the momentum, m its buffer */
} ck_optimizer_args;

/* The numbers that a byte may stand for, from the least on, and how the byte of a number is found: `cells` holds the rank
 * of the least magnitude with the same upper bits, and `limits` the bits of what a magnitude must exceed for the next rank
 * (dynamic_map.py). */
#define CK_DYNAMIC_BLOCK 256
#define CK_DYNAMIC_CELLS 3073
typedef struct { const float *values; const int32_t *limits; const uint8_t *cells; } ck_dynamic_map;
typedef struct {
    float *param, *m_scale, *v_scale;
    uint8_t *m, *v;
    const float *grad;
    uint16_t *copy;         /* the new param in bf16, or NULL */
    int64_t n, step;
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
    ck_dynamic_map m_map, v_map;
} ck_adamw_8bit_args;

typedef struct { const void *x; int64_t n; double *sum; } ck_sum_of_squares_args;

typedef struct { void *dst; const void *src; int64_t n; } ck_cast_args;

/* The limits of the machine (peak.h). A register loop of `steps` rounds on every thread: the floating-point
 * operations of all threads, and what the sums come to, so that they are not optimised away. */
typedef struct { int64_t steps, flops; double result; } ck_peak_args;

/* out[j] = sum of in[i], for `writes` arrays out and `reads` arrays in of n elements each; out[j] may be an
 * in[i]; all 64-byte aligned. streaming: write past the caches. */
#define CK_STREAMS 4
typedef struct {
    const float *in[CK_STREAMS];
    float *out[CK_STREAMS];
    int64_t n;
    int reads, writes, streaming;
    double result;
} ck_stream_args;

/* reduce.h: dtypes and operations are numbered as in comm/csrc/reduce.h. */
enum { CK_REDUCE_F32, CK_REDUCE_BF16, CK_REDUCE_F64, CK_REDUCE_I32, CK_REDUCE_I64 };
typedef struct {
    void *const *dst;
    const void *const *src;
    int64_t count;
    int n_dst, n_src, dtype, op, stream;
} ck_reduce_args;

/* One kernel per op and storage type; the same list declares the table and fills it. */
#define CK_REAL_OPS(X)                                                                                      \
    X(gemm) X(gemm_f32) X(symmetric_product) X(quantized_forward) X(quantized_forward_f32)                  \
    X(quantized_forward_q8) X(quantized_forward_q8_f32) X(quantized_backward_input) X(dequantize)           \
    X(embedding_forward) X(embedding_backward)                                                              \
    X(rms_norm_forward) X(rms_norm_backward) X(layer_norm_forward) X(layer_norm_backward) X(rope)           \
    X(attention_forward) X(attention_backward) X(attention_merge) X(attention_cached) X(swiglu_forward)     \
    X(swiglu_backward) X(geglu_forward) X(geglu_backward) X(gelu_forward) X(gelu_backward) X(add) X(softcap) X(dropout)     \
    X(cross_entropy_forward) X(cross_entropy_backward) X(cross_entropy_backward_from_f32)                  \
    X(sum_of_squares) X(cast_to_f32) X(cast_to_bf16)
/* Kernels without a storage type. vector_*: vmath.h behind a door, so that its error bounds can be tested. */
#define CK_F32_OPS(X)                                                                                       \
    X(adamw_step) X(adamw_8bit_step) X(sgd_step) X(zero) X(reduce_n) X(peak_f32) X(peak_bf16) X(stream)              \
    X(vector_exp) X(vector_exp2)                                                                             \
    X(vector_exp2_degree4) X(vector_exp2_degree3) X(vector_sigmoid) X(vector_sigmoid_degree3) X(vector_tanh) \
    X(vector_normal_cdf) X(vector_normal_cdf_degree3)

typedef struct {
    int abi;
    const char *isa;
#define CK_DECLARE(op) ck_kernel op[CK_STORAGES];
    CK_REAL_OPS(CK_DECLARE)
#undef CK_DECLARE
#define CK_DECLARE(op) ck_kernel op;
    CK_F32_OPS(CK_DECLARE)
#undef CK_DECLARE
} ck_table;

#endif
