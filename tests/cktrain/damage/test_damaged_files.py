"""A thousand damaged files of each kind that others write, in four parts, are read whole or refused in words."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from damaged_files import damaged, outcome
from kinds import KINDS


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_refused(name, seed, tmp_path):
    kind = KINDS[name](tmp_path)
    assert outcome(kind, False) == "whole"
    draw, outcomes = np.random.default_rng(seed), set()
    for number, _ in zip(range(250), damaged(kind, draw), strict=False):
        outcomes.add(outcome(kind, number % 2 == 1))
    assert "whole" in outcomes and len(outcomes) > 6
