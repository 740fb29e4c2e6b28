/* The matmul's innermost loop: c (rows, nv * VL) = or += a . b over k units, sums in registers.
 *
 * a and b are packed (gemm_pack.h) as 4-byte units: a's panel [k][CK_GEMM_MR], b's [k][CK_GEMM_NR]. A unit is an
 * fp32, or, in the paired kernels, two neighbours along k in bf16, which vdpbf16ps multiplies and adds to one
 * fp32 sum. Each number of rows and of vectors has a function of its own, so that the edges of C cost what they
 * hold. The order of additions to one element of C depends on k alone. */

#define CK_GEMM_NR (CK_GEMM_NV * VL)

typedef void (*gemm_tile_fn)(int64_t k, const float *a, const float *b, float *c, int64_t c_row, int add,
                             const char *near, int64_t near_row);

#if defined(CK_ISA_BF16)
INLINE vf v_add_products(vf sum, vf a, vf b, const int paired) {
    return paired ? _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b) : v_fma(a, b, sum);
}
#else
INLINE vf v_add_products(vf sum, vf a, vf b, const int paired) {
    (void)paired;
    return v_fma(a, b, sum);
}
#endif

/* `near` is where the caller will need the tile of C next, near_row bytes from row to row: it is fetched while the
 * last units are multiplied, a row at a time, since all at once would keep b waiting. */
INLINE void gemm_tile(const int rows, const int nv, const int paired, int64_t k, const float *a, const float *b,
                      float *c, int64_t c_row, int add, const char *near, int64_t near_row) {
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
#pragma GCC unroll 4
            for (int j = 0; j < nv * VL * 4; j += 64) __builtin_prefetch(near + j, 1);
            near += near_row;
        }
        left -= some;
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
    if (add) {
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
        int64_t k, const float *a, const float *b, float *c, int64_t c_row, int add, const char *near,      \
        int64_t near_row) {                                                                                 \
        gemm_tile(rows, nv, paired, k, a, b, c, c_row, add, near, near_row);                                \
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
#if CK_GEMM_NV == 3
#define CK_TILES(kind, paired)                                                                              \
    CK_EACH_ROWS(CK_TILE_FUNCTION, kind, paired, 1)                                                         \
    CK_EACH_ROWS(CK_TILE_FUNCTION, kind, paired, 2)                                                         \
    CK_EACH_ROWS(CK_TILE_FUNCTION, kind, paired, 3)                                                         \
    static const gemm_tile_fn gemm_tiles_##kind[CK_GEMM_NV][CK_GEMM_MR] = {                                 \
        {CK_EACH_ROWS(CK_TILE_ENTRY, kind, paired, 1)}, {CK_EACH_ROWS(CK_TILE_ENTRY, kind, paired, 2)},     \
        {CK_EACH_ROWS(CK_TILE_ENTRY, kind, paired, 3)}};
#else
#define CK_TILES(kind, paired)                                                                              \
    CK_EACH_ROWS(CK_TILE_FUNCTION, kind, paired, 1)                                                         \
    CK_EACH_ROWS(CK_TILE_FUNCTION, kind, paired, 2)                                                         \
    static const gemm_tile_fn gemm_tiles_##kind[CK_GEMM_NV][CK_GEMM_MR] = {                                 \
        {CK_EACH_ROWS(CK_TILE_ENTRY, kind, paired, 1)}, {CK_EACH_ROWS(CK_TILE_ENTRY, kind, paired, 2)}};
#endif

CK_TILES(f32, 0)
#if defined(CK_ISA_BF16)
CK_TILES(paired, 1)
#endif
