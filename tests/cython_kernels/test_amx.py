"""AMX emulated in plain C: every op case in bf16, on any CPU; and, where the CPU has AMX, both bit for bit.

The sets "amx" and "amx_emulated" run the same loops and packing (csrc/gemm_amx.h) over real and emulated tiles
(csrc/simd_amx.h). Only what a NaN holds beside its being one may differ, since compilers order the operands of an addition
as they like. Where the CPU has AMX the other files' cases run on it as on every instruction set.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import CASES, SEEDS
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from test_compiled import SETTINGS, check, test_matmul_of_views  # noqa: F401  (runs on this file's kernels)
from test_gemm import test_residual_alone  # noqa: F401

from cktrain import cython_kernels
from cktrain.cython_kernels import _runtime

PRODUCTS = ("linear", "matmul", "symmetric_product")
REAL = pytest.mark.skipif("amx" not in cython_kernels.available(), reason="this CPU has no AMX")
# Zeros, subnormals, the least and the largest normal numbers, infinities, NaNs; around 2^-64, whose products underflow.
SPECIAL = [0, 0x8000, 1, 0x807F, 0x80, 0x8080, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81, 0x3F80]


@pytest.fixture
def kernels() -> Iterator[Any]:
    """The emulated set, and the best one in force again at the end."""
    yield cython_kernels.load("amx_emulated")
    cython_kernels.load(cython_kernels.best()).set_num_threads(1)


@pytest.mark.parametrize("name", CASES)
def test_any_shape(name: str, kernels: Any) -> None:
    case = CASES[name]

    @settings(SETTINGS, max_examples=25 if name in PRODUCTS else 4)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        inputs = case.draw(np.random.default_rng(data.draw(SEEDS)), data.draw(case.shapes), bfloat16)
        check(case, kernels, inputs, bfloat16)

    run()


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_threads(name: str, threads: int, kernels: Any) -> None:
    kernels.set_num_threads(threads)
    for seed, shape in enumerate(CASES[name].large):
        inputs = CASES[name].draw(np.random.default_rng(seed), {**CASES[name].examples[0], **shape}, bfloat16)
        check(CASES[name], kernels, inputs, bfloat16)


def test_a_row_is_the_same_in_any_company(kernels: Any) -> None:
    """Bit for bit, whatever the rows and threads, in whole tiles and at edges, alone as few rows and among many."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, np.float32).astype(bfloat16) for shape in ((50, 2100), (33, 2100)))
    bias, want = rng.standard_normal(33, np.float32), np.empty((50, 33), bfloat16)
    kernels.linear_forward(want, x, w, bias)
    for threads, begin, end in ((1, 0, 1), (1, 7, 23), (2, 3, 20), (3, 0, 50)):
        kernels.set_num_threads(threads)
        y = np.empty((end - begin, 33), bfloat16)
        kernels.linear_forward(y, x[begin:end], w, bias)
        assert np.array_equal(y, want[begin:end])


def draw(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> Any:
    """bf16: standard normal, any bits, special values among normal ones, or products that nearly vanish."""
    normal = rng.standard_normal(shape, np.float32).astype(bfloat16)
    if kind == "normal":
        return normal
    bits = rng.integers(0, 1 << 16, shape, np.uint16)
    if kind == "special":
        bits = np.where(
            rng.random(shape) < 0.02, rng.choice(np.array(SPECIAL, np.uint16), shape), normal.view(np.uint16)
        )
    if kind == "tiny":
        bits = bits & 0x807F | rng.integers(56, 72, shape, np.uint16) << 7
    return bits.view(bfloat16)


def bits_of(values: Any) -> Any:
    """The bits, of any NaN one pattern."""
    bits = values.view(np.uint32 if values.dtype == np.float32 else np.uint16).copy()
    bits[np.isnan(values.astype(np.float32))] = 0x7FC0
    return bits


@REAL
@pytest.mark.parametrize("kind", ["normal", "bits", "special", "tiny"])
def test_the_twin_rounds_as_the_processor_does(kind: str) -> None:
    rng = np.random.default_rng(0)
    for m, n, k in ((16, 16, 32), (40, 70, 160), (3, 33, 75), (33, 9, 2100)):
        x, w, dy = draw(rng, (m, k), kind), draw(rng, (n, k), kind), draw(rng, (m, n), kind)
        residual, bias = draw(rng, (m, n), kind), rng.standard_normal(n, np.float32)
        found: list[list[Any]] = []
        for isa in ("amx", "amx_emulated"):
            kernels = cython_kernels.load(isa)
            kernels.set_num_threads(1)
            y, rounded, added = np.zeros((m, n), np.float32), np.zeros((m, n), bfloat16), residual.copy()
            dx, dw = np.zeros((m, k), bfloat16), np.ones((n, k), np.float32)
            kernels.linear_forward(y, x, w)
            kernels.linear_forward(rounded, x, w, bias, residual)
            kernels.linear_forward(added, x, w, None, added)
            kernels.linear_backward_input(dx, dy, w)
            kernels.linear_backward_weight(dw, None, dy, x)
            found.append([y, rounded, added, dx, dw])
        for real, twin in zip(*found, strict=True):
            assert np.array_equal(bits_of(real), bits_of(twin)), (m, n, k)


def test_the_sum_takes_even_and_odd_products_apart(kernels: Any) -> None:
    """As Intel's manual says of tdpbf16ps: 32 products along k are two sums, which are added, and then to what was there."""
    x, w = np.zeros((1, 64), bfloat16), np.ones((1, 64), bfloat16)
    y = np.zeros((1, 1), np.float32)
    x[0, :4] = 2.0**24, 1.0, -(2.0**24), 1.0  # one after the other, the first 1 would be lost
    kernels.linear_forward(y, x, w)
    assert y[0, 0] == 2.0
    x[0, :4] = 2.0**24, -(2.0**24), 1.0, 1.0  # 2^24 + 1 is no fp32
    kernels.linear_forward(y, x, w)
    assert y[0, 0] == 1.0
    x[0, :4], x[0, 32:34] = (2.0**24, 0.0, 0.0, 0.0), (1.0, 1.0)
    kernels.linear_forward(y, x, w)
    assert y[0, 0] == 2.0**24 + 2


def test_it_is_not_chosen(kernels: Any) -> None:
    assert "amx_emulated" not in cython_kernels.available()
    assert kernels.isa == _runtime.active() == "amx_emulated"


# --------------------------------------------------------------------------------------------- choosing the set


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says what the CPU has, what was built, and why the system keeps the tiles."""
    monkeypatch.delenv("CKTRAIN_ISA", raising=False)

    def pretend(
        has: tuple[str, ...], built: tuple[str, ...] = cython_kernels.ISAS, refusal: str = ""
    ) -> None:
        monkeypatch.setattr(_runtime, "cpu_supports", lambda isa: isa in has)
        monkeypatch.setattr(_runtime, "built", lambda: built)
        monkeypatch.setattr(_runtime, "ask_for_tiles", lambda: refusal)

    return pretend


def test_amx_is_preferred(cpu: Any) -> None:
    cpu(cython_kernels.ISAS)
    assert cython_kernels.choose() == ("amx", "AMX is here, and used", "")


def test_no_amx(cpu: Any) -> None:
    cpu(cython_kernels.ISAS[:-1])
    assert cython_kernels.choose() == ("avx512bf16", "no AMX here", "")
    cpu(cython_kernels.ISAS[:-2])
    assert cython_kernels.choose() == ("avx512", "", "")


def test_tiles_that_the_system_keeps(cpu: Any) -> None:
    cpu(cython_kernels.ISAS, refusal="Operation not supported")
    name, why, remedy = cython_kernels.choose()
    assert name == "avx512bf16" and remedy
    assert (
        why == "AMX is not used: this kernel or virtual machine does not permit it (Operation not supported)"
    )
    with pytest.raises(
        ValueError, match=r"isa is 'amx': AMX is not used: this kernel .*Use one of reference.*bf16\."
    ):
        cython_kernels.load("amx")


def test_a_compiler_that_does_not_know_amx(cpu: Any) -> None:
    cpu(cython_kernels.ISAS, built=cython_kernels.ISAS[:-1])
    name, why, remedy = cython_kernels.choose()
    assert name == "avx512bf16" and "does not know it" in why and "gcc 11" in remedy
