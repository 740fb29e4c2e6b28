"""Adapters for tests: all of their weights are drawn, so that an untrained adapter changes something too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cktrain.memory.slot import Slot
from cktrain.nn.adapters.dora import DoRA
from cktrain.nn.adapters.lora import LoRA, Target
from cktrain.nn.linear import Linear


class HeldDoRA(DoRA):
    """A DoRA whose norms stay those of its first forward: what its backward is the derivative of."""

    held: np.ndarray | None = None

    def _inverse_norms(self, slot: Slot) -> np.ndarray:
        if self.num.is_dry:
            return super()._inverse_norms(slot)
        if self.held is None:
            self.held = super()._inverse_norms(slot)
        return self.held


def add_lora(linear: Linear, rank: int = 3, scale: float = 0.5, kind: Callable[..., LoRA] = LoRA) -> None:
    """Beside every part of the linear, before it is divided and parameters have memory; ranks and scales differ.

    Under a name of its own where a linear has several.
    """
    targets, start = [], 0
    for number, rows in enumerate(linear.parts or (linear.out_features,)):
        targets.append(
            Target(f"part{'abc'[number]}", slice(start, start + rows), rank + number, scale * (1 + number))
        )
        start += rows
    adapter = kind(linear, targets)
    suffix = f"_{len(linear.adapters)}" if linear.adapters else ""
    adapter.name += suffix
    adapter.role += suffix
    for param in adapter.params():
        name = param.name.removesuffix(".weight") + f"{suffix}.weight"
        param.tag(name=name, init="normal", std=0.3)
    linear.adapters.append(adapter)
