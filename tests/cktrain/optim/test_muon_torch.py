"""Muon beside torch.optim.Muon, with its Newton-Schulz in the type of the parameters, over twenty steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.config import OptimizerConfig
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.nn.numerics import Numerics
from cktrain.optim.muon import Muon

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.judge

_muon = pytest.importorskip("torch.optim._muon")
SHAPES = {"wide": (16, 40), "tall": (40, 16), "square": (24, 24)}
STEPS = 20


def iterate(update: Any, coefficients: tuple[float, ...], steps: int, eps: float) -> Any:
    """torch.optim.Muon's iteration without its rounding to bf16."""
    a, b, c = coefficients
    x = update.T if update.size(0) > update.size(1) else update
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if update.size(0) > update.size(1) else x


@pytest.mark.parametrize("adjust_lr", ["match_rms_adamw", "original"])
@pytest.mark.parametrize(("isa", "precision", "within"), [("reference", "fp64", 1e-10), ("", "fp32", 1e-5)])
def test_twenty_steps_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, isa: str, precision: str, within: float, adjust_lr: str
) -> None:
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", iterate)
    numerics = Numerics(cython_kernels.load(isa or None), precision)
    params = [Param(name, shape, optimizer="matrix") for name, shape in SHAPES.items()]
    params += [
        Param("fused", (16 + 8 + 8, 16), optimizer="matrix", parts=(16, 8, 8)),
        Param("embedding", (9, 16)),
    ]
    store = ParamStore(params, numerics)
    store.initialize(0)
    config = OptimizerConfig(
        name="muon", lr=0.02, muon_lr=0.05, weight_decay=0.1, adjust_lr=adjust_lr, eps=1e-6
    )
    optimizer = Muon(store, config)

    def parts_of(array: np.ndarray, param: Param) -> list[Any]:
        ends = np.cumsum(param.parts)[:-1] if param.parts else []
        return [torch.from_numpy(part.copy()) for part in np.split(array, ends)]

    ours = [params[-1], *params[:-1]]
    twins = [parts_of(param.data, param) for param in ours]
    adamw = torch.optim.AdamW(twins[0], 0.02, (0.9, 0.95), 1e-6, 0.1)
    muon = torch.optim.Muon(
        [part for parts in twins[1:] for part in parts], 0.05, weight_decay=0.1, adjust_lr_fn=adjust_lr
    )
    rng = np.random.default_rng(0)
    for step in range(1, STEPS + 1):
        rate = 1.0 / step  # as a schedule would
        adamw.param_groups[0]["lr"], muon.param_groups[0]["lr"] = 0.02 * rate, 0.05 * rate
        for param, parts in zip(ours, twins, strict=True):
            param.grad[...] = 4.0 * rng.standard_normal(param.shape)
            for part, grad in zip(parts, parts_of(param.grad * 0.25, param), strict=True):
                part.grad = grad
        adamw.step()
        muon.step()
        optimizer.step(0.02 * rate, 0.25, step)
    for param, parts in zip(ours, twins, strict=True):
        want = torch.cat(parts).numpy()
        assert np.abs(param.data - want).max() <= within * np.abs(want).max(), param.name


def test_bf16_products_stay_beside_torchs() -> None:
    """Both round every product to bf16, in other places: updates agree as far as bf16 reaches."""
    numerics = Numerics(cython_kernels.load(), "bf16")
    param = Param("w", (64, 96), optimizer="matrix")
    store = ParamStore([param], numerics)
    store.initialize(0)
    optimizer = Muon(store, OptimizerConfig(name="muon", lr=1.0, weight_decay=0.0, adjust_lr="original"))
    start = param.data.copy()
    twin = torch.from_numpy(start.copy())
    muon = torch.optim.Muon([twin], 1.0, weight_decay=0.0)
    param.grad[...] = np.random.default_rng(0).standard_normal(param.shape)
    twin.grad = torch.from_numpy(param.grad.copy())
    optimizer.step(1.0, 1.0, 1)
    muon.step()
    ours, theirs = param.data - start, twin.numpy() - start
    assert np.linalg.norm(ours - theirs) < 0.03 * np.linalg.norm(theirs)
    assert np.array_equal(param.value, param.data.astype(param.value.dtype))
