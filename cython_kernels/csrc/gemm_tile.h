/* The register tile of attention's products: c (rows, CK_NR) = or += a (rows, k) . b (k, CK_NR), all fp32.
 *
 * a[i * a_row + p * a_col] is broadcast, b is read in whole vectors, b_row apart. a_row and a_col are
 * constants of the call wherever one is unit and the other known, so that all rows are addressed from one
 * pointer. */

#define CK_PACK_SLACK 16   /* floats that packing may write past its end */

INLINE void tile(int64_t k, const float *a, const int64_t a_row, const int64_t a_col, const float *b,
                 int64_t b_row, float *c, int64_t c_row, int add) {
    vf sum[CK_MR][CK_NV];
#pragma GCC unroll 16
    for (int i = 0; i < CK_MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < CK_NV; j++) sum[i][j] = v_zero();
    for (int64_t p = 0; p < k; p++) {
        vf row[CK_NV];
#pragma GCC unroll 4
        for (int j = 0; j < CK_NV; j++) row[j] = v_load(b + j * VL);
#pragma GCC unroll 16
        for (int i = 0; i < CK_MR; i++) {
            const vf factor = v_set1(a[i * a_row]);
#pragma GCC unroll 4
            for (int j = 0; j < CK_NV; j++) sum[i][j] = v_fma(factor, row[j], sum[i][j]);
        }
        a += a_col;
        b += b_row;
    }
    if (add) {
#pragma GCC unroll 16
        for (int i = 0; i < CK_MR; i++)
#pragma GCC unroll 4
            for (int j = 0; j < CK_NV; j++) sum[i][j] = v_add(v_load(c + i * c_row + j * VL), sum[i][j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < CK_MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < CK_NV; j++) v_store(c + i * c_row + j * VL, sum[i][j]);
}

/* a packed: panels of CK_MR rows, [p][i]. */
static __attribute__((noinline)) void tile_packed(int64_t k, const float *a, const float *b, int64_t b_row,
                                                  float *c, int64_t c_row, int add) {
    tile(k, a, 1, CK_MR, b, b_row, c, c_row, add);
}

typedef float v4 __attribute__((vector_size(16)));
typedef float v4_unaligned __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t v4_index __attribute__((vector_size(16)));

/* Four vectors as the rows of a 4 x 4 matrix, transposed in place. */
INLINE void transpose4(v4 r[4]) {
    const v4 a = __builtin_shuffle(r[0], r[1], (v4_index){0, 4, 1, 5});
    const v4 b = __builtin_shuffle(r[0], r[1], (v4_index){2, 6, 3, 7});
    const v4 c = __builtin_shuffle(r[2], r[3], (v4_index){0, 4, 1, 5});
    const v4 d = __builtin_shuffle(r[2], r[3], (v4_index){2, 6, 3, 7});
    r[0] = __builtin_shuffle(a, c, (v4_index){0, 1, 4, 5});
    r[1] = __builtin_shuffle(a, c, (v4_index){2, 3, 6, 7});
    r[2] = __builtin_shuffle(b, d, (v4_index){0, 1, 4, 5});
    r[3] = __builtin_shuffle(b, d, (v4_index){2, 3, 6, 7});
}
