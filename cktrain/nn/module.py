"""The Module contract: `forward` writes an output, `backward` the input's gradient, both into arrays that they are given.

    forward(out, x, slot, residual=None, alpha=1.0)     out = residual + alpha · f(x)
    backward(dx, dy, x, slot, accumulate=False)         dx = or += the gradient of x, for the gradient dy of f(x)

There is no tape. What `backward` needs is in the slot, where `forward` left it, or is computed again from x, which the
caller gives again; it is never on the module itself, so that several micro-batches can be between their forward and
their backward (1F1B). A backward may use up what it finds in the slot: each forward is followed by at most one.
Gradients of parameters are added to `param.grad`, the first of a step written over what is there
(`Param.should_accumulate`); of a frozen parameter none is computed.

`residual` may be `out`. Which other arguments may be one array stands in each class's docstring. `dy` is the gradient of
f(x) alone: whoever added a residual or a factor alpha in the forward, handles them in the backward (`nn/branch.py`).

Modules are single-process code. Parallelism gives some of them another layout (`nn/layout.py`, `parallel/`), and never
shows in a model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cktrain.memory.param import Param
from cktrain.memory.slot import Slot
from cktrain.nn.numerics import Numerics


class Module:
    """A part of a model. `name` is unique in the model; `role` is the name without the layer's number."""

    def __init__(self, name: str, numerics: Numerics) -> None:
        self.name = name
        self.role = ".".join(part for part in name.split(".") if not part.isdigit())
        self.num = numerics

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out = residual + alpha · f(x)."""
        raise NotImplementedError

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx = or += the gradient of x for the gradient dy of f(x); gradients of parameters are added."""
        raise NotImplementedError

    def recompute(self, x: np.ndarray, slot: Slot) -> None:
        """Write again what `forward` left in the slot for `backward`, without its output."""

    def flops(self, rows: int, length: int) -> int:
        """Floating-point operations of a forward and backward for `rows` tokens, in sequences of `length`.

        6 per token and element of a matrix: 2 forward, 2 for each of the two gradients. What is not a product of
        matrices is left out.
        """
        return sum(child.flops(rows, length) for child in self.children())

    def children(self) -> Iterator[Module]:
        """The modules directly below, in the order in which they were assigned."""
        for value in vars(self).values():
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, Module):
                    yield child

    def modules(self) -> Iterator[Module]:
        """This module and all below it, in the order in which they were assigned."""
        yield self
        for child in self.children():
            yield from child.modules()

    def tables(self) -> list[np.ndarray]:
        """Arrays that kernels read beside parameters and slot, and that nothing changes: tables of angles."""
        return [table for child in self.children() for table in child.tables()]

    def params(self) -> list[Param]:
        """All parameters of this module and those below, each once, in forward order."""
        found: dict[Param, None] = {}
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Param):
                    found[value] = None
        return list(found)
