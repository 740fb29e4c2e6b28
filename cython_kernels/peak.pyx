"""The machine's limits under the kernels in force: multiply-adds in registers, arrays streamed through memory.

For benchmarks (cktrain/bench/peak.py); no op of a model is here.
"""

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel peak_bf16
        ck_kernel peak_f32
        ck_kernel stream
    const int CK_STREAMS
    ctypedef struct ck_peak_args:
        int64_t steps, flops
        double result
    ctypedef struct ck_stream_args:
        const float *inputs "in"[4]
        float *out[4]
        int64_t n
        int reads, writes, streaming
        double result

# More elements than any team's threshold asks for: every thread takes part.
cdef int64_t ALL_THREADS = 1 << 50


def multiply_adds(bint bf16, int64_t steps):
    """Run `steps` rounds of independent multiply-adds on every thread; returns the floating-point operations.

    bf16: pairs of bfloat16 products added to fp32, where the instruction set has them; else fp32.
    """
    cdef ck_peak_args a
    cdef ck_kernel kernel = rt.table.peak_bf16 if bf16 else rt.table.peak_f32
    a.steps = steps
    a.flops = 0
    with nogil:
        rt.run(kernel, &a, sizeof(a), ALL_THREADS)
    return a.flops


def stream(out, inputs, bint streaming=False):
    """Every array of `out` = the sum of those of `inputs`, all fp32 (n,); returns the bytes read and written.

    streaming: write past the caches. n must be a multiple of 64 and the arrays 64-byte aligned; an output may
    be an input.
    """
    cdef ck_stream_args a
    cdef ck_array array, first
    cdef int i = 0
    cdef unsigned int kind = CK_IS_F32 | CK_DIMS(1, 1)
    assert 0 < len(out) + len(inputs) and max(len(out), len(inputs)) <= CK_STREAMS
    rt.take(&first, (*out, *inputs)[0], b"stream", b"array", CK_IS_F32 | CK_DIMS(1, 1))
    a.n = first.shape[0]
    a.reads = len(inputs)
    a.writes = len(out)
    a.streaming = streaming
    for i in range(a.reads + a.writes):
        given = inputs[i] if i < a.reads else out[i - a.reads]
        rt.take(&array, given, b"stream", b"array", kind if i < a.reads else kind | CK_IS_WRITTEN)
        rt.match(&array, b"stream", b"array", 0, a.n, b"the first array")
        assert a.n % 64 == 0 and <int64_t> array.data % 64 == 0
        if i < a.reads:
            a.inputs[i] = <const float *> array.data
        else:
            a.out[i - a.reads] = <float *> array.data
    with nogil:
        rt.run(rt.table.stream, &a, sizeof(a), ALL_THREADS)
    return 4 * a.n * (a.reads + a.writes)
