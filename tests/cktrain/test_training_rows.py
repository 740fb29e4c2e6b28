"""`data.train`: a run prepares its rows once, beside the defaults of `cktrain data prepare`, and names their folder then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_models import write_rows, write_weights

import cktrain as ck
from cktrain.base_folder import planned_base
from cktrain.config import Config
from cktrain.config_file import load_config
from cktrain.data.shards import read_dataset
from cktrain.training_rows import chat_options, with_folder


@pytest.fixture(autouse=True)
def here(unbound, tmp_path, monkeypatch):
    """A folder with a model and rows."""
    monkeypatch.chdir(tmp_path)
    write_weights(Path("model"))
    rows(24)


def rows(count: int, file: str = "chat.jsonl") -> None:
    turns = [
        [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "a" * (i % 5 + 1)}]
        for i in range(count)
    ]
    write_rows(Path(file), [{"messages": each} for each in turns])


def config(**data):
    values = {
        "run": {"dir": "run", "epochs": 1},
        "model": {"from_pretrained": "model"},
        "adapter": {"r": 2},
        "data": {"train": "chat.jsonl", "validation": 0.1, "sequence_length": 64, **data},
        "batch": {"global_batch_size": 4},
        "precision": "fp32",
        "checkpoint": {"every": 0},
    }
    return {**values, "data": {key: value for key, value in values["data"].items() if value is not None}}


def test_a_run_of_rows_is_a_run_of_what_data_prepare_makes_of_them():
    run = ck.train(config(), bar=False)
    losses = run.losses()
    assert (
        losses.validation[0][0] == 0 and len(losses.validation) > 2
    )  # before the first step, and in the epoch
    saved = load_config("run/config.yaml").data
    assert (saved.path, saved.train, saved.validation.fraction) == ("run/data", None, None)
    assert saved.validation.times_per_epoch == 5 and saved.validation.batches is None
    from cktrain.data.chat.prepare import ChatOptions, prepare_chat

    options = ChatOptions(sequence_length=64, validation_fraction=0.1)
    other = prepare_chat("chat.jsonl", "prepared", tokenizer="model", options=options, progress=False)
    assert read_dataset("run/data")["fingerprint"] == other["fingerprint"]
    values = config(
        train=None, path="prepared", validation={"times_per_epoch": 5, "at_start": True, "batches": None}
    )
    again = ck.train(values, {"run.dir": "other"}, bar=False)
    assert again.losses() == losses


def test_rows_are_prepared_again_only_when_they_are_others():
    ck.train(config(), {"run.epochs": 1}, bar=False)
    stamp = Path("run/data/dataset.json").stat().st_mtime_ns
    ck.train(config(), {"run.epochs": 2}, bar=False)
    assert Path("run/data/dataset.json").stat().st_mtime_ns == stamp
    steps = [line["step"] for line in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())]
    assert max(steps) > 1 and "changed on resume: data" not in Path("run/rank0.log").read_text()
    rows(25)
    ck.train(config(), {"run.epochs": 3}, bar=False)
    assert Path("run/data/dataset.json").stat().st_mtime_ns > stamp
    assert "the training tokens have changed" in Path("run/rank0.log").read_text()


def test_what_is_not_given_is_as_data_prepare_has_it():
    found = chat_options(load_config(config(validation=None)).data)
    assert (found.train_on, found.packing, found.too_long, found.validation_fraction) == (
        "assistant",
        "bfd",
        "drop",
        0.05,
    )
    keys = {
        "train_on": "all",
        "packing": "none",
        "too_long": "truncate",
        "chat_template": "plain",
        "columns": {"prompt": "question"},
        "group_by": "module",
        "skip_bad": True,
        "validation": {"fraction": 0.2, "every": 3},
    }
    checked = load_config(config(**keys)).data
    found = chat_options(checked)
    assert all(getattr(found, key) == value for key, value in keys.items() if key != "validation")
    assert found.validation_fraction == 0.2 and checked.validation.every == 3
    assert load_config(config(validation=0)).data.validation.wanted is False
    plain = with_folder(load_config(config(**keys))).data
    assert plain.path == "run/data" and plain.train is None and plain.columns is None


def test_bad_rows_end_the_run_before_it_begins():
    Path("chat.jsonl").write_text('{"messages": 3}\n')
    with pytest.raises(ValueError, match=r"chat.jsonl: 1 of 1 rows cannot be used"):
        ck.train(config(), bar=False)
    assert not Path("run/data").exists() and not Path("run/checkpoints").exists()


def test_a_run_starts_from_a_run_whose_adapter_is_merged(caplog):
    first = ck.train(config(), bar=False)
    values = config() | {"run": {"dir": "second", "epochs": 1}, "model": {"from_pretrained": "run"}}
    planned = planned_base(Config.model_validate(values))
    assert planned.from_pretrained is None and planned.hidden_size == 16
    second = ck.train(values, bar=False)
    (base,) = Path("second").glob("base-*")
    assert load_config("second/config.yaml").model.from_pretrained == str(base)
    assert planned_base(Config.model_validate(values)).from_pretrained == str(base)
    ids = second.load().encode("say 3")
    # The merged weights are rounded once to fp32.
    assert ck.load(base).loss(ids) == pytest.approx(first.load().loss(ids), abs=1e-5)
    before = base.stat().st_mtime_ns
    ck.train(values, {"run.epochs": 2}, bar=False)
    assert base.stat().st_mtime_ns == before and len(list(Path("second").glob("base-*"))) == 1
