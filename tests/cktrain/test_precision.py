"""`auto` follows the slowest rank and the checkpoint; emulated bf16 is only had by asking, with a warning."""

from __future__ import annotations

import logging

import pytest

from cktrain.precision import choose_precision


@pytest.mark.parametrize(
    "isas, before, expected",
    [
        (["avx512bf16"], "", "bf16"),
        (["avx512bf16", "avx512bf16"], "", "bf16"),
        (["avx512bf16", "avx512"], "", "fp32"),
        (["avx2"], "", "fp32"),
        (["generic"], "", "fp32"),
        (["reference"], "", "fp32"),
        (["avx512bf16"], "fp32", "fp32"),
        (["avx2"], "bf16", "bf16"),
    ],
)
def test_auto(isas, before, expected):
    assert choose_precision("auto", isas, before) == expected


def test_what_is_asked_for_wins_over_the_checkpoint():
    assert choose_precision("fp32", ["avx512bf16"], "bf16") == "fp32"


def test_emulated_bf16_is_warned_about(caplog):
    logging.getLogger("cktrain").propagate = True
    with caplog.at_level(logging.WARNING, logger="cktrain"):
        assert choose_precision("bf16", ["avx512bf16", "avx2"]) == "bf16"
        assert "avx2 has no bf16 arithmetic" in caplog.text
        caplog.clear()
        assert choose_precision("bf16", ["avx512bf16"]) == "bf16"
        assert caplog.text == ""


def test_fp64_is_for_the_reference_kernels():
    assert choose_precision("fp64", ["reference", "reference"]) == "fp64"
    with pytest.raises(ValueError, match="fp64 needs the reference kernels, and avx2 was chosen"):
        choose_precision("fp64", ["reference", "avx2"])
