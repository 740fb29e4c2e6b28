"""AdamW with moments of a byte each: what is kept, that numbers become the same bytes again, and that it trains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cktrain import cython_kernels
from cktrain.config import OptimizerConfig
from cktrain.cython_kernels.dynamic_map import BLOCK, SIGNED, UNSIGNED, DynamicMap
from cktrain.memory.arena import planning
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.nn.numerics import Numerics
from cktrain.optim.adamw_8bit import AdamW8bit
from cktrain.optim.optimizer import AdamW
from cktrain.parallel.buckets import plan_buckets

CONFIG = OptimizerConfig(name="adamw_8bit", lr=1e-2, weight_decay=0.1)


def store(isa: str = "", precision: str = "fp32") -> ParamStore:
    params = [
        Param("embedding", (130, 61)),
        Param("norm", (61,), decay=False),
        Param("up", (100, 61)),
        Param("small", (10, 61)),
        Param("long bias", (5000,), decay=False),
    ]
    found = ParamStore(params, Numerics(cython_kernels.load(isa or None), precision))
    found.initialize(1)
    return found


def steps(optimizer: AdamW, count: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for step in range(1, count + 1):
        optimizer.params.grad[...] = rng.standard_normal(optimizer.params.size)
        optimizer.step(1e-2, 0.25, step)


@pytest.mark.parametrize("dynamic", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_bytes_stand_for_becomes_the_same_bytes(dynamic: DynamicMap, dtype: Any) -> None:
    """Of any bytes whose largest one is the map's 1, as encoding leaves them, at scales over all that occurs."""
    rng = np.random.default_rng(0)
    blocks = 3000
    codes = rng.integers(0, 256, blocks * BLOCK - 7, dtype=np.uint8)
    codes[np.arange(blocks) * BLOCK + rng.integers(0, BLOCK - 7, blocks)] = 255
    scales = (2.0 ** rng.uniform(-99, 60, blocks)).astype(dtype)
    if dynamic is SIGNED:
        scales *= rng.choice([-1, 1], blocks).astype(dtype)
    numbers = dynamic.numbers_of(codes, scales)
    again, again_scales = np.empty_like(codes), np.empty_like(scales)
    dynamic.encode(again, again_scales, numbers)
    assert np.array_equal(again, codes) and np.array_equal(again_scales, scales)


@given(
    st.integers(1, 600),
    st.sampled_from([1e-25, 1.0, 1e20]),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=50)
def test_a_number_becomes_the_nearest_of_the_map(n: int, size: float, seed: int) -> None:
    """By distance to all 256; the largest magnitude of a block is kept exactly, whatever its sign."""
    x = (np.random.default_rng(seed).standard_normal(n) ** 3 * size).astype(np.float32)
    codes, scales = np.empty(n, np.uint8), np.empty(-(-n // BLOCK), np.float32)
    SIGNED.encode(codes, scales, x)
    got = SIGNED.numbers_of(codes, scales)
    for first in range(0, n, BLOCK):
        part = x[first : first + BLOCK]
        largest = np.abs(part).argmax()
        assert got[first : first + BLOCK][largest] == part[largest]
        distance = np.abs(part[:, None].astype(float) - SIGNED.values.astype(float) * scales[first // BLOCK])
        mine = np.abs(part - got[first : first + BLOCK].astype(float))
        assert (mine <= distance.min(axis=1) * (1 + 1e-5) + 1e-6 * abs(part[largest])).all()


@pytest.mark.parametrize("isa", [isa for isa in cython_kernels.available() if isa != "reference"])
def test_kernels_find_the_map_s_bytes(isa: str) -> None:
    """All bytes and scales, of numbers of either sign over all that occurs: moments of gradients alone, beta 0, are exact in
    both, at a learning rate of 0."""
    rng = np.random.default_rng(0)
    n = 500 * BLOCK - 7
    grad = (rng.standard_normal(n) ** 3 * 2.0 ** rng.uniform(-60, 30, n)).astype(np.float32)
    blocks = np.arange(n) // BLOCK
    grad *= 2.0 ** rng.uniform(-40, 20, blocks[-1] + 1).astype(np.float32)[blocks]
    grad[rng.integers(0, n, n // 10)] *= 0.0  # zeros of either sign
    grad[blocks == 3] = 2.0**-101
    grad[5 * BLOCK : 5 * BLOCK + 2] = np.float32(1e18), np.float32(-1e18)
    wanted: list[Any] = []
    got: list[Any] = []
    for dynamic, numbers in ((SIGNED, grad), (UNSIGNED, grad * grad)):
        wanted += [np.empty(n, np.uint8), np.empty(blocks[-1] + 1, np.float32)]
        got += [np.full(n, 127, np.uint8), np.zeros(blocks[-1] + 1, np.float32)]
        dynamic.encode(*wanted[-2:], numbers)
    kernels = cython_kernels.load(isa)
    kernels.adamw_8bit_step(np.zeros(n, np.float32), *got, grad, 0.0, 0.0, 0.0, 1e-8, 0.0, 1, 1.0)
    for mine, theirs in zip(got, wanted, strict=True):
        assert np.array_equal(mine, theirs)


def test_a_second_moment_above_zero_stays_above() -> None:
    x = np.array([1.0, 1e-9, 0.0, 1e-38], np.float32)
    codes, scales = np.empty(4, np.uint8), np.empty(1, np.float32)
    UNSIGNED.encode(codes, scales, x)
    assert codes.tolist() == [255, 1, 0, 1]


def test_vanishing_numbers_become_zeros() -> None:
    x = np.full(300, -(2.0**-101), np.float32)
    x[280] = 2.0**-99
    codes, scales = np.empty(300, np.uint8), np.empty(2, np.float32)
    SIGNED.encode(codes, scales, x)
    assert scales.tolist() == [0.0, 2.0**-99] and (codes[:256] == 127).all() and codes[280] == 255


def test_large_parameters_take_two_bytes_and_small_ones_eight() -> None:
    params = store()
    optimizer = AdamW8bit(params, CONFIG)
    large = [param.size for param in params.trainable if param.size >= 4096]
    assert len(large) == 3
    blocks = sum(math.ceil(size / BLOCK) for size in large)
    assert {name: array.nbytes for name, array in optimizer.state.items() if "." in name} == {
        f"{moment}.{what}": nbytes
        for moment in AdamW.moments
        for what, nbytes in (("bytes", sum(large)), ("scales", 4 * blocks))
    }
    assert optimizer.state["exp_avg"].size < 800  # the norm, the small matrix, and the elements between
    with planning() as planned:
        AdamW8bit(params, CONFIG)
    assert planned["optimizer"] <= sum(array.nbytes for array in optimizer.state.values()) + 6 * 64


@pytest.mark.parametrize(("isa", "precision"), [("reference", "fp64"), ("", "fp32"), ("", "bf16")])
def test_moments_from_a_file_are_the_same_bytes(isa: str, precision: str) -> None:
    """All arrays, bit for bit, where each parameter's numbers go through rows and back; and so the next steps."""
    params, others = store(isa, precision), store(isa, precision)
    optimizer, other = AdamW8bit(params, CONFIG), AdamW8bit(others, CONFIG)
    steps(optimizer, 4)
    others.data[...] = params.data
    for param in params.trainable:
        for moment in optimizer.moments_for(param):
            rows = optimizer.moment_rows(moment, param.start, param.shape)
            assert rows.shape == param.shape and rows.size == param.size
            half = param.shape[0] // 2
            numbers = np.concatenate([rows[slice(0, half)], rows[slice(half, param.shape[0])]]).reshape(-1)

            def read(first: int, into: np.ndarray, start: int = param.start, numbers: Any = numbers) -> None:
                into[...] = numbers[first - start : first - start + into.size]

            other.fill_moment(moment, param.start, param.start + param.size, read)
    others.refresh()
    for run in (0, 1):
        for name, array in optimizer.state.items():
            if "." in name:
                assert np.array_equal(array, other.state[name]), name
        for param in params.trainable:
            assert np.array_equal(param.data, others[param.name].data)
        if run == 0:
            steps(optimizer, 3, seed=1)
            steps(other, 3, seed=1)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_data_ranks_cut_no_block(ranks: int) -> None:
    """Their pieces together hold what one rank holds, bit for bit."""
    params = store()
    alone = AdamW8bit(params, CONFIG)
    start = params.data.copy()
    steps(alone, 3)
    want = params.data.copy()
    buckets = plan_buckets(params, ranks, block=AdamW8bit.block)
    assert sum(sum(bucket.counts) for bucket in buckets) == params.size
    even = params.size / ranks
    for rank in range(ranks):
        spans = [bucket.piece(rank) for bucket in buckets]
        assert abs(sum(high - low for low, high in spans) - even) <= BLOCK + 16
        params.data[...] = start
        mine = AdamW8bit(params, CONFIG, spans)
        steps(mine, 3)
        for low, high in spans:
            assert np.array_equal(params.data[low:high], want[low:high])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_learns_as_with_moments_of_32_bits(tiny: Any, composed: Any, precision: str) -> None:
    """A Llama whose matrices are all in bytes: the loss after 60 steps is AdamW's within 2 %, and below its first."""
    losses = {}
    for name in ("adamw", "adamw_8bit"):
        size = {"model.hidden_size": 64, "model.intermediate_size": 96, "model.vocab_size": 80}
        config = tiny(
            precision=precision,
            **size,
            **{
                "optimizer.name": name,
                "optimizer.lr": 3e-3,
                "run.steps": 60,
                "run.dir": f"{tiny().run.dir}-{name}",
            },
        )
        trainer = composed(config, None).trainer
        found = [trainer.step().loss for _ in range(60)]
        losses[name] = float(np.mean(found[-10:]))
        assert losses[name] < 0.8 * found[0]
    assert losses["adamw_8bit"] == pytest.approx(losses["adamw"], rel=0.02)
