"""The Module contract: `forward(x, slot) -> y`, `backward(dy, slot) -> dx`.

There is no tape. A module writes what its backward needs into the slot, never on itself, so that several micro-batches
can be between their forward and their backward (1F1B). Gradients of parameters are added to `param.grad`, the
first of a step written over what is there (`Param.adds`, `Param.sums`). The array that comes back from `backward` may
be the one that was given, changed in place.

Modules are single-process code. Parallelism replaces some of them from outside, by their style
(`parallel/`), and never shows in a model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cktrain.memory.params import Param
from cktrain.memory.slot import Slot
from cktrain.nn.numerics import Numerics


class Module:
    """A part of a model. `name` is unique in the model; `role` is the name without the layer's number."""

    def __init__(self, name: str, numerics: Numerics) -> None:
        self.name = name
        self.role = ".".join(part for part in name.split(".") if not part.isdigit())
        self.num = numerics

    def forward(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """The module's output for `x`."""
        raise NotImplementedError

    def backward(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """The gradient of `x` from that of `y`; gradients of parameters are accumulated."""
        raise NotImplementedError

    def modules(self) -> Iterator[Module]:
        """This module and all below it, in the order in which they were assigned."""
        yield self
        for value in vars(self).values():
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, Module):
                    yield from child.modules()

    def params(self) -> list[Param]:
        """All parameters of this module and those below, each once, in forward order."""
        found: dict[Param, None] = {}
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Param):
                    found[value] = None
        return list(found)
