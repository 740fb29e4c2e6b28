"""Adapters for tests: both matrices are drawn, so that an untrained adapter changes something too."""

from __future__ import annotations

from cktrain.nn.adapters.lora import LoRA, Target
from cktrain.nn.linear import Linear


class Drawn(LoRA):
    """A LoRA whose b is not zero, under a name of its own where a linear has several."""

    def __init__(self, linear: Linear, targets: list[Target]) -> None:
        super().__init__(linear, targets)
        suffix = f"_{len(linear.adapters)}" if linear.adapters else ""
        self.name += suffix
        self.role += suffix
        for param in self.params():
            name = param.name.removesuffix(".weight") + f"{suffix}.weight"
            param.tag(name=name, init="normal", std=0.3)


def add_lora(linear: Linear, rank: int = 3, scale: float = 0.5) -> None:
    """Beside every part of the linear, before it is divided and parameters have memory; ranks and scales differ."""
    targets, start = [], 0
    for number, rows in enumerate(linear.parts or (linear.out_features,)):
        targets.append(
            Target(f"part{'abc'[number]}", slice(start, start + rows), rank + number, scale * (1 + number))
        )
        start += rows
    linear.adapters.append(Drawn(linear, targets))
