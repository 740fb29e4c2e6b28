"""`cktrain evaluate`: what it prints and says, as text and as JSON, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cktrain.host import bind
from cktrain.launch.cli import main

sys.path.insert(0, str(Path(__file__).parents[2] / "cktrain"))
from chat_models import write_rows, write_weights

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"say {i}"},
            {"role": "assistant", "content": "Grüße " * (i + 1)},
        ]
    }
    for i in range(6)
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with two models and rows; nothing is bound."""
    binding = bind.Binding((0,), 1, None, "")
    monkeypatch.setattr(bind, "bind", lambda *_args, **_kwargs: binding)
    monkeypatch.chdir(tmp_path)
    write_weights(Path("model"), seed=5)
    write_weights(Path("second"), seed=6)
    write_rows(Path("rows.jsonl"), ROWS)


def test_text_has_the_table_the_worst_rows_and_answers(capfd):
    options = [
        "--data",
        "rows.jsonl",
        "--compare",
        "second",
        "--max-tokens",
        "4",
        "--answers",
        "3",
        "--samples",
        "2",
    ]
    assert main(["evaluate", "model", *options, "--metrics", "exact_match", "--worst", "2"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert (
        lines[0].startswith("data: rows.jsonl: 6 rows, ")
        and "model: model" in lines
        and "other: second" in lines
    )
    (head,) = (line for line in lines if line.split() == ["other", "model", "difference"])
    (loss,) = (line for line in lines if line.startswith("loss "))
    assert loss.index("[") > head.index("other") and loss.count("[") == 3
    assert sum("rows.jsonl:" in line and "Grüße" in line for line in lines) == 2
    assert (
        sum(line.startswith("  model: ") for line in lines)
        == 2
        == sum(line.startswith("  row:") for line in lines)
    )
    assert "second: losses of 6 rows" in err


def test_json_is_one_object_and_alone_on_standard_output(capfd):
    assert (
        main(["evaluate", "model", "--data", "rows.jsonl", "--answers", "2", "--max-tokens", "4", "--json"])
        == 0
    )
    found = json.loads(capfd.readouterr().out)
    assert (found["rows"], found["compared"], len(found["model"]["answers"])) == (6, None, 2)
    assert found["model"]["loss"]["low"] < found["model"]["loss"]["value"] < found["model"]["loss"]["high"]
    assert found["model"]["answers"][0]["reference"] == "Grüße " and len(found["worst"]) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["--data", "rows.jsonl", "--metrics", "f1"], "metric 'f1': give some of"),
        (["--data", "rows.jsonl", "--compare", "base"], "names nothing that it started from"),
        (["--data", "rows.jsonl", "--columns", "a"], "write ours=theirs"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(options, message, capfd):
    assert main(["evaluate", "model", "--answers", "0", *options]) == 2
    out, err = capfd.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and message in last and last.startswith("cktrain: [")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "own", "--compare", "second"], "--compare is of --data, which is not given"),
        (["--tasks", "own", "--metrics", "exact_match"], "--metrics is of --data, which is not given"),
        (["--data", "rows.jsonl", "--shots", "0"], "--shots is of --tasks, which is not given"),
        (["--data", "rows.jsonl", "--chat"], "--chat is of --tasks, which is not given"),
    ],
)
def test_options_of_rows_and_of_tasks_are_not_mixed(options, message, capfd):
    assert main(["evaluate", "model", *options]) == 2
    assert message in capfd.readouterr().err


def test_tasks_without_the_harness_name_what_to_install(monkeypatch, capfd):
    monkeypatch.delitem(sys.modules, "cktrain.evaluation.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["evaluate", "model", "--tasks", "own"]) == 2
    assert "--tasks needs EleutherAI's lm-evaluation-harness" in capfd.readouterr().err
