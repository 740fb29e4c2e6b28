"""Arenas and slots: where every array of a run lives.

An `Arena` is one contiguous, anonymous region, 2 MiB aligned, advised to use huge pages; arrays are cut from it one
after the other and never given back. A `Slot` is the part of the activation arena that one micro-batch needs from its
forward to its backward: modules ask it for arrays by name. The first pass over a model is a dry run (`plan_slot`) that
records the names and shapes with the real code; after it a slot is a dictionary of arrays at fixed addresses, and a
training step allocates nothing.

Three lifetimes:
- `slot.saved(module, name, …)`: belongs to this module and micro-batch, from the forward to the end of the backward;
- `slot.shared(module, name, …)`: one array for all modules with the same role (the same place in every block), valid
  until the next module of that role runs, or until the phase ends. Slots of one rank share these too;
- `slot.kept(module, name, …)`: like saved, also under `memory.checkpointing: block`, where saved arrays inside a block
  are had once for all blocks (`slot.recomputing`) and only the block's output stays.

`slot.phase(name)` surrounds code whose shared arrays nobody reads after it. Phases nest, and what is asked in one alone
lies where the arrays of its sister phases lie: head, attention and MLP have their temporaries in the same memory, which
is as large as the greatest of them (docs/memory.md).

`arena_accounts` says what all arenas hold. Within `planning()` arenas have sizes and no memory, so that a run's memory
can be added up, by the code that will ask for it, before anything is allocated.
"""

from __future__ import annotations

import itertools
import mmap
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cktrain.nn.module import Module

HUGE_PAGE = 2 << 20
CACHE_LINE = 64

Shape = tuple[int, ...]
Path = tuple[str, ...]
"""Phases, the outermost first."""
_NO_PHASE: AbstractContextManager[None] = nullcontext()
Allocate = Callable[[int], np.ndarray]
"""nbytes -> (nbytes,) uint8 zeros, 2 MiB aligned."""


_ACCOUNTS: dict[int, tuple[str, int]] = {}
"""Name and bytes of each arena whose memory exists, by number."""
_NUMBERS = itertools.count()
_PLANNED: ContextVar[Counter[str] | None] = ContextVar("planned arenas", default=None)


def arena_accounts() -> Counter[str]:
    """Bytes of all arenas of this process whose memory exists, by the arena's name."""
    accounts: Counter[str] = Counter()
    for name, nbytes in list(_ACCOUNTS.values()):
        accounts[name] += nbytes
    return accounts


@contextmanager
def planning() -> Iterator[Counter[str]]:
    """Within the block arenas take no memory, and their arrays have a shape alone.

    Gives the bytes that were asked for, by the arena's name.
    """
    token = _PLANNED.set(Counter())
    try:
        accounts = _PLANNED.get()
        assert accounts is not None
        yield accounts
    finally:
        _PLANNED.reset(token)


def shape_alone(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An array of this shape whose elements are all the same one."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))


class Arena:
    """A region of `nbytes` for one purpose; pages become real when they are first touched."""

    def __init__(self, name: str, nbytes: int, allocate: Allocate | None = None) -> None:
        """With `allocate` the memory is a group's, whose ranks then work on it in place (`Group.allocate`).

        Raises MemoryError, naming the arena and its size, when the system refuses the address space.
        """
        self.name = name
        self.capacity = nbytes
        self.used = 0
        size = _round_up(max(nbytes, 1), HUGE_PAGE)
        planned = _PLANNED.get()
        self.is_planned = planned is not None
        if planned is not None:
            planned[name] += nbytes
            return
        if allocate is not None:
            self._bytes = allocate(size)
            self._account()
            return
        try:
            self._map = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(
                f"[memory] the {name} arena needs {size:,} bytes and the system refuses: {error.strerror}. "
                "Use a smaller micro-batch, memory.checkpointing: block, or more ranks"
            ) from None
        raw = np.frombuffer(self._map, dtype=np.uint8)
        start = -raw.ctypes.data % HUGE_PAGE
        if whole := nbytes // HUGE_PAGE * HUGE_PAGE:  # the end, of no whole page, is not rounded up to one
            self._map.madvise(mmap.MADV_HUGEPAGE, start, whole)
        self._bytes = raw[start : start + size]
        self._account()

    def array(self, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """The next array of this arena, cache-line aligned; zero until written."""
        nbytes = _nbytes(shape, dtype)
        start, self.used = self.used, self.used + _round_up(nbytes, CACHE_LINE)
        if self.is_planned:
            return shape_alone(shape, dtype)
        assert self.used <= self._bytes.size, f"{self.name} arena: {self.used} of {self._bytes.size} bytes"
        return self._bytes[start : start + nbytes].view(dtype).reshape(shape)

    def _account(self) -> None:
        """Note this arena until the last of its arrays is gone."""
        owner = self._bytes
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        number = next(_NUMBERS)
        _ACCOUNTS[number] = (self.name, self.capacity)
        weakref.finalize(owner, _ACCOUNTS.pop, number, None).atexit = False


class Slot:
    """The arrays of one micro-batch: B sequences of T tokens (N = B·T rows)."""

    def __init__(self, batch_size: int, sequence_length: int) -> None:
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.rows = batch_size * sequence_length
        self._in_order = np.tile(np.arange(sequence_length, dtype=np.int32), batch_size)
        self.positions = self._in_order
        """Position of each of the N rows in its sequence or document, int32."""
        self.first: np.ndarray | None = None
        """(B, T) int32: the first key that a token sees, where documents are packed."""
        self.cache: Any = None
        """Key/value cache while generating (`generate.py`)."""
        self._arrays: dict[tuple[str, str], Any] = {}
        self._by_role = False

    def describe(self, positions: np.ndarray | None, first: np.ndarray | None) -> None:
        """What the micro-batch says of its rows: (B, T) int32 each, or None for one document per sequence."""
        self.positions = self._in_order if positions is None else positions.reshape(-1)
        self.first = first

    def saved(self, module: Module, name: str, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """The array `name` of `module`, kept until this micro-batch's backward is done."""
        return self._arrays[module.role if self._by_role else module.name, name]

    def kept(self, module: Module, name: str, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """The array `name` of `module`, kept until the backward is done even where blocks are recomputed."""
        return self._arrays[module.name, name]

    def shared(self, module: Module, name: str, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """A temporary of `module`, overwritten by the next module of the same role."""
        return self._arrays[module.role, name]

    def phase(self, name: str) -> AbstractContextManager[None]:
        """The block's shared arrays are free when it ends; no two phases of one name may be alive at once."""
        return _NO_PHASE

    def view(self, module: Module, name: str, make: Callable[[], Any]) -> Any:
        """Views of this slot's arrays, made once by `make` and remembered."""
        key = (module.role if self._by_role else module.name, name)
        found = self._arrays.get(key)
        if found is None:
            found = self._arrays[key] = make()
        return found

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Within the block, saved arrays are by role: one block's worth for all blocks."""
        before, self._by_role = self._by_role, True
        try:
            yield
        finally:
            self._by_role = before


class _Recorder(Slot):
    """The slot of a dry run: hands out arrays that have a shape and no memory, and notes what was asked."""

    def __init__(self, batch_size: int, sequence_length: int) -> None:
        super().__init__(batch_size, sequence_length)
        self.asked: dict[tuple[str, str], tuple[Shape, np.dtype]] = {}
        self.paths: dict[tuple[str, str], Path] = {}
        """Of each array that is had once per rank, the phases that hold all places where it was asked."""
        self._path: Path = ()
        self._block: Path = ()

    def shared(self, module: Module, name: str, shape: Shape, dtype: np.dtype) -> np.ndarray:
        self._had_once((module.role, name), self._path)
        return self._dry((module.role, name), shape, dtype)

    def saved(self, module: Module, name: str, shape: Shape, dtype: np.dtype) -> np.ndarray:
        if not self._by_role:
            return self.kept(module, name, shape, dtype)
        self._had_once((module.role, name), self._block)  # also read in later phases of the block
        return self._dry((module.role, name), shape, dtype)

    def kept(self, module: Module, name: str, shape: Shape, dtype: np.dtype) -> np.ndarray:
        return self._dry((module.name, name), shape, dtype)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, self._path = self._path, (*self._path, name)
        try:
            yield
        finally:
            self._path = before

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        self._block = self._path
        with super().recomputing():
            yield

    def view(self, module: Module, name: str, make: Callable[[], Any]) -> Any:
        return make()

    def _had_once(self, key: tuple[str, str], path: Path) -> None:
        before = self.paths.setdefault(key, path)
        self.paths[key] = tuple(a for a, _ in takewhile(_equal, zip(before, path, strict=False)))

    def _dry(self, key: tuple[str, str], shape: Shape, dtype: np.dtype) -> np.ndarray:
        before = self.asked.setdefault(key, (shape, dtype))
        assert before == (shape, dtype), f"{key} asked as {before} and as {(shape, dtype)}"
        return shape_alone(shape, dtype)


class SlotPlan:
    """What a slot holds: `saved` arrays are each slot's own, `shared` ones are had once per rank. Sizes in bytes."""

    def __init__(self, recorder: _Recorder) -> None:
        self.batch_size = recorder.batch_size
        self.sequence_length = recorder.sequence_length
        self._saved = {k: v for k, v in recorder.asked.items() if k not in recorder.paths}
        self._shared = {k: v for k, v in recorder.asked.items() if k in recorder.paths}
        self.paths = recorder.paths
        """The phases of each shared array."""
        self._starts: dict[tuple[str, str], int] = {}
        self.saved_bytes = _total(self._saved)
        self.shared_bytes = self._place((), 0)

    def allocate(self, count: int = 1) -> list[Slot]:
        """`count` slots in one new arena."""
        arena = Arena("activations", count * self.saved_bytes + self.shared_bytes)
        once = arena.array((self.shared_bytes,), np.dtype(np.uint8))
        shared = {}
        for key, (shape, dtype) in self._shared.items():
            start = self._starts[key]
            place = once[start : start + _nbytes(shape, dtype)]
            shared[key] = shape_alone(shape, dtype) if arena.is_planned else place.view(dtype).reshape(shape)
        slots = []
        for _ in range(count):
            slot = Slot(self.batch_size, self.sequence_length)
            slot._arrays = dict(shared)
            slot._arrays.update((key, arena.array(*spec)) for key, spec in self._saved.items())
            slots.append(slot)
        return slots

    def _place(self, path: Path, start: int) -> int:
        """Give the arrays of a phase their places from `start` on, those of phases within it behind; the end."""
        for key, spec in self._shared.items():
            if self.paths[key] == path:
                self._starts[key] = start
                start += _round_up(_nbytes(*spec), CACHE_LINE)
        depth = len(path)
        within = {p[: depth + 1] for p in self.paths.values() if len(p) > depth and p[:depth] == path}
        return max([start, *(self._place(p, start) for p in sorted(within))])


def plan_slot(
    batch_size: int, sequence_length: int, run: Callable[[Slot], None], prepare: Any = None
) -> SlotPlan:
    """Records what `run` (a forward and backward under `Numerics.dry`) asks of a slot of this shape."""
    recorder = _Recorder(batch_size, sequence_length)
    if prepare is not None:
        prepare(recorder)
    with np.errstate(all="ignore"):  # the few lines of numpy in modules see zeros
        run(recorder)
    return SlotPlan(recorder)


def _equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def _nbytes(shape: Shape, dtype: np.dtype) -> int:
    size = dtype.itemsize
    for n in shape:
        size *= n
    return size


def _total(arrays: dict[tuple[str, str], tuple[Shape, np.dtype]]) -> int:
    return sum(_round_up(_nbytes(*spec), CACHE_LINE) for spec in arrays.values())


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
