"""Softmax cross-entropy over a vocabulary, or over one shard of it: the group that divides the vocabulary
stands between the two kernels.

Shapes: logits real, strided (N,V); targets int32 (N); row_max, row_sum, target_logit, lse float32 (N).
"""

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel cross_entropy_forward[2]
        ck_kernel cross_entropy_backward_from_f32[2]
        ck_kernel cross_entropy_backward[2]
    ctypedef struct ck_cross_entropy_args:
        float *row_max
        float *row_sum
        float *target_logit
        void *dlogits
        const float *lse
        const void *logits
        const int32_t *targets
        int64_t n, v, logits_row, dlogits_row, ignore_index, vocab_start
        float softcap


cdef float *take_statistic(given, const char *op, const char *name, unsigned int flags,
                           int64_t n) except? NULL:
    cdef ck_array x
    rt.take(&x, given, op, name, CK_IS_F32 | CK_DIMS(1, 1) | flags)
    rt.match(&x, op, name, 0, n, b"logits")
    return <float *> x.data


cdef int take_logits(ck_cross_entropy_args *a, ck_array *al, const char *op, logits, targets,
                     int64_t vocab_start) except -1:
    cdef ck_array at
    rt.take(al, logits, op, b"logits", CK_IS_REAL | CK_DIMS(2, 2))
    rt.take(&at, targets, op, b"targets", CK_IS_I32 | CK_DIMS(1, 1))
    rt.match(&at, op, b"targets", 0, al.shape[0], b"logits")
    a.logits = al.data
    a.targets = <const int32_t *> at.data
    a.n = al.shape[0]
    a.v = al.shape[1]
    a.logits_row = al.stride[0]
    a.vocab_start = vocab_start
    return 0


def cross_entropy_forward(row_max, row_sum, target_logit, logits, targets, vocab_start=0):
    """Per row: largest logit, sum of exp(l - largest), the target's logit (0 when not in this shard)."""
    cdef const char *op = b"cross_entropy_forward"
    cdef ck_array al
    cdef ck_cross_entropy_args a
    take_logits(&a, &al, op, logits, targets, vocab_start)
    a.row_max = take_statistic(row_max, op, b"row_max", CK_IS_WRITTEN, a.n)
    a.row_sum = take_statistic(row_sum, op, b"row_sum", CK_IS_WRITTEN, a.n)
    a.target_logit = take_statistic(target_logit, op, b"target_logit", CK_IS_WRITTEN, a.n)
    with nogil:
        rt.run(rt.table.cross_entropy_forward[al.dtype], &a, sizeof(a), a.n * a.v * 2)


def cross_entropy_backward(dlogits, logits, lse, targets, ignore_index=-100, vocab_start=0, softcap=0.0):
    """dlogits = softmax - onehot, zero where the target is ignored; unnormalised. dlogits may be logits.

    logits are of dlogits' dtype, or float32; each row of dlogits may begin where that of the logits does. With
    softcap c they are c · tanh(x / c), and dlogits is the gradient of x.
    """
    cdef const char *op = b"cross_entropy_backward"
    cdef ck_array al, ad
    cdef ck_cross_entropy_args a
    cdef ck_kernel kernel
    take_logits(&a, &al, op, logits, targets, vocab_start)
    rt.take(&ad, dlogits, op, b"dlogits", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    if al.dtype != CK_F32:
        rt.same_dtype(&ad, op, b"dlogits", &al, b"logits")
    rt.match(&ad, op, b"dlogits", 0, a.n, b"logits")
    rt.match(&ad, op, b"dlogits", 1, a.v, b"logits")
    a.dlogits = ad.data
    a.dlogits_row = ad.stride[0]
    a.lse = take_statistic(lse, op, b"lse", 0, a.n)
    a.ignore_index = ignore_index
    a.softcap = softcap
    kernel = (rt.table.cross_entropy_backward_from_f32[ad.dtype] if al.dtype == CK_F32
              else rt.table.cross_entropy_backward[ad.dtype])
    with nogil:
        rt.run(kernel, &a, sizeof(a), a.n * a.v * 2)
