# What every module of ops includes: the runtime (csrc/runtime.h) and the words of the checks at the door.
# `rt.take` describes a numpy array or raises; nothing here allocates unless it raises.

from libc.stdint cimport int32_t, int64_t
from cpython.pycapsule cimport PyCapsule_GetPointer

from cktrain.cython_kernels import _runtime

cdef extern from "runtime.h" nogil:
    ctypedef struct ck_team
    ctypedef void (*ck_kernel)(const void *args, const ck_team *team) noexcept nogil
    ctypedef struct ck_table  # each module of ops declares the kernels that it calls
    ctypedef struct ck_array:
        void *data
        int64_t shape[4]
        int64_t stride[4]
        int dims
        int dtype
    ctypedef struct ck_runtime:
        const ck_table *table
        void (*run)(ck_kernel kernel, const void *args, size_t size, int64_t work) noexcept nogil
        int (*take)(ck_array *array, object given, const char *op, const char *name,
                    unsigned int allowed) except -1
        int (*match)(const ck_array *array, const char *op, const char *name, int axis, int64_t wanted,
                     const char *source) except -1
        int (*same_dtype)(const ck_array *array, const char *op, const char *name, const ck_array *other,
                          const char *other_name) except -1
        int (*in_range)(const ck_array *array, const char *op, const char *name, int64_t limit) except -1
    const char *CK_RUNTIME_CAPSULE
    const int CK_F32, CK_BF16
    const unsigned int CK_IS_F32, CK_IS_BF16, CK_IS_I32, CK_IS_U8, CK_IS_REAL, CK_IS_WRITTEN, CK_IS_PACKED
    unsigned int CK_DIMS(int least, int most)

cdef const ck_runtime *rt = <const ck_runtime *> PyCapsule_GetPointer(_runtime.capsule, CK_RUNTIME_CAPSULE)
