"""Element-wise reduction of several arrays, as a C function in a capsule for those who move them between ranks.

The capsule's name is "cktrain.reduce_n", its function `void reduce_n(void *const *dst, int n_dst,
const void *const *src, int n_src, int64_t count, int dtype, int op)`: dtype 0 f32, 1 bf16, 2 f64, 3 int32,
4 int64; op 0 sum, 1 mean, 2 max, 3 min, plus 256 to write past the caches. Any thread may call it, without the
GIL; on the thread that owns the pool the whole pool works.
"""

include "_door.pxi"

from cpython.pycapsule cimport PyCapsule_New

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel reduce_n
    ctypedef struct ck_reduce_args:
        void **dst
        const void **src
        int64_t count
        int n_dst, n_src, dtype, op, stream

cdef extern from *:
    """
    #include <pthread.h>
    static pthread_t ck_pool_owner;
    static void ck_remember_owner(void) { ck_pool_owner = pthread_self(); }
    static int ck_owns_pool(void) { return pthread_equal(ck_pool_owner, pthread_self()); }
    static void ck_run_alone(ck_kernel kernel, const void *args) {
        const ck_team team = {.index = 0, .size = 1};       /* reduce_n neither waits nor uses scratch */
        kernel(args, &team);
    }
    """
    void ck_remember_owner() nogil
    bint ck_owns_pool() nogil
    void ck_run_alone(ck_kernel kernel, const void *args) nogil

# Below this a wake-up of the pool costs more than it saves; comm's small reductions are far below.
cdef int64_t POOL_BYTES = 1 << 20


cdef void _reduce_n(void **dst, int n_dst, const void **src, int n_src, int64_t count, int dtype,
                    int op) noexcept nogil:
    cdef ck_reduce_args a
    cdef ck_kernel kernel = rt.table.reduce_n
    a.dst, a.src, a.count = dst, src, count
    a.n_dst, a.n_src, a.dtype, a.op, a.stream = n_dst, n_src, dtype, op & 255, op >= 256
    if count * 4 >= POOL_BYTES and ck_owns_pool():
        rt.run(kernel, &a, sizeof(a), count * n_src)
    else:
        ck_run_alone(kernel, &a)


ck_remember_owner()
capsule = PyCapsule_New(<void *> &_reduce_n, "cktrain.reduce_n", NULL)
