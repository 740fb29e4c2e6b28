"""Masked losses beside transformers on the same rows, and bits per byte."""

from __future__ import annotations

import math

import numpy as np
import pytest
from chat_models import SYSTEM, TURN, write_rows, write_weights

from cktrain.evaluation.losses import bits_per_byte, row_losses
from cktrain.evaluation.rows import RowOptions, read_rows
from cktrain.loaded_model import open_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.judge


def test_losses_are_those_of_transformers(tmp_path):
    folder = write_weights(tmp_path / "model", positions=512)
    rows = [{"messages": [{**TURN[0], "content": "Hi " * i}, TURN[1]]} for i in range(1, 30)]
    file = write_rows(tmp_path / "rows.jsonl", [{"messages": SYSTEM}, *rows])
    model = open_model(folder)
    found = read_rows(file, model.side, 512, RowOptions(), print)
    sums, counts = row_losses(model, found)
    judge = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = 0.0
    for row, loss, count in zip(found, sums, counts, strict=True):
        ids, labels = torch.tensor([row.ids]), torch.tensor(np.where(row.learned, row.ids, -100)[None])
        with torch.no_grad():
            wanted = float(judge(input_ids=ids, labels=labels).loss) * count
        # fp32: each logit rounds to 6e-8 of the largest.
        assert loss == pytest.approx(wanted, rel=1e-5)
        total += wanted
    assert sums.sum() / counts.sum() == pytest.approx(total / counts.sum(), rel=1e-5)
    text = "Some text of which each token counts. " * 4
    ids = torch.tensor([model.encode(text)])
    with torch.no_grad():
        mean = float(judge(input_ids=ids, labels=ids).loss)
    wanted = mean * (ids.shape[1] - 1) / math.log(2) / (len(text) - 1)
    assert bits_per_byte(model, text)[0] == pytest.approx(wanted, rel=1e-5)
