"""An evaluation of a tiny model: figures beside those computed by hand, the base beside it, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from chat_models import write_rows, write_weights

import cktrain as ck
from cktrain.evaluation.losses import bits_per_byte
from cktrain.evaluation.report import as_dict, as_text

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"say {i}"},
            {"role": "assistant", "content": "b" * (i % 4 + 1)},
        ]
    }
    for i in range(12)
]


@pytest.fixture(autouse=True)
def here(unbound, tmp_path, monkeypatch):
    """A folder with a model and rows."""
    monkeypatch.chdir(tmp_path)
    write_weights(Path("model"))
    write_rows(Path("rows.jsonl"), ROWS)


def test_figures_are_those_of_each_row_alone():
    model = ck.load("model")
    found = ck.evaluate(model, "rows.jsonl", metrics=["exact_match"], answers=4, max_tokens=5)
    sums, counts = [], []
    for row in found.rows:
        labels = np.where(row.learned, row.ids, -100)
        counts.append(sum(row.learned))
        sums.append(model.loss(row.ids, labels) * counts[-1])
    # Rows are computed together and filled up: fp32 sums in another order.
    assert np.abs(found.model.row_losses - sums).max() <= 1e-5 * max(sums)
    loss = found.model.figures["loss"]
    assert (
        loss.value == pytest.approx(sum(sums) / sum(counts), rel=1e-6) and loss.low < loss.value < loss.high
    )
    assert found.model.figures["perplexity"].value == math.exp(loss.value)
    worst = found.worst(3)
    assert [loss for _, loss in worst] == pytest.approx(sorted(np.array(sums) / counts)[:-4:-1], rel=1e-5)
    assert [each.place.rpartition(":")[2] for each in found.model.answers] == ["1", "4", "7", "10"]
    for each in found.model.answers:
        prompt = [
            {
                "role": "user",
                "content": ROWS[int(each.place.rpartition(":")[2]) - 1]["messages"][0]["content"],
            }
        ]
        assert each.answer == model.chat(prompt, 5, temperature=0)
        assert each.reference == "b" * ((int(each.place.rpartition(":")[2]) - 1) % 4 + 1)
    assert found.notes == ["answers: to 4 of 12 rows, evenly spread"]


def test_a_run_beside_its_base():
    options = {"epochs": 6, "chat": {"sequence_length": 64, "validation_fraction": 0.2}, "bar": False}
    keys = {"precision": "fp32", "optimizer.lr": 0.03}
    run = ck.finetune("model", "rows.jsonl", "run", adapter={"r": 4}, overrides=keys, **options)
    Path("general.txt").write_text("Some other text. " * 40)
    found = ck.evaluate(
        run, "run/data", compare="base", metrics=["exact_match"], max_tokens=8, general="general.txt"
    )
    assert found.compared is not None and found.compared.path == "model"
    # The same rows as in the run's validation, each alone there too.
    validation = run.losses().validation
    assert found.model.figures["loss"].value == pytest.approx(validation[-1][1], rel=1e-4)
    assert found.compared.figures["loss"].value == pytest.approx(validation[0][1], rel=1e-4)
    difference = found.differences["loss"]
    assert difference.value < 0 and difference.low < difference.value < difference.high < 0
    assert found.differences["general_bits_per_byte"].value != 0
    perplexity = found.differences["perplexity"]
    assert perplexity.low < perplexity.value < perplexity.high < 0
    values = json.loads(json.dumps(as_dict(found)))
    assert values["model"]["loss"]["value"] == found.model.figures["loss"].value
    assert len(values["compared"]["answers"]) == len(found.rows) == values["rows"]
    text = as_text(found, ck.load("model").decode)
    for word in (
        "perplexity",
        "exact_match",
        "answers that end",
        "general, bits per byte",
        "difference",
        "base: ",
    ):
        assert word in text
    same = ck.evaluate("model", "run/data", compare="model", answers=0)
    assert same.differences["loss"].value == same.differences["loss"].high == 0


def test_bits_per_byte_count_every_token_once():
    model = ck.load("model")
    text = "Grüße, " * 30  # longer than the model's 128 positions
    ids = model.encode(text)
    assert len(ids) > 200
    bits, size = bits_per_byte(model, text)
    assert size == len(text.encode()) - 1
    total = sum(
        -float(model.log_probabilities(ids[begin : begin + 128]).sum())
        for begin in range(0, len(ids) - 1, 127)
    )
    assert bits == pytest.approx(total / math.log(2) / size, rel=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metrics": ["bleu"]}, "metric 'bleu'"),
        ({"compare": "base"}, "model names nothing that it started from"),
        ({"compare": "nothing"}, "nothing is no run"),
        ({"general": "nothing.txt"}, r"nothing\.txt: it cannot be read"),
    ],
)
def test_what_cannot_be_evaluated_is_told(keys, message):
    with pytest.raises(ValueError, match=message):
        ck.evaluate("model", "rows.jsonl", answers=0, **keys)
