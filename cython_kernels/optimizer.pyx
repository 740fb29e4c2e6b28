"""Optimizer steps on flat float32 buffers, and the sum of squares that clipping needs."""

include "_door.pxi"

from libc.stdint cimport uint16_t

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel adamw_step
        ck_kernel sgd_step
        ck_kernel sum_of_squares[2]
    ctypedef struct ck_optimizer_args:
        float *param
        float *m
        float *v
        const float *grad
        uint16_t *copy
        int64_t n, step
        double lr, beta1, beta2, eps, weight_decay, grad_scale
        int nesterov
    ctypedef struct ck_sum_of_squares_args:
        const void *x
        int64_t n
        double *sum


cdef float *take_flat(given, const char *op, const char *name, unsigned int flags, int64_t n) except? NULL:
    cdef ck_array x
    rt.take(&x, given, op, name, CK_IS_F32 | CK_DIMS(1, 1) | flags)
    rt.match(&x, op, name, 0, n, b"param")
    return <float *> x.data


def adamw_step(param, m, v, grad, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copy=None):
    """One AdamW step (Loshchilov & Hutter 2019) with grad · grad_scale; step is 1 at first. All float32 (n).

    copy, bfloat16 (n), receives the new parameters.
    """
    cdef const char *op = b"adamw_step"
    cdef ck_array ap, ac
    cdef ck_optimizer_args a
    rt.take(&ap, param, op, b"param", CK_IS_F32 | CK_DIMS(1, 1) | CK_IS_WRITTEN)
    a.n = ap.shape[0]
    a.param = <float *> ap.data
    a.m = take_flat(m, op, b"m", CK_IS_WRITTEN, a.n)
    a.v = take_flat(v, op, b"v", CK_IS_WRITTEN, a.n)
    a.grad = take_flat(grad, op, b"grad", 0, a.n)
    a.copy = NULL
    if copy is not None:
        rt.take(&ac, copy, op, b"copy", CK_IS_BF16 | CK_DIMS(1, 1) | CK_IS_WRITTEN)
        rt.match(&ac, op, b"copy", 0, a.n, b"param")
        a.copy = <uint16_t *> ac.data
    a.lr, a.beta1, a.beta2, a.eps = lr, beta1, beta2, eps
    a.weight_decay, a.grad_scale = weight_decay, grad_scale
    a.step = step
    a.nesterov = 0
    if a.step < 1:
        raise ValueError(
            f"[kernels.adamw_step] step is {step}, but steps count from 1. "
            "Pass the number of this step."
        )
    with nogil:
        rt.run(rt.table.adamw_step, &a, sizeof(a), a.n * 2)


def sgd_step(param, momentum_buffer, grad, lr, momentum, weight_decay, nesterov, grad_scale):
    """One SGD step as in PyTorch: decay added to grad · grad_scale. momentum_buffer is zero at the start. All
    float32 (n)."""
    cdef const char *op = b"sgd_step"
    cdef ck_array ap
    cdef ck_optimizer_args a
    rt.take(&ap, param, op, b"param", CK_IS_F32 | CK_DIMS(1, 1) | CK_IS_WRITTEN)
    a.n = ap.shape[0]
    a.param = <float *> ap.data
    a.lr, a.beta1, a.beta2, a.eps = lr, momentum, 0.0, 0.0
    a.weight_decay, a.grad_scale = weight_decay, grad_scale
    a.m = take_flat(momentum_buffer, op, b"momentum_buffer", CK_IS_WRITTEN, a.n)
    a.v = NULL
    a.grad = take_flat(grad, op, b"grad", 0, a.n)
    a.copy = NULL
    a.step = 1
    a.nesterov = bool(nesterov)
    with nogil:
        rt.run(rt.table.sgd_step, &a, sizeof(a), a.n)


def sum_of_squares(x):
    """The sum of x², summed in fp64 in an order fixed by the number of threads. x real, contiguous."""
    cdef const char *op = b"sum_of_squares"
    cdef ck_array ax
    cdef ck_sum_of_squares_args a
    cdef double total = 0.0
    cdef int axis
    rt.take(&ax, x, op, b"x", CK_IS_REAL | CK_DIMS(0, 4) | CK_IS_PACKED)
    a = ck_sum_of_squares_args(ax.data, 1, &total)
    for axis in range(ax.dims):
        a.n *= ax.shape[axis]
    with nogil:
        rt.run(rt.table.sum_of_squares[ax.dtype], &a, sizeof(a), a.n)
    return total
