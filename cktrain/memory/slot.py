"""Slots: the arrays that a micro-batch needs from its forward to its backward.

A `Slot` is a part of the activation arena: modules ask it for arrays by name. The first pass over a model is a dry run
(`plan_slot`) that records the names and shapes with the real code; after it a slot is a dictionary of arrays at fixed
addresses, and a training step allocates nothing.

Three lifetimes:
- `slot.saved(module, name, …)`: belongs to this module and micro-batch, from the forward to the end of the backward;
- `slot.shared(module, name, …)`: one array for all modules with the same role (the same place in every block), valid
  until the next module of that role runs, or until the phase ends. Slots of one rank share these too;
- `slot.kept(module, name, …)`: like saved, also under `memory.checkpointing: block`, where saved arrays inside a block
  are had once for all blocks (`slot.recomputing`) and only the block's output stays.

`slot.phase(name)` surrounds code whose shared arrays nobody reads after it. Phases nest, and what is asked in one alone
lies where the arrays of its sister phases lie: head, attention and MLP have their temporaries in the same memory, which
is as large as the greatest of them (docs/memory.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from cktrain.memory.arena import CACHE_LINE, Arena, Shape, nbytes_of, round_up, shape_alone

if TYPE_CHECKING:
    from cktrain.nn.module import Module

Path = tuple[str, ...]
"""Phases, the outermost first."""
_NO_PHASE: AbstractContextManager[None] = nullcontext()


@dataclass(eq=False)
class Stream:
    """What crosses layers beside the residual stream: an encoder's output, a bias that layers share.

    The layer that makes it writes `value` in its forward and reads `gradient` in its backward; layers after it read the
    one and add to the other. Both travel between pipeline stages with the residual stream.
    """

    value: np.ndarray
    gradient: np.ndarray


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
        self.keys: np.ndarray | None = None
        """(B,) uint64: what is random in each sequence follows from them; None: nothing is random."""
        self.streams: dict[str, Stream] = {}
        """By name, what crosses layers beside the residual stream (`Transformer.streams`)."""
        self.cache: Any = None
        """Key/value cache while generating (`cktrain/generation/decoder.py`)."""
        self._arrays: dict[tuple[str, str], Any] = {}
        self._by_role = False

    def describe(
        self, positions: np.ndarray | None, first: np.ndarray | None, keys: np.ndarray | None = None
    ) -> None:
        """What the micro-batch says of its rows: (B, T) int32 each, or None for one document per sequence.

        `keys` (B,) uint64: of its sequences, where something in them is random (`Batch.keys`).
        """
        self.keys = keys
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
            place = once[start : start + nbytes_of(shape, dtype)]
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
                start += round_up(nbytes_of(*spec), CACHE_LINE)
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


def _total(arrays: dict[tuple[str, str], tuple[Shape, np.dtype]]) -> int:
    return sum(round_up(nbytes_of(*spec), CACHE_LINE) for spec in arrays.values())
