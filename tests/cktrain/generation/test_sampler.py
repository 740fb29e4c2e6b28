"""Choice of tokens: how often each is drawn, what the filters leave, and settings that make no sense."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain.generation.sampler import Sampler


def frequencies(sampler: Sampler, logits: np.ndarray, draws: int = 20_000) -> np.ndarray:
    return np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=logits.size) / draws


def test_sampling_follows_the_probabilities():
    probabilities = np.array([0.05, 0.5, 0.15, 0.3])
    logits = np.log(probabilities).astype(np.float32)
    # 20,000 draws: the standard deviation of a frequency is at most 0.0036.
    assert np.abs(frequencies(Sampler(1.0), logits) - probabilities).max() < 0.015
    sharper = probabilities**2 / np.sum(probabilities**2)
    assert np.abs(frequencies(Sampler(0.5), logits) - sharper).max() < 0.015
    assert np.abs(frequencies(Sampler(1.0, top_k=2), logits) - [0, 0.625, 0, 0.375]).max() < 0.015
    assert np.abs(frequencies(Sampler(1.0, top_p=0.7), logits) - [0, 0.625, 0, 0.375]).max() < 0.015
    assert frequencies(Sampler(1.0, top_p=0.01), logits, 100)[1] == 1
    assert frequencies(Sampler(0), logits, 100)[1] == 1


def test_the_seed_decides_the_draws():
    logits = np.zeros(100, np.float32)
    first, again, other = (
        [s.choose(logits) for _ in range(20)]
        for s in (Sampler(1, seed=1), Sampler(1, seed=1), Sampler(1, seed=2))
    )
    assert first == again != other


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"seed": -1},
    ],
)
def test_settings_that_make_no_sense(bad):
    with pytest.raises(ValueError, match="Correct them"):
        Sampler(**{"temperature": 1.0, **bad})


def test_logits_that_are_not_finite():
    with pytest.raises(ValueError, match="NaN or infinite"):
        Sampler(1.0).choose(np.array([0.0, np.nan], np.float32))


def test_what_was_written_is_less_likely_by_the_penalty():
    logits = np.array([2.0, 1.5, -1.0, -1.5], np.float32)
    assert Sampler(0, repetition_penalty=2.0).choose(logits, [0, 0, 2]) == 1
    assert Sampler(0, repetition_penalty=2.0).choose(logits) == 0
    found = Sampler(1.0, repetition_penalty=2.0).probabilities(logits, [0, 0, 2])
    wanted = np.exp([1.0, 1.5, -2.0, -1.5])
    assert np.allclose(found, wanted / wanted.sum(), atol=1e-15)
    assert logits[0] == 2.0  # the caller's array stays


def test_draws_follow_the_probabilities_that_are_told():
    logits = np.linspace(2, -4, 12, dtype=np.float32)
    keys = {"temperature": 0.7, "top_k": 8, "top_p": 0.95, "min_p": 0.02}
    wanted = Sampler(**keys).probabilities(logits)
    assert 1 < np.count_nonzero(wanted) < 12
    # 20,000 draws: the standard deviation of a frequency is at most 0.0036.
    assert np.abs(frequencies(Sampler(**keys), logits) - wanted).max() < 0.015
