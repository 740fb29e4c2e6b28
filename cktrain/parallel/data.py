"""Data parallelism: every data rank computes its rows of the global batch, then gradients are summed.

Ranks accumulate unnormalised sums, so the sum over ranks and micro-batches is the whole batch's gradient whatever the
split, and its scale is applied in the optimizer.

A bucket's reduction starts, beside the computation, when the last contribution to its last parameter is in. How many
contributions a parameter gets per micro-batch (a tied one gets two) is counted while the slots are planned, which is
a dry run of the real code. Then, with `zero`:

    1   reduce-scatter: a rank has the sums of its pieces -> it updates its pieces -> all-gather of the weights
    0   all-reduce: every rank has all sums and updates all weights

Gradients travel as fp32, or rounded to bf16: they are then summed in fp32 and rounded once more. Weights travel as fp32
masters; or, where kernels read bf16 copies, as these copies, and what is read in fp32 (norms, biases) beside them. Then
a rank's masters are up to date in its own pieces alone, which are what it updates and saves.

**Deterministic.** Sums depend on the order of their terms. With `deterministic` each micro-batch's gradient is
computed on its own and added in the order of its index in the global batch, so that D ranks with one micro-batch each
add what one rank with D micro-batches adds. Costs: nothing overlaps; an all-reduce in place of the reduce-scatter; one
more gradient buffer where a rank has several micro-batches, and one for each of them (which then travels by itself)
where several ranks have several.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import ml_dtypes
import numpy as np

from cktrain.comm.group import Group, offsets_of
from cktrain.comm.work import Work
from cktrain.memory.arena import CACHE_LINE, Arena
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.optim.optimizer import Optimizer
from cktrain.parallel.buckets import BUCKET_BYTES, Bucket, Span, join, overlap, plan_buckets
from cktrain.parallel.comm_timer import CommTimer


class DataParallel:
    """Sums gradients over the data group, and brings the updated weights to all its ranks."""

    def __init__(
        self,
        group: Group,
        params: ParamStore,
        comm_timer: CommTimer,
        *,
        zero: int = 1,
        wire_bf16: bool = False,
        weights_bf16: bool = False,
        deterministic: bool = False,
        micro_batches: int = 1,
        alone: Collection[Param] = (),
        bucket_bytes: int = BUCKET_BYTES,
        whole_matrices: bool = False,
        block: int = CACHE_LINE // 4,
    ) -> None:
        """Raises ValueError for deterministic with bf16 on the wire: one rank alone does not round.

        `weights_bf16` needs parameters with bf16 copies. With `whole_matrices` no matrix is divided among data ranks;
        a parameter is at multiples of `block` elements.
        """
        if deterministic and wire_bf16:
            raise ValueError(
                "[parallel.data] run.deterministic is true and comm.wire_dtype bf16: rounding on the wire would make "
                "the result depend on the number of ranks. Set comm.wire_dtype: fp32."
            )
        self.group = group
        self.params = params
        self.comm_timer = comm_timer
        self.sharded = zero == 1 and group.size > 1
        self.wire_bf16 = wire_bf16
        self.weights_bf16 = weights_bf16 and self.sharded
        self.deterministic = deterministic
        self.micro_batches = micro_batches
        self.buckets = plan_buckets(params, group.size, alone, bucket_bytes, whole_matrices, block)
        self.pieces = join(bucket.piece(group.rank) for bucket in self.buckets)
        """What of the flat buffers is this rank's to count and to save, as spans."""
        self._bucket_of = {param: i for i, bucket in enumerate(self.buckets) for param in bucket.params}
        self._contributions: dict[Param, int] = dict.fromkeys(params.trainable, 0)
        self._missing: dict[Param, int] = {}
        self._incomplete: list[int] = []
        self._works: list[Work | None] = [None] * len(self.buckets)
        self._wire = None
        if wire_bf16 and group.size > 1:
            bf16 = np.dtype(ml_dtypes.bfloat16)
            self._wire = Arena("gradients on the wire", params.size * 2).array((params.size,), bf16)
        self._kept = self._buffers()
        assert params.compute_weights is not None or not weights_bf16
        self._weights = params.compute_weights if self.weights_bf16 else None
        self._unrounded = _Unrounded(params, self.buckets, group) if self._weights is not None else None

    @property
    def update_spans(self) -> list[Span]:
        """What this rank's optimizer updates: its piece of each bucket, or everything."""
        if not self.sharded:
            return [(0, self.params.size)]
        return [bucket.piece(self.group.rank) for bucket in self.buckets]

    @property
    def summed_spans(self) -> list[Span]:
        """Where the sums stand after `finish`."""
        return self.pieces if self.sharded and not self.deterministic else [(0, self.params.size)]

    @property
    def norm_spans(self) -> list[Span]:
        """What this rank adds to the squared norm: its pieces; with `deterministic` everything, on data rank 0."""
        if self.deterministic:
            return [(0, self.params.size)] if self.group.rank == 0 else []
        return self.pieces

    def broadcast_weights(self) -> None:
        """Data rank 0's master weights to all ranks of the group."""
        self.group.broadcast(self.params.data, root=0)
        self.params.refresh()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Within the block one micro-batch's forward and backward run dry, to count the contributions."""

        def count(param: Param) -> None:
            self._contributions[param] += 1

        self._contributions = dict.fromkeys(self.params.trainable, 0)
        self._listen(count)
        try:
            yield
        finally:
            self._listen(None)
        assert all(self._contributions.values()), "a parameter gets no gradient"

    def begin(self) -> None:
        """Before the first micro-batch of a step."""
        self.params.begin_sums()
        self._done = 0
        if self.group.size > 1 and not self.deterministic:
            self._missing = {p: n * self.micro_batches for p, n in self._contributions.items()}
            self._incomplete = [len(bucket.params) for bucket in self.buckets]
            self._listen(self._contributed)

    def end_micro_batch(self) -> None:
        """After each micro-batch's backward, in the order of micro-batches."""
        self._done += 1
        if not self.deterministic or self.micro_batches == 1:
            return
        grad = self.params.grad
        if self.group.size > 1:  # kept until all ranks' can be added in order
            self._kept[self._done - 1][...] = grad
        elif self._done == 1:
            self._kept[0][...] = grad
        else:
            np.add(self._kept[0], grad, out=self._kept[0])
        if self._done < self.micro_batches:
            self.params.begin_sums()
        elif self.group.size == 1:
            grad[...] = self._kept[0]

    def finish(self) -> None:
        """Wait until the sums stand in the gradient buffer: this rank's pieces, or all of it."""
        self._listen(None)
        if self.group.size == 1:
            return
        if self.deterministic:
            with self.comm_timer:
                self._sum_in_order()
            return
        assert not any(self._missing.values()), "contributions are missing"
        with self.comm_timer:
            for bucket, work in zip(self.buckets, self._works, strict=True):
                assert work is not None
                work.wait()
                if self._wire is not None:
                    start, stop = self._summed(bucket)
                    self.params.numerics.kernels.cast(self.params.grad[start:stop], self._wire[start:stop])
        self._works = [None] * len(self.buckets)

    def update(self, optimizer: Optimizer, lr: float, grad_scale: float, step: int) -> None:
        """The optimizer's step on this rank's spans, and the other ranks' updated weights."""
        if not self.sharded:
            optimizer.step(lr, grad_scale, step)
            return
        works = []
        flat = self.params.data if self._weights is None else self._weights
        for number, bucket in enumerate(self.buckets):  # a bucket travels while the next one is updated
            optimizer.step_span(number, lr, grad_scale, step)
            start, stop = bucket.piece(self.group.rank)
            works.append(
                self.group.all_gather(
                    flat[bucket.start : bucket.stop], flat[start:stop], bucket.counts, async_=True
                )
            )
        with self.comm_timer:
            for work in works:
                work.wait()
        if self._unrounded is None:
            self.params.refresh()  # the optimizer wrote the bf16 copy of this rank's pieces alone
        else:
            with self.comm_timer:
                self._unrounded.gather()

    def _buffers(self) -> list[np.ndarray]:
        if not self.deterministic or self.micro_batches == 1:
            return []
        count = self.micro_batches if self.group.size > 1 else 1
        size, f32 = self.params.size, self.params.numerics.master_dtype
        arena = Arena("gradients of single micro-batches", count * size * f32.itemsize)
        return [arena.array((size,), f32) for _ in range(count)]

    def _listen(self, call: object) -> None:
        for param in self.params.trainable:
            param.on_grad = call  # type: ignore[assignment]

    def _contributed(self, param: Param) -> None:
        self._missing[param] -= 1
        assert self._missing[param] >= 0, f"{param.name} got more contributions than in the dry run"
        if self._missing[param]:
            return
        number = self._bucket_of[param]
        self._incomplete[number] -= 1
        if self._incomplete[number] == 0:
            self._start(number)

    def _start(self, number: int) -> None:
        bucket = self.buckets[number]
        whole = slice(bucket.start, bucket.stop)
        array = self.params.grad
        if self._wire is not None:
            array = self._wire
            self.params.numerics.kernels.cast(array[whole], self.params.grad[whole])
        if self.sharded:
            start, stop = bucket.piece(self.group.rank)
            self._works[number] = self.group.reduce_scatter(
                array[start:stop], array[whole], "sum", bucket.counts, async_=True
            )
        else:
            self._works[number] = self.group.all_reduce(array[whole], "sum", async_=True)

    def _summed(self, bucket: Bucket) -> Span:
        return bucket.piece(self.group.rank) if self.sharded else (bucket.start, bucket.stop)

    def _sum_in_order(self) -> None:
        """Every micro-batch's gradient of every rank, added one after the other."""
        grad = self.params.grad
        if self.micro_batches == 1:
            self.group.flat.all_reduce(grad, "sum")  # added in the order of ranks
            return
        for bucket in self.buckets:
            part = slice(bucket.start, bucket.stop)
            term = np.empty(bucket.stop - bucket.start, grad.dtype)
            for root in range(self.group.size):
                for kept in self._kept:
                    if root == self.group.rank:
                        term[...] = kept[part]
                    self.group.broadcast(term, root)
                    if root == 0 and kept is self._kept[0]:
                        grad[part] = term
                    else:
                        np.add(grad[part], term, out=grad[part])


class _Unrounded:
    """The parameters that kernels read in fp32 while the others travel as bf16: gathered in one message."""

    def __init__(self, params: ParamStore, buckets: Sequence[Bucket], group: Group) -> None:
        self.group = group
        self.data = params.data
        read = [(p.start, p.start + p.size) for p in params.trainable if p.spec.read_as == "master"]
        self.spans = [overlap(read, [b.piece(rank) for b in buckets]) for rank in range(group.size)]
        self.counts = [sum(stop - start for start, stop in spans) for spans in self.spans]
        size, f32 = sum(self.counts), params.numerics.master_dtype
        self.packed = Arena("fp32 weights on the wire", size * f32.itemsize).array((size,), f32)

    def gather(self) -> None:
        """This rank's to the others, and theirs to their places."""
        offsets = offsets_of(self.counts)
        start = at = offsets[self.group.rank]
        for low, high in self.spans[self.group.rank]:
            self.packed[at : at + high - low] = self.data[low:high]
            at += high - low
        self.group.all_gather(self.packed, self.packed[start:at], self.counts)
        for rank, spans in enumerate(self.spans):
            at = offsets[rank]
            for low, high in spans:
                self.data[low:high] = self.packed[at : at + high - low]
                at += high - low
