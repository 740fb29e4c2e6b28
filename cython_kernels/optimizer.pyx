"""Optimizer steps on flat float32 buffers, and the sum of squares that clipping needs."""

include "_door.pxi"

from libc.stdint cimport uint16_t

from cktrain.cython_kernels.dynamic_map import BLOCK, SIGNED, UNSIGNED

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel adamw_step
        ck_kernel adamw_8bit_step
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
    ctypedef unsigned char uint8_t
    ctypedef struct ck_dynamic_map:
        const float *values
        const int32_t *limits
        const uint8_t *cells
    ctypedef struct ck_adamw_8bit_args:
        float *param
        float *m_scale
        float *v_scale
        uint8_t *m
        uint8_t *v
        const float *grad
        uint16_t *copy
        int64_t n, step
        double lr, beta1, beta2, eps, weight_decay, grad_scale
        ck_dynamic_map m_map, v_map
    const int CK_DYNAMIC_BLOCK, CK_DYNAMIC_CELLS
    ctypedef struct ck_sum_of_squares_args:
        const void *x
        int64_t n
        double *sum


cdef float *take_flat(given, const char *op, const char *name, unsigned int flags, int64_t n) except? NULL:
    cdef ck_array x
    rt.take(&x, given, op, name, CK_IS_F32 | CK_DIMS(1, 1) | flags)
    rt.match(&x, op, name, 0, n, b"param")
    return <float *> x.data


cdef uint16_t *take_copy(given, const char *op, int64_t n) except? NULL:
    """The bfloat16 copy (n) of the parameters, or NULL where there is none."""
    cdef ck_array x
    if given is None:
        return NULL
    rt.take(&x, given, op, b"copy", CK_IS_BF16 | CK_DIMS(1, 1) | CK_IS_WRITTEN)
    rt.match(&x, op, b"copy", 0, n, b"param")
    return <uint16_t *> x.data


cdef int check_step(const char *op, step) except -1:
    if step < 1:
        raise ValueError(
            f"[kernels.{op.decode()}] step is {step}, but steps count from 1. "
            "Pass the number of this step."
        )
    return 0


def adamw_step(param, m, v, grad, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copy=None):
    """One AdamW step (Loshchilov & Hutter 2019) with grad · grad_scale; step is 1 at first. All float32 (n).

    copy, bfloat16 (n), receives the new parameters.
    """
    cdef const char *op = b"adamw_step"
    cdef ck_array ap
    cdef ck_optimizer_args a
    rt.take(&ap, param, op, b"param", CK_IS_F32 | CK_DIMS(1, 1) | CK_IS_WRITTEN)
    a.n = ap.shape[0]
    a.param = <float *> ap.data
    a.m = take_flat(m, op, b"m", CK_IS_WRITTEN, a.n)
    a.v = take_flat(v, op, b"v", CK_IS_WRITTEN, a.n)
    a.grad = take_flat(grad, op, b"grad", 0, a.n)
    a.copy = take_copy(copy, op, a.n)
    a.lr, a.beta1, a.beta2, a.eps = lr, beta1, beta2, eps
    a.weight_decay, a.grad_scale = weight_decay, grad_scale
    a.nesterov = 0
    check_step(op, step)
    a.step = step
    with nogil:
        rt.run(rt.table.adamw_step, &a, sizeof(a), a.n * 2)


cdef class Map:
    """A map of dynamic_map.py for the kernels, whose arrays it keeps."""

    cdef ck_dynamic_map pointers
    cdef object arrays

    def __cinit__(self, found):
        cdef const float[::1] values = found.values
        cdef const int32_t[::1] limits = found.limits.view("int32")
        cdef const uint8_t[::1] cells = found.cells
        assert values.shape[0] == 256 and cells.shape[0] == CK_DYNAMIC_CELLS and BLOCK == CK_DYNAMIC_BLOCK
        self.arrays = (found.values, found.limits, found.cells)
        self.pointers = ck_dynamic_map(&values[0], &limits[0], &cells[0])


cdef Map signed_map = Map(SIGNED), unsigned_map = Map(UNSIGNED)


cdef uint8_t *take_bytes(given, const char *op, const char *name, int64_t n) except? NULL:
    cdef ck_array x
    rt.take(&x, given, op, name, CK_IS_U8 | CK_DIMS(1, 1) | CK_IS_WRITTEN)
    rt.match(&x, op, name, 0, n, b"param")
    return <uint8_t *> x.data


cdef float *take_scales(given, const char *op, const char *name, int64_t n) except? NULL:
    cdef ck_array x
    rt.take(&x, given, op, name, CK_IS_F32 | CK_DIMS(1, 1) | CK_IS_WRITTEN)
    rt.match(&x, op, name, 0, (n + CK_DYNAMIC_BLOCK - 1) // CK_DYNAMIC_BLOCK, b"param's blocks")
    return <float *> x.data


def adamw_8bit_step(
    param, m, m_scale, v, v_scale, grad, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copy=None
):
    """adamw_step with moments of 8 bits (Dettmers et al. 2022; dynamic_map.py). param, grad float32 (n), m, v uint8 (n),
    m_scale, v_scale float32 (G) with G = ceil(n / 256).

    copy, bfloat16 (n), receives the new parameters.
    """
    cdef const char *op = b"adamw_8bit_step"
    cdef ck_array ap
    cdef ck_adamw_8bit_args a
    rt.take(&ap, param, op, b"param", CK_IS_F32 | CK_DIMS(1, 1) | CK_IS_WRITTEN)
    a.n = ap.shape[0]
    a.param = <float *> ap.data
    a.m = take_bytes(m, op, b"m", a.n)
    a.m_scale = take_scales(m_scale, op, b"m_scale", a.n)
    a.v = take_bytes(v, op, b"v", a.n)
    a.v_scale = take_scales(v_scale, op, b"v_scale", a.n)
    a.grad = take_flat(grad, op, b"grad", 0, a.n)
    a.copy = take_copy(copy, op, a.n)
    a.lr, a.beta1, a.beta2, a.eps = lr, beta1, beta2, eps
    a.weight_decay, a.grad_scale = weight_decay, grad_scale
    check_step(op, step)
    a.step = step
    a.m_map, a.v_map = signed_map.pointers, unsigned_map.pointers
    with nogil:
        rt.run(rt.table.adamw_8bit_step, &a, sizeof(a), a.n * 8)


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
