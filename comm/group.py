"""The Group contract: what the trainer sees of other ranks.

A group is an ordered set of ranks. All its ranks make the same calls in the same order. Operations run in the
caller, or with `async_=True` are only started; both return a `Work` (complete, in the first case). Arrays are
numpy arrays, C-contiguous, of any shape, read and written in place; a contiguous slice of a larger buffer is
as good as an array of its own. Arguments are checked here, once, for every kind of group; lengths are checked
against this rank's own arguments only (a group made with `check=True` compares ranks as well).

Reductions have one canonical order (`cktrain.comm.reduction`): the same bits on all ranks, from run to run,
for any length, offset or transport. A group of several nodes in two levels (`cktrain.comm.two_level_group`) has an order
of its own that is as fixed; its `flat` has the canonical one.

Legend: n elements of an array; size ranks in the group; counts[r] elements that belong to rank r.

A group is used by one thread at a time. Every wait has the deadline `timeout_s`.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from operator import index
from typing import NoReturn

import numpy as np

from cktrain.comm.reduction import DTYPES, OPS
from cktrain.comm.work import Work

_HUGE_PAGE = 2 << 20


def even_counts(total: int, size: int) -> list[int]:
    """Split `total` elements among `size` ranks: the first total % size ranks hold one more."""
    base, extra = divmod(total, size)
    return [base + (rank < extra) for rank in range(size)]


def offsets_of(counts: Sequence[int]) -> list[int]:
    """Return where each rank's part begins: the exclusive prefix sum of `counts`."""
    return list(accumulate(counts, initial=0))[:-1]


def allocate_alone(nbytes: int) -> np.ndarray:
    """Return (nbytes,) uint8 zeros, 2 MiB aligned, in memory of this process alone, advised to use huge pages."""
    region = mmap.mmap(-1, nbytes + 2 * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(region, np.uint8)
    start = -raw.ctypes.data % _HUGE_PAGE
    return raw[start : start + nbytes]


class Group(ABC):
    """An ordered set of ranks and the operations among them."""

    def __init__(self, rank: int, size: int, name: str, timeout_s: float):
        if not timeout_s > 0:
            raise ValueError(f"[comm] timeout_s: {timeout_s} is not above 0. Give the deadline in seconds.")
        self.rank = rank
        self.size = size
        self.name = name
        self.timeout_s = timeout_s

    # Public operations: check, start, wait.

    def all_reduce(self, array: np.ndarray, op: str = "sum", async_: bool = False) -> Work:
        """Replace `array` (n) on every rank by the reduction over ranks.

        Args:
            array: fp32, bf16 (accumulated in fp32), fp64, int32 or int64; overwritten.
            op: "sum", "mean" (floating point only), "max" or "min".
            async_: only start; the array belongs to the returned Work until it is complete.

        Raises:
            ValueError: dtype, memory layout or op.
            CommError: the operation failed, or its deadline passed.
        """
        flat = self._flat("all_reduce", "array", array, writable=True)
        self._check_op("all_reduce", flat, op)
        return self._finish(self._all_reduce(flat, op), async_)

    def reduce_scatter(
        self,
        output: np.ndarray,
        input: np.ndarray,
        op: str = "sum",
        counts: Sequence[int] | None = None,
        async_: bool = False,
    ) -> Work:
        """Give each rank its part of the reduction over ranks of `input`.

        Args:
            output: (counts[rank]) this rank's part; may be exactly that part of `input`.
            input: (sum of counts), same dtype; unchanged elsewhere.
            op: as in all_reduce.
            counts: elements per rank, the same on all ranks; None: output's length for each.
            async_: as in all_reduce.
        """
        where = "reduce_scatter"
        out = self._flat(where, "output", output, writable=True)
        flat = self._flat(where, "input", input)
        self._check_op(where, flat, op)
        counts = self._check_counts(where, "output", out, "input", flat, counts)
        self._check_part_overlap(where, out, flat, counts)
        return self._finish(self._reduce_scatter(out, flat, op, counts), async_)

    def all_gather(
        self,
        output: np.ndarray,
        input: np.ndarray,
        counts: Sequence[int] | None = None,
        async_: bool = False,
    ) -> Work:
        """Give every rank the parts of all ranks, in the order of ranks.

        Args:
            output: (sum of counts), overwritten.
            input: (counts[rank]) this rank's part, same dtype; may be exactly that part of `output`.
            counts: elements per rank, the same on all ranks; None: input's length for each.
            async_: as in all_reduce.
        """
        where = "all_gather"
        out = self._flat(where, "output", output, writable=True)
        part = self._flat(where, "input", input)
        counts = self._check_counts(where, "input", part, "output", out, counts)
        self._check_part_overlap(where, part, out, counts)
        return self._finish(self._all_gather(out, part, counts), async_)

    def broadcast(self, array: np.ndarray, root: int = 0, async_: bool = False) -> Work:
        """Copy rank `root`'s `array` (n) over the array of every other rank."""
        self._check_rank("broadcast", "root", root)
        flat = self._flat("broadcast", "array", array, writable=self.rank != root)
        return self._finish(self._broadcast(flat, root), async_)

    def all_to_all(
        self,
        output: np.ndarray,
        input: np.ndarray,
        output_counts: Sequence[int] | None = None,
        input_counts: Sequence[int] | None = None,
        async_: bool = False,
    ) -> Work:
        """Send part r of `input` to rank r, for all r; part r of `output` comes from rank r.

        Parts follow each other in the order of ranks. What rank s has in input_counts[r], rank r has in output_counts[s]
        (as torch.distributed.all_to_all_single has it in its split sizes, and MPI_Alltoallv); ranks that do not know
        what comes exchange their counts by an all_to_all before.

        Args:
            output: (sum of output_counts), overwritten; does not overlap `input`.
            input: (sum of input_counts), same dtype.
            output_counts: elements from each rank, 0 where none come; None: as many from each.
            input_counts: elements to each rank, 0 where none go; None: as many to each.
            async_: as in all_reduce.

        Raises:
            ValueError: dtype, memory layout, lengths or counts that do not fit on this rank.
            CollectiveMismatchError: two ranks have different counts for what passes between them; raised on all ranks,
                before any payload moves. Over MPI without `check` it is raised by whoever gets more or less.
            CommError: the operation failed, or its deadline passed.
        """
        where = "all_to_all"
        out = self._flat(where, "output", output, writable=True)
        flat = self._flat(where, "input", input)
        alike = output_counts is None and input_counts is None
        if out.dtype != flat.dtype or (alike and out.size != flat.size):
            raise ValueError(
                f"[comm.{self.name}] {where}: output has {out.size:,} elements of {out.dtype}, input "
                f"{flat.size:,} of {flat.dtype}. Give both the same {'length and ' if alike else ''}dtype."
            )
        sent = self._part_counts(where, "input", flat, input_counts)
        received = sent if alike else self._part_counts(where, "output", out, output_counts)
        if received[self.rank] != sent[self.rank]:
            raise ValueError(
                f"[comm.{self.name}] {where}: rank {self.rank} has {sent[self.rank]:,} elements for itself in input_counts, "
                f"and {received[self.rank]:,} from itself in output_counts. Make them equal."
            )
        if np.may_share_memory(out, flat):
            raise ValueError(f"[comm.{self.name}] {where}: output overlaps input. Give separate arrays.")
        return self._finish(self._all_to_all(out, flat, received, sent), async_)

    def send(self, array: np.ndarray, to: int, async_: bool = False) -> Work:
        """Send `array` (n) to rank `to`, which receives it into an array of the same dtype and length.

        Complete means that the array may be used again, not that the peer has it. Messages between two ranks
        arrive in the order of the calls.
        """
        self._check_peer("send", "to", to)
        return self._finish(self._send(self._flat("send", "array", array), to), async_)

    def recv(self, array: np.ndarray, source: int, async_: bool = False) -> Work:
        """Receive what rank `source` sends into `array` (n); overwritten."""
        self._check_peer("recv", "source", source)
        return self._finish(self._recv(self._flat("recv", "array", array, writable=True), source), async_)

    def barrier(self) -> None:
        """Return when every rank of the group has called this."""
        self._finish(self._barrier(), async_=False)

    # Control data: small, synchronous, no pickle.

    @abstractmethod
    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every rank's `data`, in the order of ranks; lengths may differ."""

    @abstractmethod
    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """Return rank `root`'s `data` on every rank; the others' is ignored."""

    @property
    def flat(self) -> Group:
        """The same ranks, whose sums are added in the order of ranks: this group, or the one under its two levels."""
        return self

    # Memory.

    def allocate(self, nbytes: int) -> np.ndarray:
        """Return (nbytes,) uint8 zeros, 2 MiB aligned, in memory where this group's operations are cheapest.

        All ranks of the group call it; `nbytes` may differ. On one node the ranks reduce slices of it in place,
        and so do the groups split from this one. It lives as long as the world, or its arrays if they live longer.
        """
        return allocate_alone(nbytes)

    def use_reduction(self, capsule: object) -> None:  # noqa: B027
        """Reduce with the function of this capsule (csrc/reduce.h) where the group has a use for it; None: no change.

        It holds for all groups of the process, and gives the same bits as the plain reduction.
        """

    # Membership and lifetime.

    @abstractmethod
    def split(self, color: int, key: int = 0) -> Group:
        """Return the group of the ranks that gave the same `color` >= 0, ordered by (key, rank).

        All ranks of this group call it. A part of one rank is a SoloGroup.
        """

    @abstractmethod
    def close(self) -> None:
        """End the use of this group, on all its ranks; safe to call twice.

        Closing the group that `init` returned ends communication for the process: call it last, on every
        rank, before a planned exit with any status. A rank that exits without it is a failed rank: the
        launcher stops the others.
        """

    @abstractmethod
    def abort(self, code: int) -> NoReturn:
        """End this process and, where the transport can, every rank of the job, with exit status `code`."""

    # What a kind of group implements: start the checked operation on flat arrays.

    @abstractmethod
    def _all_reduce(self, array: np.ndarray, op: str) -> Work: ...

    @abstractmethod
    def _reduce_scatter(self, output: np.ndarray, input: np.ndarray, op: str, counts: list[int]) -> Work: ...

    @abstractmethod
    def _all_gather(self, output: np.ndarray, input: np.ndarray, counts: list[int]) -> Work: ...

    @abstractmethod
    def _broadcast(self, array: np.ndarray, root: int) -> Work: ...

    @abstractmethod
    def _all_to_all(
        self, output: np.ndarray, input: np.ndarray, output_counts: list[int], input_counts: list[int]
    ) -> Work: ...

    @abstractmethod
    def _send(self, array: np.ndarray, to: int) -> Work: ...

    @abstractmethod
    def _recv(self, array: np.ndarray, source: int) -> Work: ...

    @abstractmethod
    def _barrier(self) -> Work: ...

    @staticmethod
    def _finish(work: Work, async_: bool) -> Work:
        if async_:
            work.begin()
        else:
            work.wait()
        return work

    # Checks.

    def _flat(self, where: str, name: str, array: np.ndarray, writable: bool = False) -> np.ndarray:
        """Return `array` as a flat view of the same memory, or raise ValueError."""
        who = f"[comm.{self.name}] {where}: {name}"
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{who} is a {type(array).__name__}. Give a numpy array.")
        if array.dtype not in DTYPES:
            names = ", ".join(str(dtype) for dtype in DTYPES)
            raise ValueError(f"{who} has dtype {array.dtype}. Give one of {names}, in native byte order.")
        if not array.flags.c_contiguous:
            raise ValueError(
                f"{who} of shape {array.shape} has strides {array.strides}: not C-contiguous. "
                "Give a contiguous array (a copy would hide the result)."
            )
        if writable and not array.flags.writeable:
            raise ValueError(f"{who} is read-only. Give an array that can be written.")
        return array.reshape(-1)

    def _check_op(self, where: str, array: np.ndarray, op: str) -> None:
        if op not in OPS:
            raise ValueError(
                f"[comm.{self.name}] {where}: op {op!r} is unknown. Give one of {', '.join(OPS)}."
            )
        if op == "mean" and array.dtype.kind == "i":
            raise ValueError(f"[comm.{self.name}] {where}: mean of {array.dtype} is not an integer. Use sum.")

    def _check_counts(
        self,
        where: str,
        part_name: str,
        part: np.ndarray,
        whole_name: str,
        whole: np.ndarray,
        counts: Sequence[int] | None,
    ) -> list[int]:
        who = f"[comm.{self.name}] {where}"
        if part.dtype != whole.dtype:
            raise ValueError(
                f"{who}: {part_name} is {part.dtype} and {whole_name} is {whole.dtype}. Give both one dtype."
            )
        checked = [part.size] * self.size if counts is None else [int(count) for count in counts]
        if len(checked) != self.size:
            raise ValueError(
                f"{who}: {len(checked)} counts for {self.size} ranks. Give one count per rank of the group."
            )
        if min(checked) < 0:
            raise ValueError(f"{who}: counts {checked} hold a negative number. Give counts of at least 0.")
        if part.size != checked[self.rank]:
            raise ValueError(
                f"{who}: {part_name} has {part.size:,} elements, but counts give rank {self.rank} "
                f"{checked[self.rank]:,}. Make them equal."
            )
        if whole.size != sum(checked):
            raise ValueError(
                f"{who}: {whole_name} has {whole.size:,} elements, but the {self.size} ranks' parts sum to "
                f"{sum(checked):,}. Make them equal."
            )
        return checked

    def _part_counts(
        self, where: str, name: str, array: np.ndarray, counts: Sequence[int] | None
    ) -> list[int]:
        """Elements of each rank's part of an array whose parts may have any length; None: the same length."""
        who = f"[comm.{self.name}] {where}"
        if counts is None:
            part, rest = divmod(array.size, self.size)
            if rest:
                raise ValueError(
                    f"{who}: {array.size:,} elements of {name} do not divide among {self.size} ranks. "
                    f"Give a length that is a multiple of the group's size, or {name}_counts."
                )
            return [part] * self.size
        try:
            checked = [index(count) for count in counts]
        except TypeError:
            raise ValueError(f"{who}: {name}_counts {counts} are no whole numbers. Give integers.") from None
        if len(checked) != self.size:
            raise ValueError(
                f"{who}: {len(checked)} {name}_counts for {self.size} ranks. Give one per rank of the group."
            )
        if min(checked) < 0:
            raise ValueError(f"{who}: {name}_counts {checked} hold a negative number. Give at least 0.")
        if sum(checked) != array.size:
            raise ValueError(
                f"{who}: {name} has {array.size:,} elements, but {name}_counts sum to {sum(checked):,}. "
                "Make them equal."
            )
        return checked

    def _check_part_overlap(self, where: str, part: np.ndarray, whole: np.ndarray, counts: list[int]) -> None:
        """A part may be its own place in the whole, and must be apart from it otherwise."""
        if not np.may_share_memory(part, whole):
            return
        offset = offsets_of(counts)[self.rank]
        begin = (part.ctypes.data - whole.ctypes.data) // part.itemsize
        if begin != offset:
            raise ValueError(
                f"[comm.{self.name}] {where}: the arrays overlap, at element {begin:,} instead of rank "
                f"{self.rank}'s {offset:,}. Give the rank's own part, or separate arrays."
            )

    def _check_rank(self, where: str, name: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise ValueError(
                f"[comm.{self.name}] {where}: {name} {rank} is not a rank of this group of {self.size}. "
                f"Give 0 to {self.size - 1}."
            )

    def _check_color(self, color: int) -> None:
        if color < 0:
            raise ValueError(
                f"[comm.{self.name}] split: color {color} is negative. Give a number of at least 0."
            )

    def _check_peer(self, where: str, name: str, rank: int) -> None:
        self._check_rank(where, name, rank)
        if rank == self.rank:
            raise ValueError(
                f"[comm.{self.name}] {where}: {name} {rank} is this rank itself. Give another rank."
            )
