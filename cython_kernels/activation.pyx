"""Elementwise ops between the matmuls: SwiGLU (Shazeer 2020), GELU (Hendrycks & Gimpel 2016), residual add, dropout.

Shapes: N rows of I (gate and up side by side: 2I) or of C elements; real, rows may be strided.
"""

from libc.stdint cimport uint32_t

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel swiglu_forward[2]
        ck_kernel swiglu_backward[2]
        ck_kernel geglu_forward[2]
        ck_kernel geglu_backward[2]
        ck_kernel gelu_forward[2]
        ck_kernel gelu_backward[2]
        ck_kernel add[2]
        ck_kernel softcap[2]
        ck_kernel dropout[2]
    ctypedef struct ck_gated_args:
        void *y
        void *dgate_up
        const void *dy
        const void *gate_up
        int64_t n, i, y_row, dgate_up_row, dy_row, gate_up_row
    ctypedef struct ck_pointwise_args:
        void *out
        const void *a
        const void *b
        int64_t n, c, out_row, a_row, b_row
        int tanh
        float alpha
    ctypedef struct ck_dropout_args:
        void *out
        const void *x
        const int32_t *keys
        int64_t n, c, out_row, x_row, first_column
        uint32_t threshold
        float scale
        int accumulate


cdef int take_rows(ck_array *out, given, const char *op, const char *name, unsigned int flags,
                   const ck_array *like, int64_t width, const char *like_name) except -1:
    """A real matrix with the rows and the dtype of `like`, and `width` columns."""
    rt.take(out, given, op, name, CK_IS_REAL | CK_DIMS(2, 2) | flags)
    rt.same_dtype(out, op, name, like, like_name)
    rt.match(out, op, name, 0, like.shape[0], like_name)
    rt.match(out, op, name, 1, width, like_name)
    return 0


cdef int64_t take_gate_up(ck_array *out, given, const char *op) except -1:
    """Returns I."""
    rt.take(out, given, op, b"gate_up", CK_IS_REAL | CK_DIMS(2, 2))
    if out.shape[1] % 2:
        raise ValueError(
            f"[kernels.{op.decode()}] gate_up has {out.shape[1]} columns, which is odd. "
            "Pass gate and up side by side, 2I columns."
        )
    return out.shape[1] // 2


cdef int gated_forward(const char *op, const ck_kernel *kernels, y, gate_up) except -1:
    cdef ck_array ag, ay
    cdef int64_t i = take_gate_up(&ag, gate_up, op)
    cdef ck_gated_args a
    take_rows(&ay, y, op, b"y", CK_IS_WRITTEN, &ag, i, b"gate_up")
    a = ck_gated_args(ay.data, NULL, NULL, ag.data, ay.shape[0], i, ay.stride[0], 0, 0, ag.stride[0])
    with nogil:
        rt.run(kernels[ag.dtype], &a, sizeof(a), a.n * a.i * 2)
    return 0


cdef int gated_backward(const char *op, const ck_kernel *kernels, dgate_up, dy, gate_up, y) except -1:
    cdef ck_array ag, ad, ady, ay
    cdef int64_t i = take_gate_up(&ag, gate_up, op)
    cdef ck_gated_args a
    take_rows(&ad, dgate_up, op, b"dgate_up", CK_IS_WRITTEN, &ag, 2 * i, b"gate_up")
    take_rows(&ady, dy, op, b"dy", 0, &ag, i, b"gate_up")
    a = ck_gated_args(NULL, ad.data, ady.data, ag.data, ag.shape[0], i, 0, ad.stride[0], ady.stride[0],
                      ag.stride[0])
    if y is not None:
        take_rows(&ay, y, op, b"y", CK_IS_WRITTEN, &ag, i, b"gate_up")
        a.y = ay.data
        a.y_row = ay.stride[0]
    with nogil:
        rt.run(kernels[ag.dtype], &a, sizeof(a), a.n * a.i * 4)
    return 0


def swiglu_forward(y, gate_up):
    """y (N,I) = silu(gate) · up, gate_up (N,2I) = [gate, up]."""
    gated_forward(b"swiglu_forward", rt.table.swiglu_forward, y, gate_up)


def swiglu_backward(dgate_up, dy, gate_up, y=None):
    """dgate_up (N,2I), which may be gate_up; when y (N,I) is given, it is computed again."""
    gated_backward(b"swiglu_backward", rt.table.swiglu_backward, dgate_up, dy, gate_up, y)


def geglu_forward(y, gate_up):
    """y (N,I) = gelu(gate) · up in its tanh form, gate_up (N,2I) = [gate, up]."""
    gated_forward(b"geglu_forward", rt.table.geglu_forward, y, gate_up)


def geglu_backward(dgate_up, dy, gate_up, y=None):
    """dgate_up (N,2I), which may be gate_up; when y (N,I) is given, it is computed again."""
    gated_backward(b"geglu_backward", rt.table.geglu_backward, dgate_up, dy, gate_up, y)


def gelu_forward(y, x, tanh):
    """y (N,C) = x Φ(x); with tanh, the tanh form. y may be x."""
    cdef const char *op = b"gelu_forward"
    cdef ck_array ax, ay
    cdef ck_pointwise_args a
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(2, 2))
    take_rows(&ay, y, op, b"y", CK_IS_WRITTEN, &ax, ax.shape[1], b"x")
    a = ck_pointwise_args(ay.data, ax.data, NULL, ax.shape[0], ax.shape[1], ay.stride[0], ax.stride[0], 0,
                          bool(tanh), 1)
    with nogil:
        rt.run(rt.table.gelu_forward[ax.dtype], &a, sizeof(a), a.n * a.c * 2)


def gelu_backward(dx, dy, x, tanh):
    """dx (N,C) = dy · gelu'(x). dx may be dy."""
    cdef const char *op = b"gelu_backward"
    cdef ck_array ax, adx, ady
    cdef ck_pointwise_args a
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(2, 2))
    take_rows(&adx, dx, op, b"dx", CK_IS_WRITTEN, &ax, ax.shape[1], b"x")
    take_rows(&ady, dy, op, b"dy", 0, &ax, ax.shape[1], b"x")
    a = ck_pointwise_args(adx.data, ax.data, ady.data, ax.shape[0], ax.shape[1], adx.stride[0], ax.stride[0],
                          ady.stride[0], bool(tanh))
    with nogil:
        rt.run(rt.table.gelu_backward[ax.dtype], &a, sizeof(a), a.n * a.c * 2)


def add(out, a, b, alpha=1.0):
    """out = a + alpha · b (N,C). out may be either, and a may be b."""
    cdef const char *op = b"add"
    cdef ck_array aa, ab, ao
    cdef ck_pointwise_args args
    rt.take(&ao, out, op, b"out", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    take_rows(&aa, a, op, b"a", 0, &ao, ao.shape[1], b"out")
    take_rows(&ab, b, op, b"b", 0, &ao, ao.shape[1], b"out")
    args = ck_pointwise_args(ao.data, aa.data, ab.data, ao.shape[0], ao.shape[1], ao.stride[0], aa.stride[0],
                             ab.stride[0], 0, alpha)
    with nogil:
        rt.run(rt.table.add[ao.dtype], &args, sizeof(args), args.n * args.c)


def softcap(y, x, c):
    """y (N,C) = c · tanh(x / c). y may be x."""
    cdef const char *op = b"softcap"
    cdef ck_array ax, ay
    cdef ck_pointwise_args a
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(2, 2))
    take_rows(&ay, y, op, b"y", CK_IS_WRITTEN, &ax, ax.shape[1], b"x")
    if not c > 0:
        raise ValueError(f"[kernels.softcap] c is {c}. Pass a bound above 0.")
    a = ck_pointwise_args(ay.data, ax.data, NULL, ax.shape[0], ax.shape[1], ay.stride[0], ax.stride[0], 0, 0, c)
    with nogil:
        rt.run(rt.table.softcap[ax.dtype], &a, sizeof(a), a.n * a.c * 2)


def dropout(out, x, keys, p, first_column=0, accumulate=False):
    """out (N,C) = or += x / (1 - p) where the hash of (keys (N) int32, the column) keeps it, else 0. out may be x."""
    cdef const char *op = b"dropout"
    cdef ck_array ao, ax, ak
    cdef ck_dropout_args args
    rt.take(&ao, out, op, b"out", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    take_rows(&ax, x, op, b"x", 0, &ao, ao.shape[1], b"out")
    rt.take(&ak, keys, op, b"keys", CK_IS_I32 | CK_DIMS(1, 1) | CK_IS_PACKED)
    rt.match(&ak, op, b"keys", 0, ao.shape[0], b"out")
    if not 0 <= p < 1:
        raise ValueError(f"[kernels.dropout] p is {p}. Pass a share of 0 or more, and less than 1.")
    args = ck_dropout_args(ao.data, ax.data, <const int32_t *> ak.data, ao.shape[0], ao.shape[1], ao.stride[0],
                           ax.stride[0], first_column, <uint32_t> min(round(p * 2.0 ** 32), 2 ** 32 - 1),
                           1.0 / (1.0 - p), bool(accumulate))
    with nogil:
        rt.run(rt.table.dropout[ao.dtype], &args, sizeof(args), args.n * args.c * 2)
