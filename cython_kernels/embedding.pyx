"""Token embedding: rows of a table, and their gradient added back in the order of the rows.

Shapes: N ids, V vocabulary, C hidden size. Ids are int32 and checked: one outside [0, V) is an error.
"""

include "_door.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct ck_table:
        ck_kernel embedding_forward[2]
        ck_kernel embedding_backward[2]
    ctypedef struct ck_embedding_args:
        void *y
        const void *x
        const int32_t *ids
        int64_t n, c, y_row, x_row


def embedding_forward(y, ids, table):
    """y (N,C) = table (V,C)[ids (N)]. y and table real, rows may be strided."""
    cdef const char *op = b"embedding_forward"
    cdef ck_array ay, ai, at
    cdef ck_embedding_args a
    rt.take(&ay, y, op, b"y", CK_IS_REAL | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    rt.take(&ai, ids, op, b"ids", CK_IS_I32 | CK_DIMS(1, 1))
    rt.take(&at, table, op, b"table", CK_IS_REAL | CK_DIMS(2, 2))
    rt.same_dtype(&at, op, b"table", &ay, b"y")
    rt.match(&ay, op, b"y", 0, ai.shape[0], b"ids")
    rt.match(&ay, op, b"y", 1, at.shape[1], b"table")
    rt.in_range(&ai, op, b"ids", at.shape[0])
    a = ck_embedding_args(ay.data, at.data, <const int32_t *> ai.data, ay.shape[0], ay.shape[1], ay.stride[0],
                          at.stride[0])
    with nogil:
        rt.run(rt.table.embedding_forward[ay.dtype], &a, sizeof(a), a.n * a.c)


def embedding_backward(dtable, dy, ids):
    """dtable float32 (V,C)[ids (N)] += dy (N,C) real, one row after the other for any number of threads."""
    cdef const char *op = b"embedding_backward"
    cdef ck_array at, ay, ai
    cdef ck_embedding_args a
    rt.take(&at, dtable, op, b"dtable", CK_IS_F32 | CK_DIMS(2, 2) | CK_IS_WRITTEN)
    rt.take(&ay, dy, op, b"dy", CK_IS_REAL | CK_DIMS(2, 2))
    rt.take(&ai, ids, op, b"ids", CK_IS_I32 | CK_DIMS(1, 1))
    rt.match(&ay, op, b"dy", 0, ai.shape[0], b"ids")
    rt.match(&ay, op, b"dy", 1, at.shape[1], b"dtable")
    rt.in_range(&ai, op, b"ids", at.shape[0])
    a = ck_embedding_args(at.data, ay.data, <const int32_t *> ai.data, ay.shape[0], ay.shape[1], at.stride[0],
                          ay.stride[0])
    with nogil:
        rt.run(rt.table.embedding_backward[ay.dtype], &a, sizeof(a), a.n * a.c)
