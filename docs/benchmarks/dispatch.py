"""What Python costs between a step and its kernels: microseconds per kernel call, in the modules and at each kernel's door.

    python docs/benchmarks/dispatch.py

The promise is 2 microseconds of both together. Measured on a Zen 5 core: 1.2 to 1.4 in the modules, 0.1 to 0.4 at a door.
The best of 40 rounds counts. tests/cktrain/test_dispatch.py holds the number of Python calls, which is the same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cktrain import cython_kernels
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics


def best(call: Callable[[], Any], repetitions: int) -> float:
    """Seconds per call, of the best of 40 rounds."""
    rounds = []
    for _ in range(40):
        began = time.perf_counter()
        for _ in range(repetitions):
            call()
        rounds.append((time.perf_counter() - began) / repetitions)
    return min(rounds)


class Counter:
    """A kernel set that counts calls and computes nothing."""

    calls = 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._call

    def _call(self, *args: object, **kwargs: object) -> None:
        self.calls += 1


def modules(layers: int) -> tuple[Callable[[], None], Counter]:
    """A micro-batch, forward and backward, of a Llama whose kernels only count: a sequence of 8 tokens."""
    numerics = Numerics(cython_kernels.load(), "fp32")
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 128}
    config = parse_model({"num_hidden_layers": layers, "vocab_size": 64, **sizes})
    model = build_model(config, numerics, 8)
    ParamStore(model.params(), numerics)
    slot = model.plan(1, 8).allocate()[0]
    ids = np.ones((1, 8), np.int32)

    def micro_batch() -> None:
        model.forward_loss(ids, ids, slot)
        model.backward_loss(ids, slot)

    micro_batch()
    numerics.kernels = counter = Counter()
    return micro_batch, counter


def doors() -> dict[str, Callable[[Any], None]]:
    """Calls on arrays of no rows, or of a few numbers where there are no rows."""

    def f32(*shape: int) -> np.ndarray:
        return np.ones(shape, np.float32)

    x, wide, w, c, n = f32(0, 16), f32(0, 32), f32(16, 16), f32(16), f32(0)
    ids = np.zeros(0, np.int32)
    heads, lse, angles = f32(0, 4, 2, 8), f32(0, 2, 4), f32(4, 4)
    flat = [f32(16) for _ in range(4)]
    return {
        "linear_forward": lambda k: k.linear_forward(x, x, w, c, x),
        "linear_backward_input": lambda k: k.linear_backward_input(x, x, w),
        "linear_backward_weight": lambda k: k.linear_backward_weight(w, c, x, x, True),
        "embedding_forward": lambda k: k.embedding_forward(x, ids, w),
        "embedding_backward": lambda k: k.embedding_backward(w, x, ids),
        "rms_norm_forward": lambda k: k.rms_norm_forward(x, n, x, c, 1e-5),
        "rms_norm_backward": lambda k: k.rms_norm_backward(x, c, x, x, c, n, True),
        "rope_forward": lambda k: k.rope_forward(heads[:, 0], heads[:, 0], angles, angles, ids),
        "attention_forward": lambda k: k.attention_forward(heads, lse, heads, heads, heads, 1.0, 0, None),
        "attention_backward": lambda k: k.attention_backward(
            heads, heads, heads, lse, heads, heads, heads, heads, heads, lse, 1.0, 0, None
        ),
        "swiglu_forward": lambda k: k.swiglu_forward(x, wide),
        "swiglu_backward": lambda k: k.swiglu_backward(wide, x, wide, x),
        "cross_entropy_forward": lambda k: k.cross_entropy_forward(n, n, n, x, ids, 0),
        "cross_entropy_backward": lambda k: k.cross_entropy_backward(x, x, n, ids, -100, 0),
        "adamw_step": lambda k: k.adamw_step(*flat, 1e-3, 0.9, 0.95, 1e-8, 0.1, 1, 1.0, copy=None),
        "sum_of_squares": lambda k: k.sum_of_squares(c),
    }


def main() -> None:
    """Measure and print."""
    kernels = cython_kernels.load()
    print(f"kernels: {kernels.isa}\n| what | us per kernel call |\n|---|---|")
    for layers in (1, 3):
        micro_batch, counter = modules(layers)
        with np.errstate(all="ignore"):
            micro_batch()
            counter.calls = 0
            micro_batch()
            calls = counter.calls
            print(f"| modules, {layers} layers | {1e6 * best(micro_batch, 10) / calls:.2f} |")
    for op, call in doors().items():
        print(f"| door of {op} | {1e6 * best(lambda call=call: call(kernels), 200):.2f} |")


if __name__ == "__main__":
    main()
