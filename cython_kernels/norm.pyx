"""RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016).

Shapes: x and y (N,C), or (N,H,D) strided for a norm over each head; the last dimension is normalised.
Statistics and weights are float32, activations real. Weight gradients are added in a fixed order of the
threads.
"""

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel layer_norm_forward[2]
        ck_kernel rms_norm_forward[2]
        ck_kernel layer_norm_backward[2]
        ck_kernel rms_norm_backward[2]
    const int CK_SCRATCH_BYTES
    ctypedef struct ck_norm_forward_args:
        void *y
        float *mean
        float *rstd
        const void *x
        const void *residual
        const float *w
        const float *b
        int64_t n, h, c, y_n, y_h, x_n, x_h, residual_n, residual_h
        float eps, offset
    ctypedef struct ck_norm_backward_args:
        void *dx
        float *dw
        float *db
        const void *dy
        const void *x
        const float *w
        const float *mean
        const float *rstd
        int64_t n, h, c, dx_n, dx_h, dy_n, dy_h, x_n, x_h
        int accumulate
        float offset


cdef int take_like(ck_array *out, given, const char *op, const char *name, unsigned int flags,
                   const ck_array *x) except -1:
    """A real array of x's shape and dtype."""
    cdef int axis
    rt.take(out, given, op, name, CK_IS_REAL | CK_DIMS(x.dims, x.dims) | flags)
    rt.same_dtype(out, op, name, x, b"x")
    for axis in range(x.dims):
        rt.match(out, op, name, axis, x.shape[axis], b"x")
    return 0


cdef float *take_statistic(given, const char *op, const char *name, unsigned int flags,
                           const ck_array *x) except? NULL:
    """float32, one per row of x."""
    cdef ck_array s
    cdef int axis
    rt.take(&s, given, op, name, CK_IS_F32 | CK_DIMS(x.dims - 1, x.dims - 1) | CK_IS_PACKED | flags)
    for axis in range(x.dims - 1):
        rt.match(&s, op, name, axis, x.shape[axis], b"x")
    return <float *> s.data


cdef float *take_weight(given, const char *op, const char *name, unsigned int flags,
                        const ck_array *x) except? NULL:
    """float32, one per element of x's last dimension."""
    cdef ck_array w
    rt.take(&w, given, op, name, CK_IS_F32 | CK_DIMS(1, 1) | flags)
    rt.match(&w, op, name, 0, x.shape[x.dims - 1], b"x")
    return <float *> w.data


cdef int forward(const char *op, y, mean, rstd, x, w, b, double eps, residual, double offset) except -1:
    cdef ck_array ax, ay, ar
    cdef ck_norm_forward_args a
    cdef bint heads, centered = b is not None
    cdef ck_kernel kernel
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(2, 3))
    take_like(&ay, y, op, b"y", CK_IS_WRITTEN, &ax)
    heads = ax.dims == 3
    a.y = ay.data
    a.x = ax.data
    a.mean = take_statistic(mean, op, b"mean", CK_IS_WRITTEN, &ax) if centered else NULL
    a.rstd = take_statistic(rstd, op, b"rstd", CK_IS_WRITTEN, &ax)
    a.w = take_weight(w, op, b"w", 0, &ax)
    a.b = take_weight(b, op, b"b", 0, &ax) if centered else NULL
    a.n = ax.shape[0]
    a.h = ax.shape[1] if heads else 1
    a.c = ax.shape[ax.dims - 1]
    a.y_n = ay.stride[0]
    a.y_h = ay.stride[1] if heads else 0
    a.x_n = ax.stride[0]
    a.x_h = ax.stride[1] if heads else 0
    a.eps = eps
    a.offset = offset
    a.residual = NULL
    a.residual_n = a.residual_h = 0
    if residual is not None:
        take_like(&ar, residual, op, b"residual", 0, &ax)
        a.residual = ar.data
        a.residual_n = ar.stride[0]
        a.residual_h = ar.stride[1] if heads else 0
    kernel = rt.table.layer_norm_forward[ax.dtype] if centered else rt.table.rms_norm_forward[ax.dtype]
    with nogil:
        rt.run(kernel, &a, sizeof(a), a.n * a.h * a.c)
    return 0


cdef int backward(const char *op, dx, dw, db, dy, x, w, mean, rstd, bint accumulate, double offset) except -1:
    cdef ck_array ax, adx, ady
    cdef ck_norm_backward_args a
    cdef bint heads, centered = db is not None
    cdef ck_kernel kernel
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(2, 3))
    take_like(&adx, dx, op, b"dx", CK_IS_WRITTEN, &ax)
    take_like(&ady, dy, op, b"dy", 0, &ax)
    heads = ax.dims == 3
    a.dx = adx.data
    a.dy = ady.data
    a.x = ax.data
    a.dw = take_weight(dw, op, b"dw", CK_IS_WRITTEN, &ax)
    a.db = take_weight(db, op, b"db", CK_IS_WRITTEN, &ax) if centered else NULL
    a.w = take_weight(w, op, b"w", 0, &ax)
    a.mean = take_statistic(mean, op, b"mean", 0, &ax) if centered else NULL
    a.rstd = take_statistic(rstd, op, b"rstd", 0, &ax)
    a.n = ax.shape[0]
    a.h = ax.shape[1] if heads else 1
    a.c = ax.shape[ax.dims - 1]
    a.dx_n = adx.stride[0]
    a.dx_h = adx.stride[1] if heads else 0
    a.dy_n = ady.stride[0]
    a.dy_h = ady.stride[1] if heads else 0
    a.x_n = ax.stride[0]
    a.x_h = ax.stride[1] if heads else 0
    a.accumulate = accumulate
    a.offset = offset
    if a.c > CK_SCRATCH_BYTES // 8:
        raise ValueError(
            f"[kernels.{op.decode()}] x has {a.c:,} elements in a row, and a thread's workspace holds "
            f"the weight gradients of {CK_SCRATCH_BYTES // 8:,}. "
            "Use the reference kernels for rows that long."
        )
    kernel = rt.table.layer_norm_backward[ax.dtype] if centered else rt.table.rms_norm_backward[ax.dtype]
    with nogil:
        rt.run(kernel, &a, sizeof(a), a.n * a.h * a.c)
    return 0


def rms_norm_forward(y, rstd, x, w, eps, residual=None, offset=0.0):
    """y = x · rstd · (w + offset) + residual, rstd float32 (N) or (N,H) = 1 / sqrt(mean(x²) + eps).

    The others are (N,C) or (N,H,D), but for w.
    y may be x, or the residual.
    """
    forward(b"rms_norm_forward", y, None, rstd, x, w, None, eps, residual, offset)


def rms_norm_backward(dx, dw, dy, x, w, rstd, accumulate=False, offset=0.0):
    """dx = or += the gradient of x; dw float32 += the gradient of w. dx may be dy or x."""
    backward(b"rms_norm_backward", dx, dw, None, dy, x, w, None, rstd, accumulate, offset)


def layer_norm_forward(y, mean, rstd, x, w, b, eps, residual=None):
    """y = (x - mean) · rstd · w + b + residual, rstd = 1 / sqrt(var(x) + eps); x, y, residual real (N,C), others float32.

    y may be x, or the residual.
    """
    forward(b"layer_norm_forward", y, mean, rstd, x, w, b, eps, residual, 0.0)


def layer_norm_backward(dx, dw, db, dy, x, w, mean, rstd, accumulate=False):
    """dx = or += the gradient of x; dw, db float32 += those of w and b. dx may be dy or x."""
    backward(b"layer_norm_backward", dx, dw, db, dy, x, w, mean, rstd, accumulate, 0.0)
