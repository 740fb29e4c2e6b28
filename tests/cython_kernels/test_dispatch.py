"""Which kernels run: load, available, CKTRAIN_ISA; the checks at the door; the cost of a call."""

import platform
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16

from cktrain import cython_kernels
from cktrain.cython_kernels import _runtime

COMPILED = [isa for isa in cython_kernels.available() if isa != "reference"]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The best set in force again after each test."""
    monkeypatch.delenv("CKTRAIN_ISA", raising=False)
    yield
    cython_kernels.load(cython_kernels.best())


def test_available_is_what_can_run_best_last() -> None:
    names = cython_kernels.available()
    assert names[:2] == ["reference", "generic"]
    assert names == ["reference", *(isa for isa in cython_kernels.ISAS if isa in names)]
    assert cython_kernels.best() == names[-1]


@pytest.mark.parametrize("isa", cython_kernels.available())
def test_load_gives_the_set_that_was_asked_for(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cython_kernels.load(isa).isa == isa
    monkeypatch.setenv("CKTRAIN_ISA", isa)
    assert cython_kernels.load().isa == isa
    if isa != "reference":
        assert _runtime.active() == isa


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKTRAIN_ISA", "reference")
    assert cython_kernels.load("generic").isa == "generic"


def test_without_a_name_the_best_is_loaded() -> None:
    assert cython_kernels.load().isa == cython_kernels.best()


def test_an_unknown_name_is_refused_with_the_legal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"isa is 'sse9'.*reference, generic"):
        cython_kernels.load("sse9")
    monkeypatch.setenv("CKTRAIN_ISA", "sse9")
    with pytest.raises(ValueError, match=r"CKTRAIN_ISA is 'sse9'.*reference, generic"):
        cython_kernels.load()


def test_a_set_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime, "cpu_supports", lambda isa: isa == "generic")
    assert cython_kernels.available() == ["reference", "generic"]
    with pytest.raises(ValueError, match=r"'avx512'.*does not have it.*reference, generic"):
        cython_kernels.load("avx512")


def test_the_build_says_what_it_holds() -> None:
    info = cython_kernels.build_info()
    assert info["built"][0] == "generic"
    own = {isa for isa in cython_kernels.ISAS if isa.startswith("neon") == (platform.machine() == "aarch64")}
    assert set(info["built"]) | set(info["left_out"]) == {"generic"} | own
    assert info["compiler"]


def test_activate_puts_a_set_back_in_force() -> None:
    first, _ = cython_kernels.load("generic"), cython_kernels.load()
    first.activate()
    assert _runtime.active() == "generic"


def f32(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def call(op: str, *args: Any, **options: Any) -> None:
    getattr(cython_kernels.load("generic"), op)(*args, **options)


READ_ONLY = f32(2, 3)
READ_ONLY.flags.writeable = False
IDS = np.array([0, 5, 2], np.int32)
HEADS = f32(1, 4, 6, 8)
KEYS = f32(1, 4, 4, 8)

REFUSED = {
    "a list": (lambda: call("add", [[1.0]], f32(1, 1), f32(1, 1)), "add] out is of type list"),
    "another dtype": (
        lambda: call("add", f32(2, 3), np.zeros((2, 3)), f32(2, 3)),
        r"a has shape (2, 3) and dtype float64",
    ),
    "two dtypes": (
        lambda: call("add", f32(2, 3), f32(2, 3), np.zeros((2, 3), bfloat16)),
        "b is bfloat16, but out is float32",
    ),
    "another shape": (
        lambda: call("add", f32(2, 3), f32(2, 3), f32(2, 4)),
        "b has 4 elements along axis 1, but out asks for 3",
    ),
    "too many dimensions": (
        lambda: call("add", f32(2, 3), f32(2, 3, 1), f32(2, 3)),
        "must have 2 dimensions, not 3",
    ),
    "strides in the last dimension": (
        lambda: call("add", f32(2, 3), f32(3, 2).T, f32(2, 3)),
        "last dimension must be contiguous",
    ),
    "a read-only output": (lambda: call("add", READ_ONLY, f32(2, 3), f32(2, 3)), "out has shape (2, 3)"),
    "swapped bytes": (
        lambda: call("add", f32(2, 3), np.zeros((2, 3), ">f4"), f32(2, 3)),
        "native byte order",
    ),
    "inner sizes": (
        lambda: call("linear_forward", f32(2, 3), f32(2, 5), f32(3, 4)),
        "w has 4 elements along axis 1, but x asks for 5",
    ),
    "a bias of another length": (
        lambda: call("linear_forward", f32(2, 3), f32(2, 5), f32(3, 5), f32(4)),
        "bias has 4 elements along axis 0, but w asks for 3",
    ),
    "an id beyond the table": (
        lambda: call("embedding_forward", f32(3, 2), IDS, f32(5, 2)),
        "ids[1] is 5, outside [0, 5)",
    ),
    "a negative id": (
        lambda: call("embedding_backward", f32(5, 2), f32(3, 2), -IDS),
        "ids[1] is -5, outside [0, 5)",
    ),
    "int64 ids": (
        lambda: call("embedding_forward", f32(3, 2), IDS.astype(np.int64), f32(9, 2)),
        "dtype must be int32",
    ),
    "a position beyond the table": (
        lambda: call("rope_forward", f32(3, 1, 4), f32(3, 1, 4), f32(5, 2), f32(5, 2), IDS),
        "positions[1] is 5, outside [0, 5)",
    ),
    "an odd head": (
        lambda: call("rope_forward", f32(3, 1, 5), f32(3, 1, 5), f32(9, 2), f32(9, 2), IDS),
        "head size 5, which is odd",
    ),
    "heads that do not divide": (
        lambda: call("attention_forward", HEADS, f32(1, 6, 4), HEADS, KEYS, KEYS, 1.0),
        "q has 6 heads and k has 4",
    ),
    "more queries than keys": (
        lambda: call("attention_forward", KEYS, f32(1, 4, 4), KEYS, KEYS[:, :3], KEYS[:, :3], 1.0),
        "q has 4 queries and k has 3 keys",
    ),
    "a document that begins after the last key": (
        lambda: call(
            "attention_forward", KEYS, f32(1, 4, 4), KEYS, KEYS, KEYS, 1.0, first=np.full((1, 4), 5, np.int32)
        ),
        "first[0,0] is 5, outside [0, 4]",
    ),
    "a row that ends before the first key": (
        lambda: call(
            "attention_forward", KEYS, f32(1, 4, 4), KEYS, KEYS, KEYS, 1.0, end=np.full((1, 4), -1, np.int32)
        ),
        "end[0,0] is -1, outside [0, 4]",
    ),
    "a scale that is no number": (
        lambda: call("attention_forward", KEYS, f32(1, 4, 4), KEYS, KEYS, KEYS, float("nan")),
        "scale is nan",
    ),
    "a negative softcap": (
        lambda: call("attention_forward", KEYS, f32(1, 4, 4), KEYS, KEYS, KEYS, 1.0, softcap=-1.0),
        "softcap is -1.0",
    ),
    "a bias for three heads of four": (
        lambda: call("attention_forward", KEYS, f32(1, 4, 4), KEYS, KEYS, KEYS, 1.0, bias=f32(1, 3, 4, 4)),
        "bias has 3 elements along axis 1, but q asks for 4",
    ),
    "the gradient of sinks that are not there": (
        lambda: call(
            "attention_backward",
            *[KEYS] * 3,
            f32(1, 4, 4),
            *[KEYS] * 5,
            f32(1, 4, 4),
            1.0,
            dsinks=f32(4),
        ),
        "dsinks is given, but sinks is None",
    ),
    "a negative window": (
        lambda: call("attention_forward", KEYS, f32(1, 4, 4), KEYS, KEYS, KEYS, 1.0, window=-1),
        "window is -1",
    ),
    "a head of 513": (
        lambda: call("attention_forward", *[f32(1, 1, 1, 513), f32(1, 1, 1)], *[f32(1, 1, 1, 513)] * 3, 1.0),
        "head size 513, outside [1, 512]",
    ),
    "an odd gate_up": (lambda: call("swiglu_forward", f32(2, 3), f32(2, 7)), "gate_up has 7 columns"),
    "step 0": (
        lambda: call("adamw_step", f32(3), f32(3), f32(3), f32(3), 0.1, 0.9, 0.9, 1e-8, 0.0, 0, 1.0),
        "step is 0",
    ),
    "a row beyond the workspace": (
        lambda: call(
            "rms_norm_backward", *[f32(1, 2**20), f32(2**20)], *[f32(1, 2**20)] * 2, f32(2**20), f32(1)
        ),
        "x has 1,048,576 elements in a row",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_door_refuses(name: str) -> None:
    attempt, words = REFUSED[name]
    with pytest.raises(ValueError) as refused:
        attempt()
    message = str(refused.value)
    assert message.startswith("[kernels.") and words in message and message.endswith(".")


def test_a_call_allocates_nothing() -> None:
    kernels = cython_kernels.load()
    x, y, w, rstd = f32(1, 8), f32(1, 8), f32(8, 8), f32(1)

    def calls(n: int) -> None:
        for _ in range(n):
            kernels.linear_forward(y, x, w, residual=y)
            kernels.rms_norm_forward(y, rstd, x, w[0], 1e-5)
            kernels.add(y, x, y)

    calls(100)
    blocks = sys.getallocatedblocks()
    calls(1000)
    assert abs(sys.getallocatedblocks() - blocks) < 10
