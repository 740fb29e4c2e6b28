"""Attention with grouped heads in O(T) memory: causal or not, windows, documents, softcap, sinks, biases; and its parts.

Shapes: q, o (B,S,H,D), k, v (B,T,K,D), real and strided, H a multiple of K; lse, delta float32 (B,H,S); first, end
int32 (B,S); sinks float32 (H); bias float32 (B,H,S,T), of whose first three axes each may be 1. Query s stands at key
position T-S+s. docs/attention.md has the equations, csrc/attention.h the algorithm.
"""

from libc.math cimport isfinite

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel attention_forward[2]
        ck_kernel attention_backward[2]
        ck_kernel attention_merge[2]
        ck_kernel attention_cached[2]
    ctypedef struct ck_strides:
        int64_t batch, row, head
    ctypedef struct ck_attention_args:
        void *o
        void *dq
        void *dk
        void *dv
        float *lse
        float *delta
        float *dsinks
        float *dbias
        const void *q
        const void *k
        const void *v
        const void *dout
        const float *sinks
        const float *bias
        const int32_t *first
        const int32_t *end
        int64_t b, s, t, h, kv, d, window
        ck_strides o_s, q_s, k_s, v_s, dq_s, dk_s, dv_s, dout_s, bias_s, dbias_s
        float scale, softcap
        int causal
    ctypedef struct ck_attention_merge_args:
        void *o
        float *lse
        const void *part
        const float *part_lse
        int64_t b, s, h, d
        ck_strides o_s, part_s
        int o_is_f32
    ctypedef struct ck_attention_cached_args:
        void *o
        void *keys
        void *values
        const void *q
        const void *k
        const void *v
        const int32_t *lengths
        int64_t b, p, h, kv, d, window, chunks
        ck_strides o_s, q_s, k_s, v_s, keys_s, values_s
        float scale, softcap
        int cache_is_bf16
    const int CK_SHARED_BYTES

cdef int MOST_CHUNKS = 128  # of a sequence's keys

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


cdef const int32_t *take_bound(given, const char *op, const char *name, const ck_attention_args *a) except? NULL:
    """int32 (B,S), every entry in [0, T]."""
    cdef ck_array x
    cdef int64_t b, s, value
    rt.take(&x, given, op, name, CK_IS_I32 | CK_DIMS(2, 2) | CK_IS_PACKED)
    rt.match(&x, op, name, 0, a.b, b"q")
    rt.match(&x, op, name, 1, a.s, b"q")
    for b in range(a.b):
        for s in range(a.s):
            value = (<const int32_t *> x.data)[b * a.s + s]
            if value < 0 or value > a.t:
                raise ValueError(
                    f"[kernels.{op.decode()}] {name.decode()}[{b},{s}] is {value}, outside [0, {a.t}], the "
                    "keys. Pass a key's position, or that after the last one."
                )
    return <const int32_t *> x.data


cdef float *take_heads(given, const char *op, const char *name, unsigned int flags, int64_t heads) except? NULL:
    """float32 (H)."""
    cdef ck_array x
    rt.take(&x, given, op, name, CK_IS_F32 | CK_DIMS(1, 1) | flags)
    rt.match(&x, op, name, 0, heads, b"q")
    return <float *> x.data


cdef float *take_bias(ck_array *x, ck_strides *strides, given, const char *op, const char *name, unsigned int flags,
                      const ck_attention_args *a) except? NULL:
    """float32 (B,H,S,T); an axis of one element but the last stands for all, and gets the stride 0."""
    cdef int64_t[3] wanted = [a.b, a.h, a.s]
    cdef int64_t[3] steps
    cdef int axis
    rt.take(x, given, op, name, CK_IS_F32 | CK_DIMS(4, 4) | flags)
    rt.match(x, op, name, 3, a.t, b"k")
    for axis in range(3):
        steps[axis] = x.stride[axis]
        if x.shape[axis] == 1:
            steps[axis] = 0
        else:
            rt.match(x, op, name, axis, wanted[axis], b"q")
    strides[0] = ck_strides(steps[0], steps[2], steps[1])
    return <float *> x.data


cdef void *take_rows(ck_strides *strides, given, const char *op, const char *name, unsigned int flags,
                     const ck_array *like, int64_t heads) except? NULL:
    """A real (B, heads, D) array, one token of each sequence of `like`, and of its dtype."""
    cdef ck_array x
    rt.take(&x, given, op, name, CK_IS_REAL | CK_DIMS(3, 3) | flags)
    rt.same_dtype(&x, op, name, like, b"q")
    rt.match(&x, op, name, 0, like.shape[0], b"q")
    rt.match(&x, op, name, 1, heads, b"keys" if heads != like.shape[1] else b"q")
    rt.match(&x, op, name, 2, like.shape[2], b"q")
    strides[0] = ck_strides(x.stride[0], 0, x.stride[1])
    return x.data


cdef int check_scores(const char *op, int64_t heads, int64_t kv_heads, int64_t d, double scale, double softcap,
                      int64_t window) except -1:
    """Heads, and what is made of their scores."""
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"[kernels.{op.decode()}] q has {heads} heads and k has {kv_heads}. "
            "The first number must be a multiple of the second."
        )
    if d > LARGEST_HEAD or d == 0:
        raise ValueError(
            f"[kernels.{op.decode()}] q has head size {d}, outside [1, {LARGEST_HEAD}]. "
            "Use more, smaller heads."
        )
    if not isfinite(scale):
        raise ValueError(
            f"[kernels.{op.decode()}] scale is {scale}. "
            "Pass a finite number, such as 1 / sqrt(D)."
        )
    if not (softcap >= 0 and isfinite(softcap)):
        raise ValueError(
            f"[kernels.{op.decode()}] softcap is {softcap}. "
            "Pass the bound of the scores, or 0 for none."
        )
    if window < 0:
        raise ValueError(
            f"[kernels.{op.decode()}] window is {window}. "
            "Pass the number of keys to see, or 0 for all."
        )
    return 0


cdef int take_inputs(ck_attention_args *a, ck_array *aq, ck_array *ak, ck_array *abias, const char *op, q, k, v,
                     double scale, int64_t window, first, end, bint causal, double softcap, sinks,
                     bias) except -1:
    """q, k, v and the options, the same for both directions."""
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
    a.scale, a.softcap = scale, softcap
    a.window, a.causal = window, causal
    a.first = a.end = NULL
    a.sinks = a.bias = NULL
    a.dsinks = a.dbias = NULL
    check_scores(op, a.h, a.kv, a.d, scale, softcap, window)
    if causal and a.s > a.t:
        raise ValueError(
            f"[kernels.{op.decode()}] q has {a.s} queries and k has {a.t} keys, but each causal query stands "
            "at a key. Pass at least as many keys, or causal=False."
        )
    if first is not None:
        a.first = take_bound(first, op, b"first", a)
    if end is not None:
        a.end = take_bound(end, op, b"end", a)
    if sinks is not None:
        a.sinks = take_heads(sinks, op, b"sinks", 0, a.h)
    if bias is not None:
        a.bias = take_bias(abias, &a.bias_s, bias, op, b"bias", 0, a)
    return 0


def attention_forward(o, lse, q, k, v, scale, window=0, first=None, end=None, causal=True, softcap=0.0, sinks=None,
                      bias=None):
    """o = softmax(softcap(scale · q kᵀ) + bias, where visible) · v; lse = log-sum-exp of the scores, with the sink."""
    cdef const char *op = b"attention_forward"
    cdef ck_array aq, ak, abias
    cdef ck_attention_args a
    take_inputs(&a, &aq, &ak, &abias, op, q, k, v, scale, window, first, end, causal, softcap, sinks, bias)
    a.o = take_like(&a.o_s, o, op, b"o", CK_IS_WRITTEN, &aq, b"q")
    a.lse = take_statistic(lse, op, b"lse", CK_IS_WRITTEN, &aq)
    with nogil:
        rt.run(rt.table.attention_forward[aq.dtype], &a, sizeof(a), a.b * a.h * a.s * a.t * (a.d // 16 + 1))


def attention_backward(dq, dk, dv, delta, do, q, k, v, o, lse, scale, window=0, first=None, end=None, causal=True,
                       softcap=0.0, sinks=None, bias=None, dsinks=None, dbias=None):
    """dq, dk, dv = the gradients of q, k, v; dsinks and dbias, unless None, += theirs. delta float32 (B,H,S) = do · o."""
    cdef const char *op = b"attention_backward"
    cdef ck_array aq, ak, abias, adbias
    cdef ck_attention_args a
    cdef int axis
    take_inputs(&a, &aq, &ak, &abias, op, q, k, v, scale, window, first, end, causal, softcap, sinks, bias)
    a.dq = take_like(&a.dq_s, dq, op, b"dq", CK_IS_WRITTEN, &aq, b"q")
    a.dk = take_like(&a.dk_s, dk, op, b"dk", CK_IS_WRITTEN, &ak, b"k")
    a.dv = take_like(&a.dv_s, dv, op, b"dv", CK_IS_WRITTEN, &ak, b"k")
    a.dout = take_like(&a.dout_s, do, op, b"do", 0, &aq, b"q")
    a.o = take_like(&a.o_s, o, op, b"o", 0, &aq, b"q")
    a.delta = take_statistic(delta, op, b"delta", CK_IS_WRITTEN, &aq)
    a.lse = take_statistic(lse, op, b"lse", 0, &aq)
    for name, gradient, of in (("sinks", dsinks, sinks), ("bias", dbias, bias)):
        if gradient is not None and of is None:
            raise ValueError(
                f"[kernels.{op.decode()}] d{name} is given, but {name} is None. Pass both, or {name} alone."
            )
    if dsinks is not None:
        a.dsinks = take_heads(dsinks, op, b"dsinks", CK_IS_WRITTEN, a.h)
    if dbias is not None:
        a.dbias = take_bias(&adbias, &a.dbias_s, dbias, op, b"dbias", CK_IS_WRITTEN, &a)
        for axis in range(3):
            rt.match(&adbias, op, b"dbias", axis, abias.shape[axis], b"bias")
    with nogil:
        rt.run(rt.table.attention_backward[aq.dtype], &a, sizeof(a), a.b * a.h * a.s * a.t * (a.d // 8 + 1))


def attention_merge(o, lse, part, part_lse):
    """o, real or float32, and lse over some keys become those over them and the keys of `part`."""
    cdef const char *op = b"attention_merge"
    cdef ck_array ao, apart
    cdef ck_attention_merge_args a
    cdef int axis
    rt.take(&apart, part, op, b"part", CK_IS_REAL | CK_DIMS(4, 4))
    rt.take(&ao, o, op, b"o", CK_IS_REAL | CK_DIMS(4, 4) | CK_IS_WRITTEN)
    a.o_is_f32 = ao.dtype == CK_F32
    if not a.o_is_f32:
        rt.same_dtype(&ao, op, b"o", &apart, b"part")
    for axis in range(4):
        rt.match(&ao, op, b"o", axis, apart.shape[axis], b"part")
    a.o = ao.data
    a.part = apart.data
    a.b, a.s, a.h, a.d = apart.shape[0], apart.shape[1], apart.shape[2], apart.shape[3]
    a.o_s = ck_strides(ao.stride[0], ao.stride[1], ao.stride[2])
    a.part_s = ck_strides(apart.stride[0], apart.stride[1], apart.stride[2])
    a.lse = take_statistic(lse, op, b"lse", CK_IS_WRITTEN, &apart)
    a.part_lse = take_statistic(part_lse, op, b"part_lse", 0, &apart)
    with nogil:
        rt.run(rt.table.attention_merge[apart.dtype], &a, sizeof(a), a.b * a.h * a.s * (a.d + 16))


def attention_cached(o, keys, values, q, k, v, lengths, scale, window=0, softcap=0.0):
    """One new token per sequence: k and v are put into the cache, then o is attention over the keys seen there."""
    cdef const char *op = b"attention_cached"
    cdef ck_array aq, akeys, avalues, alengths
    cdef ck_attention_cached_args a
    cdef int64_t b
    cdef int axis
    rt.take(&aq, q, op, b"q", CK_IS_REAL | CK_DIMS(3, 3))
    rt.take(&akeys, keys, op, b"keys", CK_IS_REAL | CK_DIMS(4, 4) | CK_IS_WRITTEN)
    rt.take(&avalues, values, op, b"values", CK_IS_REAL | CK_DIMS(4, 4) | CK_IS_WRITTEN)
    rt.take(&alengths, lengths, op, b"lengths", CK_IS_I32 | CK_DIMS(1, 1) | CK_IS_PACKED)
    rt.match(&akeys, op, b"keys", 0, aq.shape[0], b"q")
    rt.match(&akeys, op, b"keys", 3, aq.shape[2], b"q")
    rt.same_dtype(&avalues, op, b"values", &akeys, b"keys")
    for axis in range(4):
        rt.match(&avalues, op, b"values", axis, akeys.shape[axis], b"keys")
    rt.match(&alengths, op, b"lengths", 0, aq.shape[0], b"q")
    a.b, a.h, a.d = aq.shape[0], aq.shape[1], aq.shape[2]
    a.p, a.kv = akeys.shape[1], akeys.shape[2]
    check_scores(op, a.h, a.kv, a.d, scale, softcap, window)
    a.q, a.keys, a.values, a.lengths = aq.data, akeys.data, avalues.data, <const int32_t *> alengths.data
    a.q_s = ck_strides(aq.stride[0], 0, aq.stride[1])
    a.keys_s = ck_strides(akeys.stride[0], akeys.stride[1], akeys.stride[2])
    a.values_s = ck_strides(avalues.stride[0], avalues.stride[1], avalues.stride[2])
    a.k = take_rows(&a.k_s, k, op, b"k", 0, &aq, a.kv)
    a.v = take_rows(&a.v_s, v, op, b"v", 0, &aq, a.kv)
    a.o = take_rows(&a.o_s, o, op, b"o", CK_IS_WRITTEN, &aq, a.h)
    a.scale, a.softcap, a.window = scale, softcap, window
    a.cache_is_bf16 = akeys.dtype == CK_BF16
    for b in range(a.b):
        if a.lengths[b] < 0 or (a.lengths[b] >= a.p and not 0 < window <= a.p):
            raise ValueError(
                f"[kernels.{op.decode()}] lengths[{b}] is {a.lengths[b]}, and keys has {a.p} positions. "
                "Pass a longer cache, or a window that is not longer than it."
            )
    if a.b == 0:
        return
    a.chunks = CK_SHARED_BYTES // (4 * a.b * a.h * (a.d + 2))
    if a.chunks == 0:
        raise ValueError(
            f"[kernels.{op.decode()}] q has {a.b} tokens with {a.h} heads of {a.d}: their sums take more than the "
            f"workspace of {CK_SHARED_BYTES:,} bytes. Pass fewer sequences at a time."
        )
    a.chunks = min(a.chunks, MOST_CHUNKS)
    with nogil:
        rt.run(rt.table.attention_cached[aq.dtype], &a, sizeof(a), a.b * a.h * a.p * (a.d // 4 + 1))
