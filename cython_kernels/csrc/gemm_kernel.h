/* The matmul's innermost loop: c (rows, nv * VL) = or += a . b over k units, sums in registers.
 *
 * a and b are packed (gemm_pack.h) as 4-byte units: a's panel [k][CK_GEMM_MR], b's [k][CK_GEMM_NR]. A unit is an
 * fp32, or, in the paired kernels, two neighbours along k in bf16, which vdpbf16ps multiplies and adds to one
 * fp32 sum. Each number of rows and of vectors has a function of its own, so that the edges of C cost what they
 * hold. The order of additions to one element of C depends on k alone. */

#define CK_GEMM_NR (CK_GEMM_NV * VL)

/* Lines of memory to be asked for while something else is computed, so many at a time: `each` of what will be read,
 * rows of `lines` lines, and `into_each` of what will be written, which the cache reads before it is overwritten. */
typedef struct {
    const char *row, *into;
    int64_t row_bytes, lines, line, each, into_each;  /* line: the next one of this row */
} ck_fetch;

enum { CK_TILE_WRITE, CK_TILE_ADD, CK_TILE_BF16 };  /* c = sums, c += sums, or bf16 c = before + sums + residual */

/* Where a tile's sums go, and what is fetched meanwhile. */
typedef struct {
    void *c;
    const void *residual;   /* with CK_TILE_BF16: bf16, or NULL */
    const float *before;    /* the sums of the steps before, with CK_TILE_BF16; or NULL */
    int64_t c_row, residual_row, before_row, store, rows;
    const char *near;       /* where the caller will need the tile of C next */
    const char *beside;     /* the tile of the residual, or NULL */
    int64_t near_row, near_bytes, beside_row;
    ck_fetch fetch;
} ck_tile_out;

typedef void (*gemm_tile_fn)(int64_t k, const float *a, const float *b, ck_tile_out *out);

#if defined(CK_ISA_BF16)
INLINE vf v_add_products(vf sum, vf a, vf b, const int paired) {
    return paired ? v_dot_pairs(a, b, sum) : v_fma(a, b, sum);
}
#else
INLINE vf v_add_products(vf sum, vf a, vf b, const int paired) {
    (void)paired;
    return v_fma(a, b, sum);
}
#endif

/* `near` is fetched while the last units are multiplied, a row at a time, since all at once would keep b waiting. */
INLINE void gemm_tile(const int rows, const int nv, const int paired, int64_t k, const float *a, const float *b,
                      ck_tile_out *out) {
    const char *near = out->near, *beside = out->beside;
    const float *before = out->before;
    ck_fetch f = out->fetch;
    vf sum[CK_GEMM_MR][CK_GEMM_NV];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) sum[i][j] = v_zero();
    int64_t left = k, rows_left = rows;
    while (left > 0) {
        const int64_t some = left % 8 ? left % 8 : 8;
        if (left <= 8 * (CK_GEMM_MR + 16) && rows_left > 0) {
            rows_left--;
            __builtin_prefetch(near, 1);
            if (out->near_bytes > 64) __builtin_prefetch(near + 64, 1);
            near += out->near_row;
            if (beside) {
                __builtin_prefetch(beside);
                if (out->near_bytes > 64) __builtin_prefetch(beside + 64);
                beside += out->beside_row;
            }
            if (before) {
                __builtin_prefetch(before);
                __builtin_prefetch(before + 16);
                before += out->before_row;
            }
        }
        left -= some;
        for (int64_t q = 0; q < f.each; q++) {
            __builtin_prefetch(f.row + f.line * 64, 0, 2);
            if (++f.line == f.lines) {
                f.line = 0;
                f.row += f.row_bytes;
            }
        }
        for (int64_t q = 0; q < f.into_each; q++, f.into += 64) __builtin_prefetch(f.into, 1, 2);
        for (int64_t p = 0; p < some; p++) {
            vf row[CK_GEMM_NV];
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) row[j] = v_load(b + j * VL);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                const vf factor = v_set1(a[i]);
#pragma GCC unroll 4
                for (int j = 0; j < nv; j++) sum[i][j] = v_add_products(sum[i][j], factor, row[j], paired);
            }
            a += CK_GEMM_MR;
            b += CK_GEMM_NR;
        }
    }
    out->fetch = f;
    const int64_t c_row = out->c_row;
#if defined(CK_ISA_BF16)
    if (paired && nv == 2 && out->store == CK_TILE_BF16) {
        uint16_t *c = out->c;
        const uint16_t *residual = out->residual;
        if ((before = out->before)) {
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++, before += out->before_row)
#pragma GCC unroll 4
                for (int j = 0; j < nv; j++) sum[i][j] = v_add(v_load(before + j * VL), sum[i][j]);
        }
        if (residual) {
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++, residual += out->residual_row)
#pragma GCC unroll 4
                for (int j = 0; j < nv; j++) sum[i][j] = v_add(sum[i][j], v_load_bf16_n(residual + j * VL, VL));
        }
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) v_store((float *)(c + i * c_row), v_pairs_along(sum[i][0], sum[i][1]));
        return;
    }
#endif
    float *c = out->c;
    if (out->store == CK_TILE_ADD) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[i][j] = v_add(v_load(c + i * c_row + j * VL), sum[i][j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) v_store(c + i * c_row + j * VL, sum[i][j]);
}

#define CK_TILE_NAME(kind, rows, nv) gemm_tile_##kind##_##rows##x##nv
#define CK_TILE_FUNCTION(kind, paired, rows, nv)                                                            \
    static __attribute__((noinline)) void CK_TILE_NAME(kind, rows, nv)(                                     \
        int64_t k, const float *a, const float *b, ck_tile_out *out) {                                      \
        gemm_tile(rows, nv, paired, k, a, b, out);                                                          \
    }

/* X(kind, paired, rows, nv) for every number of rows */
#define CK_EACH_4(X, kind, paired, nv)                                                                      \
    X(kind, paired, 1, nv) X(kind, paired, 2, nv) X(kind, paired, 3, nv) X(kind, paired, 4, nv)
#define CK_EACH_6(X, kind, paired, nv)                                                                      \
    CK_EACH_4(X, kind, paired, nv) X(kind, paired, 5, nv) X(kind, paired, 6, nv)
#define CK_EACH_8(X, kind, paired, nv)                                                                      \
    CK_EACH_6(X, kind, paired, nv) X(kind, paired, 7, nv) X(kind, paired, 8, nv)
#define CK_EACH_14(X, kind, paired, nv)                                                                     \
    CK_EACH_8(X, kind, paired, nv) X(kind, paired, 9, nv) X(kind, paired, 10, nv) X(kind, paired, 11, nv)   \
    X(kind, paired, 12, nv) X(kind, paired, 13, nv) X(kind, paired, 14, nv)
#if CK_GEMM_MR == 14
#define CK_EACH_ROWS CK_EACH_14
#elif CK_GEMM_MR == 8
#define CK_EACH_ROWS CK_EACH_8
#elif CK_GEMM_MR == 6
#define CK_EACH_ROWS CK_EACH_6
#else
#define CK_EACH_ROWS CK_EACH_4
#endif
#define CK_TILE_ENTRY(kind, paired, rows, nv) CK_TILE_NAME(kind, rows, nv),
#define CK_TILES(kind, paired)                                                                              \
    CK_EACH_ROWS(CK_TILE_FUNCTION, kind, paired, 1)                                                         \
    CK_EACH_ROWS(CK_TILE_FUNCTION, kind, paired, 2)                                                         \
    static const gemm_tile_fn gemm_tiles_##kind[CK_GEMM_NV][CK_GEMM_MR] = {                                 \
        {CK_EACH_ROWS(CK_TILE_ENTRY, kind, paired, 1)}, {CK_EACH_ROWS(CK_TILE_ENTRY, kind, paired, 2)}};

CK_TILES(f32, 0)
#if defined(CK_ISA_BF16) && !defined(CK_ISA_AMX)
CK_TILES(paired, 1)
#endif
