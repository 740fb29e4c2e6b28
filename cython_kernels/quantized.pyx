"""Products with weights that are stored in blocks (csrc/quantized.h), and their values.

Shapes: N rows, I input features, O output features; w is (O, W) uint8, W the bytes of a row of I values in the blocks of
`format`, one of `block_formats.BLOCK_FORMATS`. Products are summed in fp32.
"""

include "_door.pxi"

from cktrain.cython_kernels.block_formats import NOT_INTEGERS, block_format

cdef extern from "kernels.h" nogil:
    ctypedef unsigned char uint8_t
    ctypedef struct ck_table:
        ck_kernel quantized_forward[2]
        ck_kernel quantized_forward_f32[2]
        ck_kernel quantized_forward_q8[2]
        ck_kernel quantized_forward_q8_f32[2]
        ck_kernel quantized_backward_input[2]
        ck_kernel dequantize[2]
    ctypedef struct ck_gemm_args:
        void *c
        const void *a
        const void *b
        const void *residual
        const float *bias
        float *column_sums
        int64_t m, n, k, c_row, a_row, a_col, b_row, b_col, residual_row
        int accumulate, lower, format
        int64_t block_row, block_values, first_col
    ctypedef struct ck_dequantize_args:
        void *y
        const uint8_t *w
        const int32_t *ids
        int64_t n, k, y_row, w_row
        int format


cdef object take_blocks(ck_array *w, object given, const char *op, object format, int64_t width):
    """w, whose rows must be those of `width` values in blocks of the format, which is returned."""
    rt.take(w, given, op, b"w", CK_IS_U8 | CK_DIMS(2, 2))
    found = block_format((<bytes> op).decode(), format, width)
    rt.match(w, op, b"w", 1, found.row_bytes(width), b"the format")
    return found


cdef inline void operands(ck_gemm_args *g, const ck_array *c, const ck_array *a, const ck_array *w, object format,
                          bint accumulate):
    g.c = c.data
    g.a = a.data
    g.b = w.data
    g.bias = NULL
    g.residual = NULL
    g.column_sums = NULL
    g.m = c.shape[0]
    g.n = c.shape[1]
    g.k = a.shape[1]
    g.c_row = c.stride[0]
    g.a_row = a.stride[0]
    g.a_col = 1
    g.residual_row = 0
    g.accumulate = accumulate
    g.lower = False
    g.format = format.number
    g.block_row = w.stride[0]
    g.block_values = format.values
    g.first_col = 0


cdef inline void run(ck_kernel kernel, const ck_gemm_args *g) noexcept:
    """The work is the multiplications', or, of a few rows, that of reading w."""
    with nogil:
        rt.run(kernel, g, sizeof(g[0]), max(g.m * g.n // 4 * (g.k // 4 + 1), g.n * g.k // 4))


cdef int fill(ck_gemm_args *g, const char *op, y, x, w, format, bias, residual) except -1:
    """The arguments of a forward; returns twice the storage type of x, and one more where y is float32."""
    cdef ck_array ay, ax, aw, extra
    rt.take(&ay, y, op, b"y", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(2, 2))
    if ay.dtype != CK_F32:
        rt.same_dtype(&ax, op, b"x", &ay, b"y")
    rt.match(&ay, op, b"y", 0, ax.shape[0], b"x")
    found = take_blocks(&aw, w, op, format, ax.shape[1])
    rt.match(&ay, op, b"y", 1, aw.shape[0], b"w")
    operands(g, &ay, &ax, &aw, found, False)
    g.b_row = 1
    g.b_col = ax.shape[1]
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
    return 2 * ax.dtype + (ay.dtype == CK_F32)


def quantized_forward(y, x, w, format, bias=None, residual=None):
    """y (N,O) = x (N,I) · w (O,I)ᵀ + bias float32 (O) + residual (N,O). Rows strided; residual may be y.

    x real; y and residual of the same type, or both float32; w (O,W) uint8, in blocks of the format.
    """
    cdef ck_gemm_args g
    cdef int kind = fill(&g, b"quantized_forward", y, x, w, format, bias, residual)
    run(rt.table.quantized_forward_f32[kind // 2] if kind % 2 else rt.table.quantized_forward[kind // 2], &g)


def quantized_forward_q8(y, x, w, format, bias=None, residual=None):
    """As quantized_forward, of x whose groups of 32 in a row are each rounded to 8 bits, the largest magnitude being 127.

    The products are those of integers, so the format must be of such.
    """
    cdef ck_gemm_args g
    cdef int kind = fill(&g, b"quantized_forward_q8", y, x, w, format, bias, residual)
    if format in NOT_INTEGERS:
        raise ValueError(f"[kernels.quantized_forward_q8] the numbers of {format} are no integers. Use quantized_forward.")
    run(rt.table.quantized_forward_q8_f32[kind // 2] if kind % 2 else rt.table.quantized_forward_q8[kind // 2], &g)


def quantized_backward_input(dx, dy, w, format, accumulate=False):
    """dx (N,I) = or += dy (N,O) · w (O,I), w (O,W) uint8 in blocks of the format. dx and dy real, rows may be strided."""
    cdef const char *op = b"quantized_backward_input"
    cdef ck_array ax, ay, aw
    cdef ck_gemm_args g
    rt.take(&ax, dx, op, b"dx", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    rt.take(&ay, dy, op, b"dy", CK_IS_REAL | CK_DIMS(2, 2))
    rt.same_dtype(&ay, op, b"dy", &ax, b"dx")
    rt.match(&ax, op, b"dx", 0, ay.shape[0], b"dy")
    found = take_blocks(&aw, w, op, format, ax.shape[1])
    rt.match(&aw, op, b"w", 0, ay.shape[1], b"dy")
    operands(&g, &ax, &ay, &aw, found, accumulate)
    g.b_row = ax.shape[1]
    g.b_col = 1
    run(rt.table.quantized_backward_input[ax.dtype], &g)


def dequantize(y, w, format, ids=None):
    """y (N,I) = the rows of w (O,W) uint8 that ids int32 (N) name, or all O of them. y real, rows may be strided."""
    cdef const char *op = b"dequantize"
    cdef ck_array ay, aw, ai
    cdef ck_dequantize_args a
    rt.take(&ay, y, op, b"y", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    found = take_blocks(&aw, w, op, format, ay.shape[1])
    a.ids = NULL
    if ids is None:
        rt.match(&ay, op, b"y", 0, aw.shape[0], b"w")
    else:
        rt.take(&ai, ids, op, b"ids", CK_IS_I32 | CK_DIMS(1, 1))
        rt.match(&ai, op, b"ids", 0, ay.shape[0], b"y")
        rt.in_range(&ai, op, b"ids", aw.shape[0])
        a.ids = <const int32_t *> ai.data
    a.y = ay.data
    a.w = <const uint8_t *> aw.data
    a.n = ay.shape[0]
    a.k = ay.shape[1]
    a.y_row = ay.stride[0]
    a.w_row = aw.stride[0]
    a.format = found.number
    with nogil:
        rt.run(rt.table.dequantize[ay.dtype], &a, sizeof(a), a.n * a.k)
