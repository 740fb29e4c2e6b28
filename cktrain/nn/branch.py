"""A branch of a block, which adds to the stream what its body makes of it:

    out = x + alpha · post_norm(body(pre_norm(x)))

Either norm may be absent, and an alpha other than 1 is a residual multiplier (Granite): a pass over the branch's output
and one over its gradient. Where there is no post-norm, the body's last product adds the stream; else the post-norm
does. Under tensor parallelism x, out and both norms have this rank's rows (N/t, C), and the body's first and last
products exchange them, so the post-norm sees whole sums.

Shapes: the stream x, out (N, C), and its gradient.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.slot import Slot
from cktrain.nn.module import Module
from cktrain.nn.norm import Norm
from cktrain.nn.scaled import scale


class Body(Module):
    """What a branch computes: attention, an MLP, experts. dx may be x, out may be the residual.

    A backward reads x at its end alone, for the first product's weight. It is cut in two there, so that a branch need not
    have the normed stream again before that, and both halves' temporaries lie in the same memory.
    """

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """Both halves."""
        self.backward_entry(dx, self.backward_inner(dy, slot), x, slot, accumulate)

    def backward_inner(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """The gradient of what the first product gave, an array of the slot, for dy."""
        raise NotImplementedError

    def backward_entry(
        self, dx: np.ndarray, dinner: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx = or += the gradient of x, for what `backward_inner` gave."""
        raise NotImplementedError


class Branch(Module):
    """`pre_norm`, `body`, `post_norm`, and the sum with the stream. out is not x; dx may be dy."""

    def __init__(
        self, pre_norm: Norm | None, body: Body, post_norm: Norm | None = None, alpha: float = 1.0
    ) -> None:
        super().__init__(f"{body.name}.branch", body.num)
        self.pre_norm = pre_norm
        self.body = body
        self.post_norm = post_norm
        self.alpha = alpha

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out = x + …: the stream is the residual, so neither another one nor another factor is taken."""
        assert residual is None and alpha == 1.0, self.name
        with slot.phase(self.role):
            if self.post_norm is None:
                with slot.phase("entry"):
                    self.body.forward(out, self._normed(x, slot), slot, x, self.alpha)
                return
            inner = self._inner(slot, x)
            with slot.phase("entry"):
                self.body.forward(inner, self._normed(x, slot), slot)
            self.post_norm.forward(out, inner, slot, x, self.alpha)

    def recompute(self, x: np.ndarray, slot: Slot) -> None:
        """What `forward` left in the slot, again."""
        with slot.phase(self.role):
            with slot.phase("entry"):
                if self.post_norm is None:
                    self.body.recompute(self._normed(x, slot), slot)
                    return
                self.body.forward(self._inner(slot, x), self._normed(x, slot), slot)
            self.post_norm.recompute(self._inner(slot, x), slot)

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx = or += dy + the gradient through the body; both norms' outputs are computed again."""
        kernels = self.num.kernels
        with slot.phase(self.role):
            dinner = self.body.backward_inner(self._body_gradient(dy, x, slot), slot)
            if accumulate:
                kernels.add(dx, dx, dy)
            elif dx is not dy:
                kernels.cast(dx, dy)
            with slot.phase("entry"):
                if self.pre_norm is None:
                    self.body.backward_entry(dx, dinner, x, slot, accumulate=True)
                    return
                normed = self._normed(x, slot)
                self.body.backward_entry(normed, dinner, normed, slot)
                self.pre_norm.backward(dx, normed, x, slot, accumulate=True)

    def _normed(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """What enters the body, for the stream x."""
        if self.pre_norm is None:
            return x
        normed = slot.shared(self, "normed", x.shape, self.num.compute_dtype)
        self.pre_norm.forward(normed, x, slot)
        return normed

    def _inner(self, slot: Slot, x: np.ndarray) -> np.ndarray:
        """What leaves the body, which the post-norm's backward reads."""
        return slot.saved(self, "inner", x.shape, self.num.compute_dtype)

    def _body_gradient(self, dy: np.ndarray, x: np.ndarray, slot: Slot) -> np.ndarray:
        """The gradient of what leaves the body, for that of the stream."""
        if self.alpha == 1.0 and self.post_norm is None:
            return dy
        dbody = slot.shared(self, "dbody", dy.shape, self.num.compute_dtype)
        source = dy
        if self.alpha != 1.0:
            scale(self.num, dbody, dy, self.alpha)
            source = dbody
        if self.post_norm is not None:
            self.post_norm.backward(dbody, source, self._inner(slot, x), slot)
        return dbody


class Block(Module):
    """A layer of a transformer: branches, each of which adds to the stream. out is not x; dx may be dy."""

    def __init__(self, name: str, branches: list[Branch]) -> None:
        super().__init__(name, branches[0].num)
        self.branches = branches

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """(N, C) -> (N, C); the stream between two branches stays in the slot."""
        assert residual is None and alpha == 1.0, self.name
        streams = [*self._between(x, slot), out]
        for branch, entering, leaving in zip(self.branches, [x, *streams], streams, strict=False):
            branch.forward(leaving, entering, slot)

    def recompute(self, x: np.ndarray, slot: Slot) -> None:
        """What `forward` left in the slot besides its output, again."""
        between = self._between(x, slot)
        *first, last = self.branches
        for branch, entering, leaving in zip(first, [x, *between], between, strict=False):
            branch.forward(leaving, entering, slot)
        last.recompute(between[-1] if between else x, slot)

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """The branches' backwards, the last one first, in one array."""
        assert not accumulate, self.name
        for branch, entering in zip(
            reversed(self.branches), [*reversed(self._between(x, slot)), x], strict=True
        ):
            branch.backward(dx, dy, entering, slot)
            dy = dx

    def _between(self, x: np.ndarray, slot: Slot) -> list[np.ndarray]:
        """The stream after each branch but the last."""
        return [
            slot.saved(self, f"stream {number}", x.shape, self.num.compute_dtype)
            for number in range(1, len(self.branches))
        ]
