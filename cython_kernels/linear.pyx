"""Linear layers and matmul: one packed, register-tiled kernel (csrc/gemm.h) behind five doors.

Shapes: N rows, I input features, O output features; (M, N, K) in matmul. `real` is float32 or bfloat16, one
for all arguments of a call unless said otherwise; products are summed in fp32 and a bfloat16 result is
rounded once.
"""

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel gemm_f32[2]
        ck_kernel symmetric_product[2]
        ck_kernel gemm[2]
    ctypedef struct ck_gemm_args:
        void *c
        const void *a
        const void *b
        const void *residual
        const float *bias
        float *column_sums
        int64_t m, n, k, c_row, a_row, a_col, b_row, b_col, residual_row
        int accumulate, lower, format
        int64_t first_col
    ctypedef struct ck_symmetric_product_args:
        ck_gemm_args product
        float scale, shift


cdef inline void operands(ck_gemm_args *g, const ck_array *c, const ck_array *a, bint transpose_a,
                          const ck_array *b, bint transpose_b, bint accumulate) noexcept:
    g.c = c.data
    g.a = a.data
    g.b = b.data
    g.bias = NULL
    g.residual = NULL
    g.column_sums = NULL
    g.m = c.shape[0]
    g.n = c.shape[1]
    g.k = a.shape[0] if transpose_a else a.shape[1]
    g.c_row = c.stride[0]
    g.a_row = 1 if transpose_a else a.stride[0]
    g.a_col = a.stride[0] if transpose_a else 1
    g.b_row = 1 if transpose_b else b.stride[0]
    g.b_col = b.stride[0] if transpose_b else 1
    g.residual_row = 0
    g.accumulate = accumulate
    g.lower = False
    g.format = 0  # no blocks
    g.first_col = 0


cdef inline void run(ck_kernel kernel, const ck_gemm_args *g) noexcept:
    """The work is the multiplications', or, of a few rows, that of reading b."""
    with nogil:
        rt.run(kernel, g, sizeof(g[0]), max(g.m * g.n // 4 * (g.k // 4 + 1), g.n * g.k // 4))


def linear_forward(y, x, w, bias=None, residual=None):
    """y (N,O) = x (N,I) · w (O,I)ᵀ + bias float32 (O) + residual (N,O). Rows strided; residual may be y.

    x and w real; y and residual of the same type, or both float32.
    """
    cdef const char *op = b"linear_forward"
    cdef ck_array ay, ax, aw, extra
    cdef ck_gemm_args g
    rt.take(&ay, y, op, b"y", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(2, 2))
    rt.take(&aw, w, op, b"w", CK_IS_REAL | CK_DIMS(2, 2))
    rt.same_dtype(&aw, op, b"w", &ax, b"x")
    if ay.dtype != CK_F32:
        rt.same_dtype(&ax, op, b"x", &ay, b"y")
    rt.match(&ay, op, b"y", 0, ax.shape[0], b"x")
    rt.match(&aw, op, b"w", 1, ax.shape[1], b"x")
    rt.match(&ay, op, b"y", 1, aw.shape[0], b"w")
    operands(&g, &ay, &ax, False, &aw, True, False)
    if bias is not None:
        rt.take(&extra, bias, op, b"bias", CK_IS_F32 | CK_DIMS(1, 1))
        rt.match(&extra, op, b"bias", 0, aw.shape[0], b"w")
        g.bias = <const float *> extra.data
    if residual is not None:
        rt.take(&extra, residual, op, b"residual", CK_IS_REAL | CK_DIMS(2, 2))
        rt.same_dtype(&extra, op, b"residual", &ay, b"y")
        rt.match(&extra, op, b"residual", 0, ay.shape[0], b"y")
        rt.match(&extra, op, b"residual", 1, ay.shape[1], b"y")
        g.residual = extra.data
        g.residual_row = extra.stride[0]
    run(rt.table.gemm_f32[ax.dtype] if ay.dtype == CK_F32 else rt.table.gemm[ax.dtype], &g)


def linear_backward_input(dx, dy, w, accumulate=False):
    """dx (N,I) = or += dy (N,O) · w (O,I). All real, rows may be strided."""
    cdef const char *op = b"linear_backward_input"
    cdef ck_array ax, ay, aw
    cdef ck_gemm_args g
    rt.take(&ax, dx, op, b"dx", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    rt.take(&ay, dy, op, b"dy", CK_IS_REAL | CK_DIMS(2, 2))
    rt.take(&aw, w, op, b"w", CK_IS_REAL | CK_DIMS(2, 2))
    rt.same_dtype(&ay, op, b"dy", &ax, b"dx")
    rt.same_dtype(&aw, op, b"w", &ax, b"dx")
    rt.match(&ax, op, b"dx", 0, ay.shape[0], b"dy")
    rt.match(&ax, op, b"dx", 1, aw.shape[1], b"w")
    rt.match(&aw, op, b"w", 0, ay.shape[1], b"dy")
    operands(&g, &ax, &ay, False, &aw, False, accumulate)
    run(rt.table.gemm[ax.dtype], &g)


def linear_backward_weight(dw, dbias, dy, x, accumulate=True):
    """dw float32 (O,I) = or += dy (N,O)ᵀ · x (N,I); dbias float32 (O), or None, likewise dy's rows. dy, x real."""
    cdef const char *op = b"linear_backward_weight"
    cdef ck_array aw, ab, ay, ax
    cdef ck_gemm_args g
    rt.take(&aw, dw, op, b"dw", CK_IS_F32 | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    rt.take(&ay, dy, op, b"dy", CK_IS_REAL | CK_DIMS(2, 2))
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(2, 2))
    rt.same_dtype(&ax, op, b"x", &ay, b"dy")
    rt.match(&ax, op, b"x", 0, ay.shape[0], b"dy")
    rt.match(&aw, op, b"dw", 0, ay.shape[1], b"dy")
    rt.match(&aw, op, b"dw", 1, ax.shape[1], b"x")
    operands(&g, &aw, &ay, True, &ax, False, accumulate)
    if dbias is not None:
        rt.take(&ab, dbias, op, b"dbias", CK_IS_F32 | CK_DIMS(1, 1) | CK_IS_WRITTEN)
        rt.match(&ab, op, b"dbias", 0, ay.shape[1], b"dy")
        g.column_sums = <float *> ab.data
    run(rt.table.gemm_f32[ay.dtype], &g)


def matmul(out, a, b, transpose_a=False, transpose_b=False, accumulate=False):
    """out (M,N) = or += op(a) (M,K) · op(b) (K,N), op transposes or not. All real, rows may be strided."""
    cdef const char *op = b"matmul"
    cdef ck_array ac, aa, ab
    cdef ck_gemm_args g
    cdef bint ta = transpose_a, tb = transpose_b
    rt.take(&ac, out, op, b"out", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    rt.take(&aa, a, op, b"a", CK_IS_REAL | CK_DIMS(2, 2))
    rt.take(&ab, b, op, b"b", CK_IS_REAL | CK_DIMS(2, 2))
    rt.same_dtype(&aa, op, b"a", &ac, b"out")
    rt.same_dtype(&ab, op, b"b", &ac, b"out")
    rt.match(&ac, op, b"out", 0, aa.shape[ta], b"a")
    rt.match(&ac, op, b"out", 1, ab.shape[not tb], b"b")
    rt.match(&ab, op, b"b", tb, aa.shape[not ta], b"a")
    operands(&g, &ac, &aa, ta, &ab, tb, accumulate)
    run(rt.table.gemm[ac.dtype], &g)


def symmetric_product(out, x, transpose=False, scale=1.0, shift=0.0):
    """out (M,M) = scale · op(x) · op(x)ᵀ + shift on the diagonal, op(x) (M,K) being x or, transposed, xᵀ. All real."""
    cdef const char *op = b"symmetric_product"
    cdef ck_array ac, ax
    cdef ck_symmetric_product_args a
    cdef bint t = transpose
    rt.take(&ac, out, op, b"out", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(2, 2))
    rt.same_dtype(&ax, op, b"x", &ac, b"out")
    rt.match(&ac, op, b"out", 0, ax.shape[t], b"x")
    rt.match(&ac, op, b"out", 1, ax.shape[t], b"x")
    operands(&a.product, &ac, &ax, t, &ax, not t, False)
    a.product.lower = True
    a.scale, a.shift = scale, shift
    with nogil:
        rt.run(rt.table.symmetric_product[ac.dtype], &a, sizeof(a),
               a.product.m * a.product.m // 8 * (a.product.k // 4 + 1))
