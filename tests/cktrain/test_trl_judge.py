"""TRL judges fine-tuning as a whole: from the same chats the same tokens and labels, losses and norms of gradients."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from chat_models import SYSTEM, TURN, write_rows, write_weights

pytest.importorskip("trl")
pytest.importorskip("peft")

pytestmark = pytest.mark.judge

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "trl_losses.py"
STEPS, ROWS = 12, 2


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/benchmarks/trl_losses.py, which compares with a real model, and is in no package."""
    spec = importlib.util.spec_from_file_location("trl_losses", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_losses_are_those_of_trl(script, tmp_path, kind):
    """A step has two rows of different lengths, of which only answers count: a mean of the rows' means is another loss.

    Losses to 1e-5, norms to 1e-4 of their own: both sides are fp32, and an update of Adam divides a small gradient by its
    own size, so that a difference of the last bits grows.
    """
    model = write_weights(tmp_path / "model", positions=256)
    rows = [
        {
            "messages": SYSTEM
            if index % 3 == 0
            else [*TURN[:1], {"role": "assistant", "content": "No. " * index}]
        }
        for index in range(1, ROWS * STEPS + 1)
    ]
    chats = write_rows(tmp_path / "chats.jsonl", rows)
    adapter = script.start_adapter(model, tmp_path / "adapter", rank=3) if kind == "lora" else None
    task = script.Task(model, chats, STEPS, ROWS, adapter, 1e-2, 0.1 if kind == "full" else 0.0)
    theirs = script.trl_series(task, script.marked_template(model, tmp_path / "template.jinja"))
    ours = script.cktrain_series(task, 256, threads=1)
    assert len(ours.tokens) == len(theirs.tokens) == len(rows)
    assert script.rows_that_differ(ours.tokens, theirs.tokens) == []
    assert ours.losses[-1] < ours.losses[0] - 0.1, "nothing was learned, so that nothing was compared"
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.norms, theirs.norms, rtol=1e-4)
