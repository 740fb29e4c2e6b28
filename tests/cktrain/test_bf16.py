"""bf16 runs against fp32 ones: the head's logits, gradients at the same weights, and a short run.

Two runs that differ by one rounding part after some hundred steps, so the end of a run says little about a rounding:
gradients at equal weights say it step by step.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import plan_slot
from cktrain.nn import head as head_module
from cktrain.nn.head import Head
from cktrain.nn.linear import Linear
from cktrain.nn.norm import RMSNorm
from cktrain.nn.numerics import Numerics
from cktrain.training.objective import LossSums

SIZES = {
    "model.hidden_size": 64,
    "model.intermediate_size": 128,
    "data.sequence_length": 32,
    "batch.micro_batch_size": 4,
}


def test_logits_are_not_rounded(monkeypatch):
    """All logits of a row stand near 100, where bf16 has steps of 1/2: loss and gradients as in fp64, in chunks."""
    monkeypatch.setattr(head_module, "CHUNK_BYTES_BF16", 10 * 4 * 75)  # 10 rows of 37
    monkeypatch.setattr(head_module, "LEAST_ROWS", 1)
    rows, words, size = 37, 75, 33
    rng = np.random.default_rng(0)
    numerics = Numerics(cython_kernels.load(), "bf16")
    output = Linear("head", numerics, size, words, bias=False, std=0.02)
    weight = output.weight
    params = ParamStore([weight], numerics)
    weight.data[...] = 0.1 * rng.standard_normal((words, size))
    weight.data[:, 0] = 10.0
    params.refresh()
    x = rng.standard_normal((rows, size)).astype(ml_dtypes.bfloat16)
    x[:, 0] = 10.0
    dx = np.zeros_like(x)
    targets = rng.integers(0, words, rows, dtype=np.int32)
    head = Head(RMSNorm("norm", numerics, size, 1e-5), output)

    def run(slot):
        """One chunk after the other, without the norm."""
        total = 0.0
        for start in range(0, rows, 10):
            part = slice(start, start + 10)
            logits = head._logits(x[part], 10, slot)
            label_logit, lse = head._scores(logits, targets[part], 10, slot)
            total += float(np.sum(lse - label_logit))
            head._add_gradients(dx[part], x[part], logits, targets[part], lse, slot)
        return total

    with numerics.dry():
        (slot,) = plan_slot(1, rows, run).allocate()
    loss = run(slot)
    wide, table = x.astype(np.float64), weight.value.astype(np.float64)
    logits = wide @ table.T
    lse = np.logaddexp.reduce(logits, axis=1)
    dlogits = np.exp(logits - lse[:, None])
    dlogits[np.arange(rows), targets] -= 1
    expected = np.sum(lse - logits[np.arange(rows), targets])
    assert loss == pytest.approx(expected, rel=1e-5)  # fp32 sums near 100: 6e-8 of 100 in each logit
    for found, left, right in ((dx, dlogits, table), (weight.grad, dlogits.T, wide)):
        # Rounding moves each of dlogits, and of dx, by 2^-8 of it at most. Sums in fp32 add 1e-5 of their terms.
        wanted, terms = left @ right, np.abs(left) @ np.abs(right)
        error = np.abs(found.astype(np.float64) - wanted)
        assert (error <= 2**-8 * (terms + np.abs(wanted)) + 1e-5 * terms).all()


def gradient(run, step: int) -> tuple[float, np.ndarray]:
    part = run.trainer.part
    part.data.begin()
    batches = run.loader.micro_batches(run.loader.global_batch_size * (step - 1))
    found = LossSums.total(part.stage.train(batches, part.schedule[0]))
    return found.loss / found.terms, run.trainer.params.grad.copy()


def test_gradients_at_the_same_weights(tiny, composed, tmp_path):
    """Each operand is off by up to 2^-8, at random: a gradient by some thousandths of it, and in no direction.

    Measured: 0.4 to 0.9 % of a parameter's gradient, of which 0.1 % along it.
    """
    plain = composed(tiny(precision="fp32", **SIZES), isa=None)
    rounded = composed(tiny(precision="bf16", **SIZES, **{"run.dir": str(tmp_path / "b")}), isa=None)
    for _ in range(20):
        plain.trainer.step()
    params = rounded.trainer.params
    params.data[...] = plain.trainer.params.data
    params.refresh()
    (loss, wanted), (rounded_loss, found) = gradient(plain, 21), gradient(rounded, 21)
    assert rounded_loss == pytest.approx(loss, rel=1e-3)
    for param in params.params:
        here = slice(param.start, param.start + param.size)
        a, b = wanted[here].astype(np.float64), found[here].astype(np.float64)
        assert np.linalg.norm(b - a) < 0.02 * np.linalg.norm(a), param.name
        assert abs(a @ b / (a @ a) - 1) < 0.01, param.name


@pytest.mark.parametrize("seed", [3, 4])
def test_a_run_ends_where_the_fp32_run_ends(tiny, composed, tmp_path, seed):
    """The issue's 1 %, on the mean of the last 20 of 120 steps; measured 0.1 % and 0.4 %."""
    ends = []
    for precision in ("fp32", "bf16"):
        values = {**SIZES, "run.seed": seed, "run.steps": 120, "run.dir": str(tmp_path / precision)}
        trainer = composed(tiny(precision=precision, **values), isa=None).trainer
        losses = [trainer.step().loss for _ in range(120)]
        ends.append(np.mean(losses[-20:]))
    assert ends[0] < 0.5 * losses[0]
    assert ends[1] == pytest.approx(ends[0], rel=0.01)


def test_a_run_with_products_by_onednn(tiny, composed, tmp_path):
    """The bound between bf16 and fp32, against the own bf16 kernels; measured equal, since k is summed in one pass."""
    if "avx512bf16" not in cython_kernels.available():
        pytest.skip("this CPU has no AVX512_BF16")
    from cktrain.cython_kernels import _onednn

    try:
        cython_kernels.load("onednn")
    except ValueError as error:
        pytest.skip(f"{error}")
    runs = []
    for isa in ("avx512bf16", "onednn"):
        values = {**SIZES, "run.steps": 120, "run.dir": str(tmp_path / isa)}
        runs.append(composed(tiny(precision="bf16", **values), isa=isa))
    own, lent = runs
    shapes, refused = _onednn.products()
    own.trainer.model.num.kernels.activate()
    own_losses = [own.trainer.step().loss for _ in range(120)]
    lent.trainer.model.num.kernels.activate()
    losses = [lent.trainer.step().loss for _ in range(120)]
    assert losses[0] == pytest.approx(own_losses[0], rel=1e-4)
    after = _onednn.products()
    assert after[0] >= shapes + 10  # of qkv, out, gate_up, down and the head: nearly all in three passes
    # of the head, whose gradient's rows stand apart: dx, dw written and dw added to
    assert after[1] - refused <= 3
    assert np.mean(losses[-20:]) < 0.5 * losses[0]
    assert np.mean(losses[-20:]) == pytest.approx(np.mean(own_losses[-20:]), rel=0.01)
