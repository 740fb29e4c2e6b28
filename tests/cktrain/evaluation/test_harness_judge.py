"""lm-evaluation-harness by this package gives what it gives by transformers, on tasks from local JSON, without a network."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from chat_models import write_weights

pytest.importorskip("transformers")
lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.judge

WORDS = ["one", "two", "three and a half", " four", "5"]
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{choices[0]}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["P"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model, rows in JSON, and a YAML file for each task."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_weights(tmp_path / "model", positions=256)
    rows = [
        {"question": f"{word} after {i}", "choices": [word, "x" * i, "no"], "answer": i % 3}
        for i, word in enumerate(WORDS, 1)
    ]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    for name, keys in TASKS.items():
        data = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        }
        values = {"task": f"own_{name}", **data, "test_split": "test", **keys}
        (tmp_path / "tasks" / f"{name}.yaml").write_text(json.dumps(values))
    return tmp_path


def assert_same(ours: object, theirs: object) -> None:
    """Texts and truths are equal, log-probabilities to the order of fp32's sums."""
    if isinstance(theirs, str | bool):
        assert ours == theirs
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4)
    else:
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)


def test_tasks_have_the_results_that_they_have_by_transformers(folder, unbound):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    import cktrain as ck
    from cktrain.evaluation.harness import run_tasks, table_of

    names = [f"own_{name}" for name in TASKS]
    ours = run_tasks(ck.load(folder / "model", special_tokens="parse"), names, folder=folder / "tasks")
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=1),
        tasks=names,
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    for name in names:
        wanted = {
            key: value
            for key, value in theirs["results"][name].items()
            if ",none" in key and "stderr" not in key
        }
        assert len(wanted) == len(TASKS[name.removeprefix("own_")]["metric_list"])
        for key, value in wanted.items():  # products of fp32 in another order
            assert ours["results"][name][key] == pytest.approx(value, rel=1e-4), (name, key)
        for mine, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert mine["doc"] == other["doc"]
            assert_same(mine["filtered_resps"], other["filtered_resps"])
    assert "own_choice" in table_of(ours)


def test_a_task_that_is_not_there_is_told(folder, unbound, monkeypatch):
    from lm_eval.tasks import TaskManager

    import cktrain as ck
    from cktrain.evaluation import harness

    # The harness's own tasks are many thousand files, which take it seconds to list.
    monkeypatch.setattr(harness, "TaskManager", partial(TaskManager, include_defaults=False))
    with pytest.raises(ValueError, match=r"lm-evaluation-harness has no task 'own_other', nor has .*tasks"):
        harness.run_tasks(ck.load(folder / "model"), ["own_other"], folder=folder / "tasks")
