"""The group of one rank passes the same checks as every other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cktrain.comm.group import even_counts, offsets_of
from cktrain.comm.solo_group import SoloGroup


def load_conformance():
    spec = importlib.util.spec_from_file_location("conformance", Path(__file__).with_name("conformance.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


conformance = load_conformance()


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance(check):
    check(SoloGroup())


def test_every_check_is_in_the_list():
    written = {name for name in vars(conformance) if name.startswith("check_")}
    assert written == {check.__name__ for check in conformance.CHECKS}


def test_deadline_must_be_positive():
    with pytest.raises(ValueError, match="timeout_s: 0 is not above 0"):
        SoloGroup(timeout_s=0)


def test_abort_exits():
    with pytest.raises(SystemExit) as caught:
        SoloGroup().abort(75)
    assert caught.value.code == 75


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("total", [0, 1, 6, 63, 64, 65, 100_003])
def test_even_counts(total, size):
    counts = even_counts(total, size)
    assert len(counts) == size and sum(counts) == total and max(counts) - min(counts) <= 1
    assert offsets_of(counts) == list(np.cumsum([0, *counts[:-1]]))
