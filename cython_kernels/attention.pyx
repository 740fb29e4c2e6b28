"""Causal attention with grouped heads, a sliding window and packed documents, in O(T) memory.

Shapes: q, o (B,S,H,D), k, v (B,T,K,D), real and strided, H a multiple of K; lse, delta float32 (B,H,S).
Query s stands at key position T-S+s and sees the keys from the largest of 0, first[b,s] and its position -
window + 1, up to its own. csrc/attention.h has the algorithm.
"""

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel attention_forward[2]
        ck_kernel attention_backward[2]
    ctypedef struct ck_strides:
        int64_t batch, row, head
    ctypedef struct ck_attention_args:
        void *o
        void *dq
        void *dk
        void *dv
        float *lse
        float *delta
        const void *q
        const void *k
        const void *v
        const void *dout
        const int32_t *first
        int64_t b, s, t, h, kv, d, window
        ck_strides o_s, q_s, k_s, v_s, dq_s, dk_s, dv_s, dout_s
        float scale

cdef int LARGEST_HEAD = 512  # what a thread's workspace holds the tiles of


cdef void *take_like(ck_strides *strides, given, const char *op, const char *name, unsigned int flags,
                     const ck_array *like, const char *like_name) except? NULL:
    """A real (B, rows, heads, D) array; with `like`, of its shape and dtype."""
    cdef ck_array x
    cdef int axis
    rt.take(&x, given, op, name, CK_IS_REAL | CK_DIMS(4, 4) | flags)
    rt.same_dtype(&x, op, name, like, like_name)
    for axis in range(4):
        rt.match(&x, op, name, axis, like.shape[axis], like_name)
    strides[0] = ck_strides(x.stride[0], x.stride[1], x.stride[2])
    return x.data


cdef float *take_statistic(given, const char *op, const char *name, unsigned int flags,
                           const ck_array *q) except? NULL:
    """float32 (B,H,S)."""
    cdef ck_array x
    rt.take(&x, given, op, name, CK_IS_F32 | CK_DIMS(3, 3) | CK_IS_PACKED | flags)
    rt.match(&x, op, name, 0, q.shape[0], b"q")
    rt.match(&x, op, name, 1, q.shape[2], b"q")
    rt.match(&x, op, name, 2, q.shape[1], b"q")
    return <float *> x.data


cdef int take_inputs(ck_attention_args *a, ck_array *aq, ck_array *ak, const char *op, q, k, v, double scale,
                     int64_t window, first) except -1:
    """q, k, v and the options, the same for both directions."""
    cdef ck_array af
    rt.take(aq, q, op, b"q", CK_IS_REAL | CK_DIMS(4, 4))
    rt.take(ak, k, op, b"k", CK_IS_REAL | CK_DIMS(4, 4))
    rt.same_dtype(ak, op, b"k", aq, b"q")
    rt.match(ak, op, b"k", 0, aq.shape[0], b"q")
    rt.match(ak, op, b"k", 3, aq.shape[3], b"q")
    a.v = take_like(&a.v_s, v, op, b"v", 0, ak, b"k")
    a.q = aq.data
    a.k = ak.data
    a.b, a.s, a.h, a.d = aq.shape[0], aq.shape[1], aq.shape[2], aq.shape[3]
    a.t, a.kv = ak.shape[1], ak.shape[2]
    a.q_s = ck_strides(aq.stride[0], aq.stride[1], aq.stride[2])
    a.k_s = ck_strides(ak.stride[0], ak.stride[1], ak.stride[2])
    a.scale = scale
    a.window = window
    a.first = NULL
    if a.kv == 0 or a.h % a.kv:
        raise ValueError(
            f"[kernels.{op.decode()}] q has {a.h} heads and k has {a.kv}. "
            "The first number must be a multiple of the second."
        )
    if a.d > LARGEST_HEAD or a.d == 0:
        raise ValueError(
            f"[kernels.{op.decode()}] q has head size {a.d}, outside [1, {LARGEST_HEAD}]. "
            "Use more, smaller heads."
        )
    if not scale > 0:
        raise ValueError(
            f"[kernels.{op.decode()}] scale is {scale}. "
            "Pass a positive number, such as 1 / sqrt(D)."
        )
    if window < 0:
        raise ValueError(
            f"[kernels.{op.decode()}] window is {window}. "
            "Pass the number of keys to see, or 0 for all."
        )
    if a.s > a.t:
        raise ValueError(
            f"[kernels.{op.decode()}] q has {a.s} queries and k has {a.t} keys, but each query stands "
            "at a key. Pass at least as many keys."
        )
    if first is not None:
        rt.take(&af, first, op, b"first", CK_IS_I32 | CK_DIMS(2, 2) | CK_IS_PACKED)
        rt.match(&af, op, b"first", 0, a.b, b"q")
        rt.match(&af, op, b"first", 1, a.s, b"q")
        a.first = <const int32_t *> af.data
        check_first(a, op)
    return 0


cdef int check_first(const ck_attention_args *a, const char *op) except -1:
    """Every entry of `first` is in [0, the query's own position]."""
    cdef int64_t b, s, value
    for b in range(a.b):
        for s in range(a.s):
            value = a.first[b * a.s + s]
            if value < 0 or value > a.t - a.s + s:
                raise ValueError(
                    f"[kernels.{op.decode()}] first[{b},{s}] is {value}, outside [0, "
                    f"{a.t - a.s + s}], the query's own position. "
                    "Pass the first key of the query's document."
                )
    return 0


def attention_forward(o, lse, q, k, v, scale, window=0, first=None):
    """o = softmax(scale · q kᵀ, where visible) · v; lse = log-sum-exp of the scores. window 0: no limit."""
    cdef const char *op = b"attention_forward"
    cdef ck_array aq, ak
    cdef ck_attention_args a
    take_inputs(&a, &aq, &ak, op, q, k, v, scale, window, first)
    a.o = take_like(&a.o_s, o, op, b"o", CK_IS_WRITTEN, &aq, b"q")
    a.lse = take_statistic(lse, op, b"lse", CK_IS_WRITTEN, &aq)
    with nogil:
        rt.run(rt.table.attention_forward[aq.dtype], &a, a.b * a.h * a.s * a.t * (a.d // 16 + 1))


def attention_backward(dq, dk, dv, delta, do, q, k, v, o, lse, scale, window=0, first=None):
    """dq, dk, dv = the gradients of q, k, v; delta float32 (B,H,S) is workspace: sum of do · o."""
    cdef const char *op = b"attention_backward"
    cdef ck_array aq, ak
    cdef ck_attention_args a
    take_inputs(&a, &aq, &ak, op, q, k, v, scale, window, first)
    a.dq = take_like(&a.dq_s, dq, op, b"dq", CK_IS_WRITTEN, &aq, b"q")
    a.dk = take_like(&a.dk_s, dk, op, b"dk", CK_IS_WRITTEN, &ak, b"k")
    a.dv = take_like(&a.dv_s, dv, op, b"dv", CK_IS_WRITTEN, &ak, b"k")
    a.dout = take_like(&a.dout_s, do, op, b"do", 0, &aq, b"q")
    a.o = take_like(&a.o_s, o, op, b"o", 0, &aq, b"q")
    a.delta = take_statistic(delta, op, b"delta", CK_IS_WRITTEN, &aq)
    a.lse = take_statistic(lse, op, b"lse", 0, &aq)
    with nogil:
        rt.run(rt.table.attention_backward[aq.dtype], &a, a.b * a.h * a.s * a.t * (a.d // 8 + 1))
