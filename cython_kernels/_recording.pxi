# Part of _runtime.pyx: a step's kernel calls, noted at the door and made again by one call (docs/generate.md).
#
# While a step is recorded, the doors' `take` and `run` are those below: they do what they always do, and note the arrays
# and the arguments. A step may be replayed when all that it computes follows from its calls, so `problem` says when
#   - a call reads memory that neither was named as known nor was written by a call before: numpy filled it, or another rank
#   - a call writes no array, or changes its arguments: it returns a number, on which Python may have acted
# What numpy changes in place between two calls is found by `scramble` and a comparison of both results, which is the
# caller's part (cktrain/generation/recorded_step.py).

from threading import get_ident as _get_ident

import numpy as np

from cktrain.cython_kernels.memory_ranges import MemoryRanges as _MemoryRanges

cdef Recording recording = None  # the one that is being made


cdef class Recording:
    """The kernel calls that one thread makes within `with recording:`, to be made again by `replay`.

    Replaying runs the same kernels with the same arguments: arrays at the same addresses, whose contents may be others,
    and numbers as they were. The arrays are kept alive.
    """

    cdef ck_recording calls
    cdef object thread, known, memory
    cdef list pinned, coming, written
    cdef readonly str problem
    """Why it cannot be replayed; "": it can."""

    def __init__(self, known):
        """`known`: arrays that calls may read though no call wrote them: constants, and what a step is given."""
        self.known = _MemoryRanges()
        for array in known:
            self.known.add(*_range_of(array))
        self.memory = self.known.copy()
        self.pinned = list(known)
        self.coming = []
        self.written = []
        self.problem = ""

    def __dealloc__(self):
        ck_recording_clear(&self.calls)

    def __len__(self):
        return self.calls.count

    def __enter__(self):
        global recording
        if recording is not None:
            raise RuntimeError("[kernels.Recording] another step is being recorded. End it first.")
        self.thread = _get_ident()
        recording = self
        runtime.take = <void *> noted_take
        runtime.run = <void *> noted_run
        return self

    def __exit__(self, *exception):
        global recording
        recording = None
        runtime.take = <void *> ck_take
        runtime.run = <void *> run

    def replay(self):
        """Make all calls again. Asserts that there is no problem."""
        assert not self.problem, self.problem
        with nogil:
            ck_pool_replay(&self.calls)

    def scramble(self):
        """Overwrite all that the calls write, but what is known: a replay that needs something else shows it."""
        for array in self.written:
            if not self.known.meets(*_range_of(array)):
                array.fill(np.iinfo(array.dtype).max if array.dtype.kind in "iu" else np.nan)

    cdef object note(self, object given, str op, str name, bint is_written):
        if _get_ident() == self.thread:
            self.coming.append((given, op, name, is_written))

    cdef bint before(self, ck_kernel kernel, const void *args, size_t size, int64_t work):
        """Whether the call is this thread's, and so was added."""
        if _get_ident() != self.thread:
            return False
        for given, op, name, is_written in self.coming:
            if not is_written and not self.memory.covers(*_range_of(given)):
                self.refuse(f"{op} reads {name}, which no kernel wrote")
        if not any(is_written for _, _, _, is_written in self.coming):
            self.refuse("a call writes no array")
        if ck_recording_add(&self.calls, kernel, args, size, work):
            self.refuse("there is no memory for the arguments of a call")
            return False
        return True

    cdef object after(self, const void *args):
        if not ck_recording_is_last(&self.calls, args):
            self.refuse(f"{self.coming[0][1] if self.coming else 'a call'} returns a number")
        for given, _, _, is_written in self.coming:
            self.pinned.append(given)
            if is_written:
                self.written.append(given)
                self.memory.add(*_range_of(given))
        self.coming.clear()

    cdef object refuse(self, str why):
        self.problem = self.problem or why


def _range_of(array) -> tuple[int, int]:
    """The addresses [begin, end) that the array's elements lie in; strides are not negative."""
    begin = array.__array_interface__["data"][0]
    if array.size == 0:
        return begin, begin
    return begin, begin + sum((n - 1) * step for n, step in zip(array.shape, array.strides)) + array.itemsize


cdef int noted_take(ck_array *array, object given, const char *op, const char *name,
                    unsigned int allowed) except -1:
    ck_take(array, given, op, name, allowed)
    if recording is not None:
        recording.note(given, op.decode(), name.decode(), (allowed & CK_IS_WRITTEN) != 0)
    return 0


cdef void noted_run(ck_kernel kernel, const void *args, size_t size, int64_t work) noexcept nogil:
    cdef bint added = False
    with gil:
        added = recording is not None and recording.before(kernel, args, size, work)
    ck_pool_run(kernel, args, work)
    if added:
        with gil:
            recording.after(args)
