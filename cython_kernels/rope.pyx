"""Rotary position embedding (Su et al. 2021), rotate-half pairing (i, i + D/2) as Hugging Face does.

Shapes: x, y real, strided (N,H,D); cos, sin float32 (P,D/2); positions int32 (N) in [0, P).
"""

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel rope[2]
    ctypedef struct ck_rope_args:
        void *y
        const void *x
        const float *cos
        const float *sin
        const int32_t *positions
        int64_t n, h, d, y_n, y_h, x_n, x_h
        int inverse


cdef int rotate(const char *op, const char *y_name, y, const char *x_name, x, cos, sin, positions,
                bint inverse) except -1:
    cdef ck_array ay, ax, ac, asin, ap
    cdef ck_rope_args a
    cdef int axis
    rt.take(&ay, y, op, y_name, CK_IS_REAL | CK_DIMS(3, 3) | CK_IS_WRITTEN)
    rt.take(&ax, x, op, x_name, CK_IS_REAL | CK_DIMS(3, 3))
    rt.take(&ac, cos, op, b"cos", CK_IS_F32 | CK_DIMS(2, 2) | CK_IS_PACKED)
    rt.take(&asin, sin, op, b"sin", CK_IS_F32 | CK_DIMS(2, 2) | CK_IS_PACKED)
    rt.take(&ap, positions, op, b"positions", CK_IS_I32 | CK_DIMS(1, 1))
    rt.same_dtype(&ax, op, x_name, &ay, y_name)
    for axis in range(3):
        rt.match(&ay, op, y_name, axis, ax.shape[axis], x_name)
    if ax.shape[2] % 2:
        raise ValueError(
            f"[kernels.{op.decode()}] {x_name.decode()} has head size {ax.shape[2]}, which is odd. "
            "Rotary embedding pairs dimensions: use an even head size."
        )
    rt.match(&ac, op, b"cos", 1, ax.shape[2] // 2, b"half of the head size")
    rt.match(&asin, op, b"sin", 1, ac.shape[1], b"cos")
    rt.match(&asin, op, b"sin", 0, ac.shape[0], b"cos")
    rt.match(&ap, op, b"positions", 0, ax.shape[0], x_name)
    rt.in_range(&ap, op, b"positions", ac.shape[0])
    a = ck_rope_args(ay.data, ax.data, <const float *> ac.data, <const float *> asin.data,
                     <const int32_t *> ap.data, ax.shape[0], ax.shape[1], ax.shape[2], ay.stride[0],
                     ay.stride[1], ax.stride[0], ax.stride[1], inverse)
    with nogil:
        rt.run(rt.table.rope[ax.dtype], &a, sizeof(a), a.n * a.h * a.d)
    return 0


def rope_forward(y, x, cos, sin, positions):
    """y = x rotated by each row's position. y may be x."""
    rotate(b"rope_forward", b"y", y, b"x", x, cos, sin, positions, False)


def rope_backward(dx, dy, cos, sin, positions):
    """dx = dy rotated back. dx may be dy."""
    rotate(b"rope_backward", b"dx", dx, b"dy", dy, cos, sin, positions, True)
