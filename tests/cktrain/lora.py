"""LoRA (Hu et al. 2021) in a linear's list of adapters: y += scale · (x · aᵀ) · bᵀ, a (r, I), b (O, r).

Under tensor parallelism b has the linear's output rows, or a its input columns; the other one stands whole on every rank
and gets a part of its gradient on each.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.param import Param, ShardRegion
from cktrain.nn.linear import Adapter, Linear


class LoRA(Adapter):
    """Both matrices are drawn, so that an untrained adapter changes something too."""

    def __init__(self, linear: Linear, rank: int, scale: float) -> None:
        suffix = f"_{len(linear.adapters)}" if linear.adapters else ""
        super().__init__(f"{linear.name}.lora{suffix}", linear.num)
        self.rank, self.scale = rank, scale
        self.a = Param(f"{linear.name}.lora_A{suffix}.weight", (rank, linear.in_features), std=0.3)
        self.b = Param(f"{linear.name}.lora_B{suffix}.weight", (linear.out_features, rank), std=0.3)

    def shard(self, linear: Linear) -> None:
        if linear.weight.shape[0] != linear.weight.global_shape[0]:
            self.b.shard((linear.out_features, self.rank), linear.weight.regions)
        else:
            (region,) = linear.weight.regions
            self.a.shard((self.rank, linear.in_features), (ShardRegion(0, 0, self.rank, region.column),))

    def forward(self, out, x, slot, residual=None, alpha=1.0):
        assert alpha == 1.0
        inner = slot.saved(self, "inner", (len(x), self.rank), self.num.compute_dtype)
        self.num.kernels.linear_forward(inner, x, self.a.value)
        inner *= self.scale
        self.num.kernels.linear_forward(out, inner, self.b.value, None, residual)

    def backward_weight(self, dy, x, slot):
        kernels = self.num.kernels
        inner = slot.saved(self, "inner", (len(x), self.rank), self.num.compute_dtype)
        for param, left, right in ((self.b, dy, inner), (self.a, self._dinner(dy, slot), x)):
            kernels.linear_backward_weight(param.grad, None, left, right, param.should_accumulate())
            param.grad_added()

    def backward_input(self, dx, dy, slot, accumulate=False):
        self.num.kernels.linear_backward_input(dx, self._dinner(dy, slot), self.a.value, accumulate)

    def _dinner(self, dy, slot) -> np.ndarray:
        dinner = slot.shared(self, "dinner", (len(dy), self.rank), self.num.compute_dtype)
        self.num.kernels.linear_backward_input(dinner, dy, self.b.value)
        dinner *= self.scale
        return dinner


def add_lora(linear: Linear, rank: int = 3, scale: float = 0.5) -> None:
    """Before the linear is divided and parameters have memory."""
    linear.adapters.append(LoRA(linear, rank, scale))


LORA_STYLES = {
    "column": {"lora_A": "replicated", "lora_B": "column"},
    "row": {"lora_A": "row", "lora_B": "replicated"},
}


def with_lora(styles):
    """A family's table of styles, and those of its linears' adapters."""
    found = dict(styles)
    for role, style in styles.items():
        for part, its in LORA_STYLES.get(style, {}).items():
            found[f"{role}.{part}"] = its
    return found
