"""The set "onednn": its bf16 products against the reference, how a libdnnl is found, when the set is chosen.

What computes with oneDNN needs the extra `onednn`; what refuses a library, or misses one, does not.
"""

import ctypes
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, SEEDS
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from test_compiled import SETTINGS, check, test_matmul_of_views  # noqa: F401  (runs on this file's kernels)

from cktrain import cython_kernels
from cktrain.cython_kernels import _onednn, _runtime, onednn

BF16 = pytest.mark.skipif(
    "avx512bf16" not in cython_kernels.available(), reason="this CPU has no AVX512_BF16"
)
# Around the 16 rows up to which the own kernels compute, the blocks of 32 and 64, and primes.
ROWS = st.sampled_from([0, 1, 16, 17, 31, 33, 64, 97, 131])


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is forced from outside, and the best set is in force again after each test."""
    for name in ("CKTRAIN_ISA", "CKTRAIN_LIBDNNL"):
        monkeypatch.delenv(name, raising=False)
    yield
    monkeypatch.undo()
    cython_kernels.load().set_num_threads(1)


@pytest.fixture
def kernels() -> Any:
    if "avx512bf16" not in cython_kernels.available():
        pytest.skip("this CPU has no AVX512_BF16")
    try:
        return cython_kernels.load("onednn")
    except ValueError as error:
        pytest.skip(f"{error}")


def with_rows(shape: dict[str, Any], rows: int) -> dict[str, Any]:
    return {**shape, "n" if "i" in shape else "m": rows}


# ------------------------------------------------------------------------------------------------- the products


@pytest.mark.parametrize("name", ["linear", "matmul"])
def test_any_shape(kernels: Any, name: str) -> None:
    """Dense arrays of any size; none of them falls back to the own kernels but for 16 rows and less."""
    case = CASES[name]
    shapes, refused = _onednn.products()

    @SETTINGS
    @given(st.data())
    def run(data: st.DataObject) -> None:
        shape = with_rows(data.draw(case.shapes), data.draw(ROWS))
        check(case, kernels, case.draw(np.random.default_rng(data.draw(SEEDS)), shape, bfloat16), bfloat16)

    run()
    after = _onednn.products()
    assert after[0] > shapes and after[1] == refused


@pytest.mark.parametrize("name", ["linear", "matmul"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_shapes_twice(kernels: Any, name: str, threads: int) -> None:
    """Within the tolerance, and the same bits again for the same shape and number of threads."""
    case = CASES[name]
    kernels.set_num_threads(threads)
    for seed, shape in enumerate(CASES[name].large):
        inputs = case.draw(np.random.default_rng(seed), shape, bfloat16)
        check(case, kernels, inputs, bfloat16)
        once = case.run(kernels, inputs)
        for _ in range(3):
            again = case.run(kernels, inputs)
            assert all(np.array_equal(once[key], again[key]) for key in once)


def test_logits_in_fp32_and_their_gradient_in_the_same_rows(kernels: Any) -> None:
    """The head's arrays: fp32 logits, bf16 dlogits in the first half of each of their rows (cktrain/nn/head.py)."""
    rng = np.random.default_rng(0)
    rows, words, size = 40, 203, 67
    x, w = (rng.standard_normal(shape).astype(bfloat16) for shape in ((rows, size), (words, size)))
    wide, table = x.astype(np.float64), w.astype(np.float64)
    logits = np.full((rows, words), np.nan, np.float32)
    kernels.linear_forward(logits, x, w)
    # fp32 sums of `size` products of exact bf16 numbers: some roundings of 6e-8 of the sum's largest terms
    assert np.abs(logits - wide @ table.T).max() <= 1e-5 * size**0.5
    dlogits = logits.view(bfloat16)[:, :words]
    dlogits[...] = rng.standard_normal(dlogits.shape)
    exact = dlogits.astype(np.float64)
    dw, dx = np.ones(w.shape, np.float32), np.zeros_like(x)
    kernels.linear_backward_weight(dw, None, dlogits, x)
    kernels.linear_backward_input(dx, dlogits, w)
    assert np.abs(dw - 1 - exact.T @ wide).max() <= 1e-5 * rows**0.5
    want = exact @ table
    assert np.abs(dx.astype(np.float64) - want).max() <= 2.0**-8 * np.abs(want).max()  # one rounding


def test_fp32_is_left_to_the_own_kernels(kernels: Any) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, np.float32) for shape in ((70, 90), (50, 90)))
    y, own = np.zeros((70, 50), np.float32), np.zeros((70, 50), np.float32)
    before = _onednn.products()
    kernels.linear_forward(y, x, w)
    assert _onednn.products() == before
    cython_kernels.load("avx512bf16").linear_forward(own, x, w)
    assert np.array_equal(y, own)


def test_a_call_starts_no_threads_and_takes_no_pages(kernels: Any) -> None:
    """After the first call of a shape nothing new is made or touched, and OpenMP's setting is as before."""
    kernels.set_num_threads(2)
    omp = ctypes.CDLL("libgomp.so.1").omp_get_max_threads
    setting = omp()
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(bfloat16) for shape in ((512, 768), (640, 768)))
    y, dx, dw = np.zeros((512, 640), bfloat16), np.zeros_like(x), np.zeros(w.shape, np.float32)

    def calls(count: int) -> None:
        for _ in range(count):
            kernels.linear_forward(y, x, w)
            kernels.linear_backward_input(dx, y, w)
            kernels.linear_backward_weight(dw, None, y, x)

    calls(3)
    threads = len(os.listdir("/proc/self/task"))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    calls(20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 20  # less than one a round
    assert len(os.listdir("/proc/self/task")) == threads
    assert omp() == setting


# ------------------------------------------------------------------------------------------ finding the library


def compile_library(folder: Path, version: str = "", name: str = "libdnnl.so.3") -> str:
    """A shared object that has dnnl_version, when a version "{major, minor, patch, hash, runtime}" is given."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None
    source = folder / "fake.c"
    struct = "struct { int major, minor, patch; const char *hash; unsigned cpu, gpu; }"
    function = f"{struct} v = {version};\nvoid *dnnl_version(void) {{ return &v; }}\n"
    source.write_text(function if version else "int nothing;\n")
    target = folder / "lib" / name
    target.parent.mkdir(exist_ok=True)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
    return str(target)


@pytest.mark.parametrize(
    "version, reason",
    [
        ("{2, 6, 3, 0, 2}", "it is oneDNN 2.6.3, and 3.x is needed"),
        ("{4, 0, 0, 0, 2}", "it is oneDNN 4.0.0, and 3.x is needed"),
        ("{3, 13, 2, 0, 512}", "it is built for SYCL, and a build for OpenMP is needed"),
        ("{3, 2, 0, 0, 4}", "it is built for TBB, and a build for OpenMP is needed"),
        ("{3, 2, 0, 0, 2}", "it has no dnnl_get_effective_cpu_isa"),
        ("", "it has no dnnl_version"),
    ],
)
def test_a_library_that_will_not_do(tmp_path: Path, version: str, reason: str) -> None:
    path = compile_library(tmp_path, version)
    with pytest.raises(ValueError) as refused:
        onednn.find(path)
    assert f"{path}: {reason}" in str(refused.value)


def test_every_place_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compile_library(tmp_path, "{2, 6, 3, 0, 2}")
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr(onednn, "SONAME", "libdnnl.so.3")
    assert onednn._installed()[0] == path
    monkeypatch.setattr(onednn, "SONAME", "libdnnl-none.so.3")
    shutil.copy(path, tmp_path / "lib" / "libdnnl-none.so.3")
    with pytest.raises(ValueError, match=r"oneDNN 2\.6\.3.*; libdnnl-none\.so\.3: cannot open") as refused:
        onednn.find()
    assert str(refused.value).count("cannot open") == 1


# --------------------------------------------------------------------------------------------- choosing the set


@BF16
def test_forced_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKTRAIN_LIBDNNL", "/nowhere/libdnnl.so.3")
    monkeypatch.setenv("CKTRAIN_ISA", "onednn")
    with pytest.raises(
        ValueError, match=r"CKTRAIN_ISA is .onednn.: no libdnnl fits ..nowhere.*cannot open.*pip"
    ):
        cython_kernels.load()


def test_forced_on_a_cpu_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime, "cpu_supports", lambda isa: isa in ("generic", "avx2"))
    with pytest.raises(ValueError, match=r"isa is 'onednn': this CPU.*Use one of reference, generic, avx2"):
        cython_kernels.load("onednn")


def test_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "find", lambda named: pytest.fail("no library is looked for"))
    assert cython_kernels.load().isa in cython_kernels.available()


def test_named(kernels: Any) -> None:
    found = onednn.find()
    assert kernels.isa == _runtime.active() == "onednn"
    assert kernels.label == f"onednn ({found})"
    assert kernels.why == f"isa says so; {found.path}"
    assert cython_kernels.load("avx512bf16").isa == _runtime.active() == "avx512bf16"
