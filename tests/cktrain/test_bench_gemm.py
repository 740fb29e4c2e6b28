"""`bench gemm`: every product of every library is there, and the products compute what they claim."""

import json
from typing import Any

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.bench import gemm

SMALL = {"square": (32, 48, 64), "row": (1, 40, 24)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The best kernels, and a list of shapes that takes no time."""
    monkeypatch.setattr(gemm, "SHAPES", SMALL)
    return cython_kernels.load()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_library_has_every_product(small: Any, precision: str) -> None:
    report = gemm.bench_gemm(small, precision, repetitions=1)
    libraries = {"cktrain", *gemm._others(small, precision)}
    assert {(r.shape, r.product, r.library) for r in report.rows} == {
        (shape, product, library) for shape in SMALL for product in gemm.PASSES for library in libraries
    }
    assert all(row.gflops > 0 and row.ratio > 0 for row in report.rows)
    assert json.loads(json.dumps(report.as_dict()))["precision"] == precision
    table = report.table()
    assert all(name in table for name in (*SMALL, *libraries, *gemm.PASSES))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_compute_the_same_products(small: Any, precision: str) -> None:
    x, w, dy, y, dx, dw = arrays = gemm._arrays(32, 48, 64, precision)
    wide = [a.astype(np.float64) for a in (x, w, dy)]
    want = [wide[0] @ wide[1].T, wide[2] @ wide[1], wide[2].T @ wide[0]]
    tolerance = (
        1e-5 if precision == "fp32" else 2.0**-7
    )  # one rounding of 2^-9, PyTorch's weight gradient too
    contestants = {"cktrain": gemm._products(small, *arrays)}
    contestants |= {name: make(*arrays) for name, make in gemm._others(small, precision).items()}
    for products in contestants.values():
        for product, out, expected in zip(products, (y, dx, dw), want, strict=True):
            out.fill(0)
            returned = product()
            got = out if returned is None else returned
            got = np.asarray(got.float() if hasattr(got, "float") else got, dtype=np.float64)
            assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_an_unknown_shape_is_refused(small: Any) -> None:
    with pytest.raises(ValueError, match=r"'huge'.*square, row"):
        gemm.bench_gemm(small, "fp32", ["huge"])
