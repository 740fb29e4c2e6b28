"""RoPE tables against transformers' own, live and stored, and against the formula."""

import sys
from pathlib import Path

import numpy as np
import pytest

from cktrain.nn.rope_tables import rope_tables, scores_factor

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from make_rope_goldens import LLAMA3, LONGROPE, POSITIONS, SETTINGS, transformers_tables  # noqa: E402

# The angles are the same fp32 numbers on both sides, so that only the roundings of cos and sin are left.
TOLERANCE = 2.0**-22


def _check(name: str, cos: np.ndarray, sin: np.ndarray, tolerance: float | np.ndarray) -> None:
    head_dim, theta, scaling = SETTINGS[name]
    got = rope_tables(int(POSITIONS.max()) + 1, head_dim, theta, scaling)
    factor = scores_factor(scaling)
    for table, want in zip(got, (cos, sin), strict=True):
        assert table.dtype == np.float32 and table.shape == (8192, head_dim // 2)
        assert (np.abs(factor * table[POSITIONS].astype(np.float64) - want) <= tolerance).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_tables_agree_with_the_golden_ones(name: str) -> None:
    with np.load(GOLDEN / "rope_tables.npz") as stored:
        _check(name, stored[f"{name}/cos"], stored[f"{name}/sin"], TOLERANCE)


@pytest.mark.judge
@pytest.mark.parametrize("name", SETTINGS)
def test_tables_agree_with_transformers(name: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    head_dim, theta, _ = SETTINGS[name]
    angles = POSITIONS[:, None] * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    # torch's pow() is not the same on every CPU: a frequency may be a rounding off, and its angles with it.
    _check(name, *transformers_tables(name), TOLERANCE + angles * 2.0**-22)


def test_tables_are_those_of_the_formula() -> None:
    cos, sin = rope_tables(50, 16, 10_000.0, None, dtype=np.float64)
    angles = np.arange(50)[:, None] * 10_000.0 ** (-np.arange(8) / 8)
    # The angles are rounded to fp32, the functions are not.
    assert np.abs(cos - np.cos(angles)).max() < 50 * 2.0**-22
    assert np.abs(sin**2 + cos**2 - 1.0).max() < 1e-15


def test_llama3_keeps_short_waves_and_slows_long_ones() -> None:
    plain, _ = rope_tables(2, 128, 500_000.0, None, dtype=np.float64)
    scaled, _ = rope_tables(2, 128, 500_000.0, LLAMA3, dtype=np.float64)
    angle, slow = np.arccos(plain[1]), np.arccos(scaled[1])
    wavelength = 2 * np.pi * 500_000.0 ** (np.arange(64) / 64)
    short = wavelength < 8192 / 4
    assert short.any() and np.array_equal(slow[short], angle[short])
    long = (wavelength > 8192) & (angle > 1e-5)  # arccos of smaller angles has no digits
    assert long.any() and np.allclose(slow[long], angle[long] / 8, rtol=1e-3)


def test_old_configs_name_the_type_type() -> None:
    new = rope_tables(9, 8, 10_000.0, {"rope_type": "linear", "factor": 2.0})
    old = rope_tables(9, 8, 10_000.0, {"type": "linear", "factor": 2.0})
    assert np.array_equal(new, old)
    assert np.array_equal(rope_tables(9, 8, 10_000.0, {"rope_type": "default"}), rope_tables(9, 8, 10_000.0))


def test_longrope_has_other_frequencies_beyond_the_original_length() -> None:
    scaling = LONGROPE | {"original_max_position_embeddings": 16}
    short, long = (rope_tables(count, 96, 10_000.0, scaling)[1] for count in (16, 17))
    assert short.shape == (16, 48) and long.shape == (17, 48)
    plain = np.arcsin(rope_tables(2, 96, 10_000.0)[1][1].astype(np.float64))
    for table, divisors in ((short, LONGROPE["short_factor"]), (long, LONGROPE["long_factor"])):
        np.testing.assert_allclose(np.arcsin(table[1].astype(np.float64)), plain / divisors, rtol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        (None, 1.0),
        (LLAMA3, 1.0),
        ({"rope_type": "yarn", "factor": 8.0}, 0.1 * np.log(8) + 1),
        ({"rope_type": "yarn", "factor": 0.5}, 1.0),
        ({"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2079}, 1.2079),
        (
            {"rope_type": "yarn", "factor": 16.0, "mscale": 0.7, "mscale_all_dim": 1.0},
            (0.07 * np.log(16) + 1) / (0.1 * np.log(16) + 1),
        ),
        (LONGROPE | {"factor": 32.0}, np.sqrt(1 + np.log(32) / np.log(4096))),
    ],
)
def test_what_scores_are_multiplied_by(scaling: dict | None, factor: float) -> None:
    assert scores_factor(scaling) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("head_dim", "scaling", "message"),
    [
        (7, None, "head_dim is 7"),
        (8, {"rope_type": "dynamic", "factor": 2.0}, "'dynamic'"),
        (8, {"factor": 2.0}, "None"),
        (8, {"rope_type": "linear"}, "factor is None"),
        (8, {"rope_type": "linear", "factor": 0}, "factor is 0"),
        (8, LONGROPE, "longrope has 48 factors and 8 numbers of a head turn"),
        (8, LLAMA3 | {"original_max_position_embeddings": "8k"}, "'8k'"),
        (8, LLAMA3 | {"high_freq_factor": 1.0}, "1.0 is not above low_freq_factor 1.0"),
    ],
)
def test_bad_settings_are_refused(head_dim: int, scaling: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rope_tables(4, head_dim, 10_000.0, scaling)
