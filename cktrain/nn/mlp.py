"""The feed-forward layers: SwiGLU and GeGLU (Shazeer 2020), and GELU.

Shapes: x, y (N, C); gate_up (N, 2I) = [gate, up]; hidden (N, I). Saved is what the activation's backward needs; the
activation itself is computed again there.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.arena import CACHE_LINE
from cktrain.memory.slot import Slot
from cktrain.nn.branch import Body
from cktrain.nn.linear import Linear
from cktrain.nn.numerics import Numerics


class FeedForward(Body):
    """An MLP with one activation between an input and an output projection."""

    input_proj: Linear
    output_proj: Linear

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out (N, C) = residual + alpha · mlp(x)."""
        self.input_proj.forward(self._expanded(slot), x, slot)
        hidden = self._hidden(slot)
        self._activate(hidden, self._expanded(slot))
        self.output_proj.forward(out, hidden, slot, residual, alpha)

    def recompute(self, x: np.ndarray, slot: Slot) -> None:
        """The input projection, whose result stays in the slot, and what the output projection's adapters leave."""
        self.input_proj.forward(self._expanded(slot), x, slot)
        self.output_proj.prepare(slot)

    def backward_inner(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """The gradient of the input projection's output, in its place."""
        dhidden = self._hidden(slot)
        dy = self.output_proj.output_gradient(dy, slot)
        self.output_proj.backward_input(dhidden, dy, slot)
        hidden, dexpanded = self._backward_activation(dhidden, self._expanded(slot), slot)
        self.output_proj.backward_weight(dy, hidden, slot)
        return dexpanded

    def backward_entry(
        self, dx: np.ndarray, dinner: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx (N, C) = or += the gradient of x."""
        self.input_proj.backward(dx, dinner, x, slot, accumulate)

    def _activate(self, hidden: np.ndarray, expanded: np.ndarray) -> None:
        raise NotImplementedError

    def _backward_activation(
        self, dhidden: np.ndarray, expanded: np.ndarray, slot: Slot
    ) -> tuple[np.ndarray, np.ndarray]:
        """(`hidden` computed again, the gradient of `expanded`); both arguments may be used up."""
        raise NotImplementedError

    def _expanded(self, slot: Slot) -> np.ndarray:
        width = self.input_proj.out_features
        return slot.saved(self.input_proj, "y", self._spaced(slot, width), self.num.compute_dtype)[:, :width]

    def _hidden(self, slot: Slot) -> np.ndarray:
        width = self.output_proj.in_features
        return slot.shared(self, "hidden", self._spaced(slot, width), self.num.compute_dtype)[:, :width]

    def _spaced(self, slot: Slot, width: int) -> tuple[int, int]:
        """Rows of `width` elements, and a cache line where they would stand a multiple of 4 KB apart: packing reads many
        rows in turn, and those would all be in one set of the first-level cache (docs/matmul.md)."""
        itemsize = self.num.compute_dtype.itemsize
        return slot.rows, width + (CACHE_LINE // itemsize if width * itemsize % 4096 == 0 else 0)


class Gated(FeedForward):
    """down(f(gate(x)) · up(x)), gate and up fused in one matrix."""

    def __init__(
        self,
        name: str,
        numerics: Numerics,
        hidden_size: int,
        intermediate_size: int,
        *,
        bias: bool,
        std: float,
        output_std: float,
    ) -> None:
        super().__init__(name, numerics)
        self.input_proj = Linear(
            f"{name}.gate_up_proj",
            numerics,
            hidden_size,
            2 * intermediate_size,
            bias,
            std,
            parts=(intermediate_size, intermediate_size),
        )
        self.output_proj = Linear(
            f"{name}.down_proj", numerics, intermediate_size, hidden_size, bias, output_std
        )


class SwiGLU(Gated):
    """A gate of silu."""

    def _activate(self, hidden: np.ndarray, expanded: np.ndarray) -> None:
        self.num.kernels.swiglu_forward(hidden, expanded)

    def _backward_activation(
        self, dhidden: np.ndarray, expanded: np.ndarray, slot: Slot
    ) -> tuple[np.ndarray, np.ndarray]:
        # Each result replaces an operand that nobody needs any more.
        self.num.kernels.swiglu_backward(expanded, dhidden, expanded, dhidden)
        return dhidden, expanded


class GeGLU(Gated):
    """A gate of GELU in its tanh form."""

    def _activate(self, hidden: np.ndarray, expanded: np.ndarray) -> None:
        self.num.kernels.geglu_forward(hidden, expanded)

    def _backward_activation(
        self, dhidden: np.ndarray, expanded: np.ndarray, slot: Slot
    ) -> tuple[np.ndarray, np.ndarray]:
        self.num.kernels.geglu_backward(expanded, dhidden, expanded, dhidden)
        return dhidden, expanded


class GeluMLP(FeedForward):
    """proj(gelu(fc(x)))."""

    def __init__(
        self,
        name: str,
        numerics: Numerics,
        hidden_size: int,
        intermediate_size: int,
        *,
        tanh: bool,
        std: float,
        output_std: float,
    ) -> None:
        super().__init__(name, numerics)
        self.tanh = tanh
        self.input_proj = Linear(f"{name}.c_fc", numerics, hidden_size, intermediate_size, True, std)
        self.output_proj = Linear(
            f"{name}.c_proj", numerics, intermediate_size, hidden_size, True, output_std
        )

    def _activate(self, hidden: np.ndarray, expanded: np.ndarray) -> None:
        self.num.kernels.gelu_forward(hidden, expanded, self.tanh)

    def _backward_activation(
        self, dhidden: np.ndarray, expanded: np.ndarray, slot: Slot
    ) -> tuple[np.ndarray, np.ndarray]:
        hidden = slot.shared(self, "hidden_again", dhidden.shape, self.num.compute_dtype)
        self.num.kernels.gelu_forward(hidden, expanded, self.tanh)
        self.num.kernels.gelu_backward(dhidden, dhidden, expanded, self.tanh)
        return hidden, dhidden
