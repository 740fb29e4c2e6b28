/* Packing for attention's register tile (gemm_tile.h): fp32 panels, whatever the storage type. Included once
 * per storage type. */

INLINE v4 FN(load4)(const real *p) {
#if CK_STORAGE == CK_BF16
    return (v4){r_get(p), r_get(p + 1), r_get(p + 2), r_get(p + 3)};
#else
    return *(const v4_unaligned *)p;
#endif
}

/* One panel: dst[p * width + j] = src[j * j_stride + p * p_stride] for p < k, j < count, zero for count <=
 * j < width. One of the two strides is 1. Up to CK_PACK_SLACK floats past the end of the panel may be
 * written. */
INLINE void FN(pack_panel)(float *dst, const int width, const real *src, int64_t j_stride, int64_t p_stride,
                           int64_t count, int64_t k) {
    if (j_stride == 1) {
        for (int64_t p = 0; p < k; p++, dst += width, src += p_stride)
            for (int64_t j = 0; j < width; j += VL)
                v_store_n(dst + j, r_load_n(src + j, ck_max(0, ck_min(VL, count - j))),
                          ck_min(VL, width - j));
        return;
    }
    /* Groups of four columns, the last first: where the panel's width is no multiple of four, the last
     * group spills into the next p's first lanes, which are written after it. */
    for (int64_t j = (width - 1) / 4 * 4; j >= 0; j -= 4) {
        const real *rows[4];
        for (int64_t i = 0; i < 4; i++) rows[i] = src + ck_min(j + i, count - 1) * j_stride;
        int64_t p = 0;
        if (j + 4 <= count || (count == width && j < count)) {
            for (; p + 4 <= k; p += 4) {
                v4 block[4] = {FN(load4)(rows[0] + p), FN(load4)(rows[1] + p), FN(load4)(rows[2] + p),
                               FN(load4)(rows[3] + p)};
                transpose4(block);
                for (int64_t i = 0; i < 4; i++) *(v4_unaligned *)(dst + (p + i) * width + j) = block[i];
            }
        }
        for (; p < k; p++)
            for (int64_t i = 0; i < 4 && j + i < width; i++)
                dst[p * width + j + i] = j + i < count ? r_get(rows[i] + p * p_stride) : 0.0f;
    }
}

static __attribute__((noinline)) void FN(pack_a)(float *dst, const real *a, int64_t a_row, int64_t a_col,
                                                 int64_t m, int64_t k) {
    for (int64_t i = 0; i < m; i += CK_MR, dst += CK_MR * k)
        FN(pack_panel)(dst, CK_MR, a + i * a_row, a_row, a_col, ck_min(CK_MR, m - i), k);
}
