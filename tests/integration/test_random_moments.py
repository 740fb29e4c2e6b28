"""The short form of tests/random_moments.py: two moments of each kind."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "random_moments.py"


@pytest.mark.skipif(
    os.environ.get("CKTRAIN_TEST_STRICT", "") in ("", "0"),
    reason="17 runs, which CI makes (CKTRAIN_TEST_STRICT=1)",
)
def test_nothing_is_lost_at_random_moments(tmp_path):
    spec = importlib.util.spec_from_file_location("random_moments", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = sys.modules["random_moments"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    outcomes = script.run_trials(tmp_path, moments=2, seed=1, workers=2, seconds=600)
    assert len(outcomes) == 8
    assert [(outcome.kind, line) for outcome in outcomes for line in outcome.wrong] == []
