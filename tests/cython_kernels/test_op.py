"""What a row of the table of ops says of a call: sizes by letter, floating-point operations, bytes."""

from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16

from cktrain.bench.profile import ProfiledKernels
from cktrain.cython_kernels.op import Array, Number, Op, dimensions, visible_pairs
from cktrain.cython_kernels.ops import OPS


def f32(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def bf16(*shape: int) -> Any:
    return np.zeros(shape, bfloat16)


def test_a_shape_is_read_term_by_term() -> None:
    assert dimensions("N,2I", 2) == ((1, "N", 1), (2, "I", 1))
    assert dimensions("P,D/2", 2) == ((1, "P", 1), (1, "D", 2))
    assert dimensions("N,C | N,H,D", 3) == ((1, "N", 1), (1, "H", 1), (1, "D", 1))
    assert dimensions("...", 3) == ()


def test_letters_get_their_sizes_from_the_arrays() -> None:
    sizes = OPS["matmul"].sizes({"out": f32(2, 3), "a": f32(5, 2), "b": f32(5, 3), "transpose_a": True})
    assert sizes == {"M": 2, "N": 3, "K": 5, "transpose_a": True}
    assert OPS["swiglu_backward"].sizes({"dgate_up": f32(4, 6)}) == {"N": 4, "I": 3}
    assert OPS["rope_forward"].sizes({"cos": f32(9, 4), "positions": np.zeros(3, np.int32)})["D"] == 8


# call, floating-point operations, bytes; 4 bytes to an fp32, 2 to a bf16
COSTS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], int, int]] = {
    "a product": ("linear_forward", (f32(2, 3), f32(2, 5), f32(3, 5)), {}, 60, 4 * (6 + 10 + 15)),
    "bias and residual, by name": (
        *("linear_forward", (f32(2, 3), bf16(2, 5), bf16(3, 5))),
        {"bias": f32(3), "residual": f32(2, 3)},
        *(60, 4 * 6 + 2 * (10 + 15) + 4 * (3 + 6)),
    ),
    "a weight gradient is added to": (
        *("linear_backward_weight", (f32(3, 5), None, f32(2, 3), f32(2, 5)), {}),
        *(60, 4 * (2 * 15 + 6 + 10)),
    ),
    "and written when told so": (
        *("linear_backward_weight", (f32(3, 5), f32(3), f32(2, 3), f32(2, 5)), {"accumulate": False}),
        *(60, 4 * (15 + 3 + 6 + 10)),
    ),
    "a transposed product": (
        *("matmul", (f32(2, 3), f32(7, 2), f32(7, 3), True), {}),
        *(84, 4 * (6 + 14 + 21)),
    ),
    "rows of a table": (
        "embedding_forward",
        (f32(2, 5), np.zeros(2, np.int32), f32(99, 5)),
        {},
        0,
        8 + 4 * 20,
    ),
    "rows added to a table": (
        *("embedding_backward", (f32(99, 5), bf16(2, 5), np.zeros(2, np.int32)), {}),
        *(0, 8 + 4 * 2 * 10 + 2 * 10),
    ),
    "AdamW and its copy": (
        *("adamw_step", (*(f32(6) for _ in range(4)), 0.1, 0.9, 0.9, 1e-8, 0.0, 1, 1.0), {"copy": bf16(6)}),
        *(0, 4 * 6 * 7 + 2 * 6),
    ),
    "attention over whole sequences": (
        *("attention_forward", (f32(1, 4, 2, 8), f32(1, 2, 4), *[f32(1, 4, 2, 8)] * 3, 1.0), {}),
        *(4 * 2 * 8 * 8, 4 * (4 * 64 + 8)),
    ),
    "with a window, by name": (
        *("attention_forward", (f32(1, 4, 2, 8), f32(1, 2, 4), *[f32(1, 4, 2, 8)] * 3, 1.0), {"window": 2}),
        *(4 * 2 * 8 * 7, 4 * (4 * 64 + 8)),
    ),
    "attention of all to all": (
        *(
            "attention_forward",
            (f32(1, 4, 2, 8), f32(1, 2, 4), *[f32(1, 4, 2, 8)] * 3, 1.0),
            {"causal": False},
        ),
        *(4 * 2 * 8 * 16, 4 * (4 * 64 + 8)),
    ),
    "attention backwards": (
        *(
            "attention_backward",
            (*[f32(1, 4, 1, 8)] * 3, f32(1, 1, 4), *[f32(1, 4, 1, 8)] * 5, f32(1, 1, 4), 1.0),
        ),
        *({}, 10 * 8 * 8, 4 * (8 * 32 + 8)),
    ),
}


@pytest.mark.parametrize("name", COSTS)
def test_what_a_call_costs(name: str) -> None:
    op, args, kwargs, flops, moved = COSTS[name]
    assert OPS[op].cost(args, kwargs) == (flops, moved)


@pytest.mark.parametrize("window", [0, 1, 3, 7, 8, 20])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (4, 9), (9, 9), (2, 3)])
def test_visible_pairs_are_counted(queries: int, keys: int, window: int) -> None:
    seen = [min(key + 1, window or keys) for key in range(keys - queries, keys)]
    want = queries * keys // 2 if queries == keys and not window else sum(seen)
    assert visible_pairs(queries, keys, window) == want


@pytest.mark.parametrize("window", [0, 1, 3, 20])
@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (4, 9), (9, 9), (5, 2), (3, 0)])
def test_visible_pairs_of_attention_that_is_not_causal(queries: int, keys: int, window: int) -> None:
    at = range(keys - queries, keys)
    want = sum(not window or abs(here - key) < window for here in at for key in range(keys))
    assert visible_pairs(queries, keys, window, causal=False) == want


def test_a_profiled_call_is_counted_by_its_row() -> None:
    class Kernels:
        isa = "none"

        def add(self, out: Any, a: Any, b: Any) -> None:
            out[...] = a + b

        def num_threads(self) -> int:
            return 3

    profiled = ProfiledKernels(Kernels())
    out = f32(2, 3)
    profiled.add(out, f32(2, 3) + 1, b=f32(2, 3))
    assert out.all() and profiled.num_threads() == 3 and profiled.isa == "none"
    total = profiled.totals["add"]
    assert (total.calls, total.flops, total.bytes) == (1, 0, 3 * 24)
    profiled.reset()
    assert (total.calls, total.bytes) == (0, 0)


def test_an_op_without_names_of_its_own_in_c_is_called_by_its_own() -> None:
    op = Op("twice", "activation", "y = 2 x", (Array("y", "write", "N,C"), Number("times", int, 2)))
    assert op.in_c == ("twice",)
