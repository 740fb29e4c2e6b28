"""The door to csrc/onednn.c: opening a libdnnl, and the table of kernels whose bf16 products it computes."""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport int64_t

cdef extern from "onednn.h":
    ctypedef struct ck_table
    ctypedef struct ck_onednn_facts:
        int major, minor, patch, has_amx
    int ck_onednn_open(const char *path, ck_onednn_facts *facts, char *problem, int64_t problem_size) nogil
    const ck_table *ck_onednn_table(const ck_table *own)
    void ck_onednn_count(int64_t *shapes, int64_t *refused)
    const char *CK_TABLE_CAPSULE


def open_library(path: str) -> tuple[str, bool]:
    """The version of the oneDNN at `path`, and whether it may use AMX here. OSError, with the reason, if it won't do."""
    cdef ck_onednn_facts facts
    cdef char problem[512]
    cdef bytes name = path.encode()
    if ck_onednn_open(name, &facts, problem, sizeof(problem)) != 0:
        raise OSError(problem.decode(errors="replace"))
    return f"{facts.major}.{facts.minor}.{facts.patch}", facts.has_amx


def table(own):
    """The capsule of the set `own`, with the bf16 products of the opened library."""
    cdef const ck_table *pointer = <const ck_table *> PyCapsule_GetPointer(own, CK_TABLE_CAPSULE)
    return PyCapsule_New(<void *> ck_onednn_table(pointer), CK_TABLE_CAPSULE, NULL)


def products() -> tuple[int, int]:
    """How many shapes of product were asked for, and how many of them are left to the own kernels."""
    cdef int64_t shapes = 0, refused = 0
    ck_onednn_count(&shapes, &refused)
    return shapes, refused
