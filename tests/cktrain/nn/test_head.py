"""The head's two paths: losses and gradients of labelled rows alone, and weights that depend on all scores."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import plan_slot
from cktrain.nn import head as head_module
from cktrain.nn.head import IGNORE_INDEX, Head
from cktrain.nn.linear import Linear
from cktrain.nn.norm import LayerNorm, RMSNorm
from cktrain.nn.numerics import Numerics

ROWS, SIZE, WORDS = 23, 6, 13


class Bench:
    """A head, rows of a stream, and what the same would be in plain numpy."""

    def __init__(self, norm=RMSNorm, precision: str = "fp64", words: int = WORDS, **options) -> None:
        self.num = Numerics(cython_kernels.load("reference"), precision)
        output = Linear("head", self.num, SIZE, words, bias=False, std=1.0)
        self.head = Head(norm("norm", self.num, SIZE, 1e-5), output, **options)
        self.params = ParamStore(self.head.params(), self.num)
        rng = np.random.default_rng(3)
        self.params.data[...] = rng.standard_normal(self.params.size)
        self.x = rng.standard_normal((ROWS, SIZE)).astype(self.num.compute_dtype)
        self.labels = rng.integers(0, words, ROWS).astype(np.int32)
        self.weights = rng.standard_normal(ROWS).astype(self.num.master_dtype)
        with self.num.dry():
            (self.slot,) = plan_slot(1, ROWS, self.run).allocate()

    def run(self, slot) -> None:
        self.head.loss(self.x, self.x, self.labels, slot)
        _, lse = self.head.score(self.x, self.labels, slot)
        self.head.gradient(self.x, self.x, self.labels, self.weights, lse, slot)

    def without(self, *rows: int) -> np.ndarray:
        self.labels[list(rows)] = IGNORE_INDEX
        return self.labels

    def log_probabilities(self) -> np.ndarray:
        """(N,): of the labels, 0 where there is none, from whole logits."""
        logits = self.head.logits(self.x)
        logp = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
        return np.where(self.labels >= 0, logp[np.arange(ROWS), np.maximum(self.labels, 0)], 0)

    def gradients(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(of x, of all parameters) of the sum of weights · (-logp), by central differences."""

        def value() -> float:
            return -float(np.sum(weights * self.log_probabilities()))

        found = []
        for array in (self.x, self.params.data):
            flat, gradient = array.reshape(-1), np.empty(array.size)
            for i in range(flat.size):
                before = flat[i]
                flat[i] = before + 1e-5
                above = value()
                flat[i] = before - 1e-5
                gradient[i] = (above - value()) / 2e-5
                flat[i] = before
            found.append(gradient.reshape(array.shape))
        return found[0], found[1]


@pytest.fixture(params=[4, 5, 100], ids="{} rows in a chunk".format)
def chunk(request, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_BYTES", request.param * WORDS * 8)
    monkeypatch.setattr(head_module, "LEAST_ROWS", 1)


BENT = pytest.mark.parametrize(
    "options", [{}, {"softcap": 1.5, "multiplier": 0.7}], ids=["plain", "multiplied and capped"]
)


@BENT
@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("without", [(), (0, 3, 4, 22), tuple(range(1, 21))])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_loss_is_that_of_the_labelled_rows(chunk, norm, without, in_place, options):
    bench = Bench(norm, **options)
    labels = bench.without(*without)
    wanted = bench.log_probabilities()
    dx_wanted, grad_wanted = bench.gradients(np.ones(ROWS))
    bench.params.begin_sums()
    x = bench.x.copy()
    dx = x if in_place else np.full_like(x, np.nan)
    loss, count = bench.head.loss(x, dx, labels, bench.slot)
    assert count == ROWS - len(without) and loss == pytest.approx(-wanted.sum(), rel=1e-12)
    np.testing.assert_allclose(dx, dx_wanted, atol=1e-8)
    np.testing.assert_allclose(bench.params.grad, grad_wanted, atol=1e-8)
    assert not dx[list(without)].any()
    assert bench.head.loss(bench.x, None, labels, bench.slot) == (loss, count)


@BENT
@pytest.mark.parametrize("without", [(), (0, 3, 4, 22)])
def test_scores_and_weighted_gradients(chunk, without, options):
    bench = Bench(**options)
    labels = bench.without(*without)
    logp, lse = bench.head.score(bench.x, labels, bench.slot)
    np.testing.assert_allclose(logp, bench.log_probabilities(), rtol=1e-12)
    assert not lse[list(without)].any() and lse[1] > logp[1]
    dx_wanted, grad_wanted = bench.gradients(bench.weights)
    bench.params.begin_sums()
    dx = bench.x.copy()
    bench.head.gradient(dx, dx, labels, bench.weights, lse, bench.slot)
    np.testing.assert_allclose(dx, dx_wanted, atol=1e-8)
    np.testing.assert_allclose(bench.params.grad, grad_wanted, atol=1e-8)


def test_weights_of_one_give_the_losss_gradients_bit_by_bit():
    bench = Bench(precision="fp32")
    labels = bench.without(2, 9)
    _, lse = bench.head.score(bench.x, labels, bench.slot)
    dx = [np.empty_like(bench.x) for _ in range(2)]
    grads = []
    for number in range(2):
        bench.params.begin_sums()
        if number:
            ones = np.ones(ROWS, np.float32)
            bench.head.gradient(dx[number], bench.x, labels, ones, lse, bench.slot)
        else:
            bench.head.loss(bench.x, dx[number], labels, bench.slot)
        grads.append(bench.params.grad.copy())
    np.testing.assert_array_equal(dx[0], dx[1])
    np.testing.assert_array_equal(grads[0], grads[1])


def test_without_any_label_the_gradients_of_a_step_before_do_not_stay():
    bench = Bench()
    bench.params.grad.fill(7)
    bench.params.begin_sums()
    dx = np.full_like(bench.x, np.nan)
    assert bench.head.loss(bench.x, dx, bench.without(*range(ROWS)), bench.slot) == (0.0, 0)
    assert not dx.any() and not any(param.grad.any() for param in bench.params.params)


def test_a_vocabulary_smaller_than_the_stream_has_no_room_for_rows_in_its_logits():
    bench = Bench(words=3)
    labels = bench.without(1, 5)
    dx_wanted, grad_wanted = bench.gradients(np.ones(ROWS))
    bench.params.begin_sums()
    dx = np.empty_like(bench.x)
    bench.head.loss(bench.x, dx, labels, bench.slot)
    np.testing.assert_allclose(dx, dx_wanted, atol=1e-8)
    np.testing.assert_allclose(bench.params.grad, grad_wanted, atol=1e-8)


def test_nothing_is_multiplied_for_rows_without_a_label(chunk):
    bench = Bench()
    labels = bench.without(*range(5, 20))
    multiplied = dict.fromkeys(("linear_forward", "linear_backward_input", "linear_backward_weight"), 0)
    kernels = bench.num.kernels

    class Counting:
        def __getattr__(self, name):
            op = getattr(kernels, name)

            def counted(*args, **kwargs):
                if name in multiplied:
                    multiplied[name] += len(args[2] if name == "linear_backward_weight" else args[1])
                return op(*args, **kwargs)

            return counted

    bench.num.kernels = Counting()
    bench.head.loss(bench.x, np.empty_like(bench.x), labels, bench.slot)
    assert set(multiplied.values()) == {ROWS - 15}
