"""Conversion between float32 and bfloat16, and setting to zero."""

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel cast_to_f32[2]
        ck_kernel cast_to_bf16[2]
        ck_kernel zero
    ctypedef struct ck_cast_args:
        void *dst
        const void *src
        int64_t n


def cast(dst, src):
    """dst = src, rounded to nearest even; arrays of one shape, contiguous. The same dtype copies."""
    cdef const char *op = b"cast"
    cdef ck_array ad, asrc
    cdef ck_cast_args a
    cdef ck_kernel kernel
    cdef int axis
    rt.take(&asrc, src, op, b"src", CK_IS_REAL | CK_DIMS(0, 4) | CK_IS_PACKED)
    rt.take(&ad, dst, op, b"dst", CK_IS_REAL | CK_DIMS(asrc.dims, asrc.dims) | CK_IS_PACKED | CK_IS_WRITTEN)
    a = ck_cast_args(ad.data, asrc.data, 1)
    for axis in range(asrc.dims):
        rt.match(&ad, op, b"dst", axis, asrc.shape[axis], b"src")
        a.n *= asrc.shape[axis]
    kernel = rt.table.cast_to_f32[asrc.dtype] if ad.dtype == CK_F32 else rt.table.cast_to_bf16[asrc.dtype]
    with nogil:
        rt.run(kernel, &a, sizeof(a), a.n)


def zero(x):
    """x float32 = 0, contiguous, by all threads and past the caches when it is large."""
    cdef const char *op = b"zero"
    cdef ck_array ax
    cdef ck_cast_args a
    cdef int axis
    rt.take(&ax, x, op, b"x", CK_IS_F32 | CK_DIMS(0, 4) | CK_IS_PACKED | CK_IS_WRITTEN)
    a = ck_cast_args(ax.data, NULL, 1)
    for axis in range(ax.dims):
        a.n *= ax.shape[axis]
    with nogil:
        rt.run(rt.table.zero, &a, sizeof(a), a.n)
