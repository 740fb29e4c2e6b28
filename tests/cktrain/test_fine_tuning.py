"""What a fine-tuning is made of: its defaults by the data, what gives way to its owner's keys, and `ck.finetune`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_models import write_rows, write_weights

import cktrain as ck
from cktrain.fine_tuning import FineTuning, prepare
from cktrain.fine_tuning_result import losses_in_words
from cktrain.folder_lock import FolderInUse, lock_folder
from cktrain.report import read_curve


@pytest.fixture(autouse=True)
def here(unbound, tmp_path, monkeypatch):
    """A folder with a model and rows."""
    monkeypatch.chdir(tmp_path)
    write_weights(Path("model"))
    rows(12)


def rows(count: int) -> None:
    turns = [
        [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "a" * (i % 5 + 1)}]
        for i in range(count)
    ]
    write_rows(Path("rows.jsonl"), [{"messages": each} for each in turns])


def prepared(**keys):
    chat = {"sequence_length": 64, "validation_fraction": 0.1, **keys.pop("chat", {})}
    return prepare(FineTuning("model", "rows.jsonl", "run", chat=chat, **keys), progress=False)


@pytest.mark.parametrize(("count", "batch"), [(12, 1), (50, 2), (400, 16)])
def test_few_sequences_are_taken_in_small_batches(count, batch):
    """Each of these rows fills its sequence; an epoch has 20 steps or more, or batches of one sequence."""
    rows(count)
    assert prepared().config.batch.global_batch_size == batch


def test_batches_are_those_that_were_asked_for():
    rows(400)

    def batch(**given):
        found = prepared(overrides={f"batch.{key}": value for key, value in given.items()}).config.batch
        return found.micro_batch_size, found.global_batch_size

    assert batch() == ("auto", 16)
    assert batch(global_batch_size=36) == ("auto", 36)
    assert batch(micro_batch_size=3) == (3, 18)
    assert batch(micro_batch_size=3, gradient_accumulation_steps=4) == (3, 12)
    with pytest.raises(
        ValueError, match="gradient_accumulation_steps 4 are of a micro_batch_size that is given"
    ):
        batch(gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="global_batch_size 8 and gradient_accumulation_steps 4 both say"):
        batch(global_batch_size=8, gradient_accumulation_steps=4)


def test_defaults_give_way_to_the_same_in_other_words():
    config = prepared(
        overrides=["run.steps=7", "schedule.warmup_steps=2", "data.validation.every=3", "adapter.r=4"]
    ).config
    assert (config.run.steps, config.run.epochs) == (7, None)
    assert (config.schedule.warmup_steps, config.schedule.warmup_ratio) == (2, 0)
    assert (config.data.validation.every, config.data.validation.times_per_epoch) == (3, None)
    assert config.data.validation.at_start and config.adapter.r == 4 and config.adapter.lora_alpha == 32


def test_the_folder_of_the_run_is_named_once():
    with pytest.raises(ValueError, match=r"run.dir other is set, and RUN is run"):
        prepared(overrides=["run.dir=other"])


@pytest.mark.parametrize("epochs", [0, -1, float("nan"), float("inf")])
def test_epochs_of_nothing_are_no_default(epochs):
    with pytest.raises(ValueError, match=r"run.epochs: (input should be|inf is no finite)"):
        prepared(epochs=epochs)


def test_an_unknown_option_of_rows_is_told():
    with pytest.raises(ValueError, match="chat: 'length' is none of sequence_length, train_on"):
        prepared(chat={"length": 3})


def test_data_are_prepared_again_only_when_they_are_others():
    prepared()
    before = Path("run/data/dataset.json").stat().st_mtime_ns
    prepared(overrides=["optimizer.lr=1"])
    assert Path("run/data/dataset.json").stat().st_mtime_ns == before
    rows(13)
    prepared()
    assert Path("run/data/dataset.json").stat().st_mtime_ns > before


def test_from_python_to_an_adapter_and_merged_weights():
    options = {"epochs": 2, "chat": {"sequence_length": 64, "validation_fraction": 0.1}, "bar": False}
    keys = {"precision": "fp32", "optimizer.lr": 0.01, "data.validation.times_per_epoch": 1}
    run = ck.finetune(ck.load("model"), "rows.jsonl", adapter={"r": 4}, overrides=keys, **options)
    assert run.path == Path("runs/model-rows") and run.done
    losses = run.losses().validation
    assert len(losses) == 3 and losses[-1][1] < losses[0][1]
    assert run.save_adapter("adapter").joinpath("adapter_config.json").is_file()
    merged = ck.load(run.export("merged", merge=True))
    ids = merged.encode("say 3")
    assert merged.loss(ids) == pytest.approx(
        run.load().loss(ids), abs=1e-5
    )  # one rounding of each weight to fp32
    with pytest.raises(ValueError, match="holds a run already"):
        ck.finetune("model", "rows.jsonl", **options)
    with pytest.raises(ValueError, match="was loaded with the adapter adapter beside it"):
        ck.finetune(ck.load("model", adapter="adapter"), "rows.jsonl", "other", **options)
    longer = {**options, "epochs": 3}
    again = ck.finetune("model", "rows.jsonl", adapter={"r": 4}, overrides=keys, resume=True, **longer)
    assert len(again.losses().validation) == 4


def test_a_run_that_got_no_better_is_told(capsys):
    options = {
        "full": True,
        "epochs": 1,
        "chat": {"sequence_length": 64, "validation_fraction": 0.1},
        "bar": False,
    }
    keys = {"precision": "fp32", "optimizer.lr": 0.0, "data.validation.times_per_epoch": 1}
    ck.finetune("model", "rows.jsonl", "run", overrides=keys, **options)
    assert "no validation was better than before" in capsys.readouterr().out


def test_a_best_that_could_not_be_written_is_told(capsys):
    config = prepared().config
    curve = [{"step": step, "val_loss": loss} for step, loss in ((0, 3.0), (4, 2.5))]
    Path("run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    assert losses_in_words(config) == [
        "validation loss: 3.0000 before, 2.5000 after 4 steps",
        "warning: run/best could not be written; the log says why",
    ]


def test_losses_of_other_held_out_rows_are_no_before():
    config = prepared().config
    curve = [(0, 3.0, "a"), (4, 2.5, "a"), (6, 4.0, "b"), (8, 3.5, "b")]
    lines = [{"step": step, "val_loss": loss, "val_data": data} for step, loss, data in curve]
    Path("run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert losses_in_words(config) == [
        "validation loss: 3.5000 after 8 steps",
        "note: the validations before step 6 were of other rows",
    ]
    told = read_curve(Path("run/metrics.jsonl")).text()
    assert "the validations before step 6 were of other tokens" in told


def test_weights_that_do_not_fit_are_told_before_rows_are_prepared():
    config = Path("model/config.json")
    config.write_text(config.read_text().replace('"vocab_size": 272', '"vocab_size": 300'))
    with pytest.raises(ValueError, match=r"embed_tokens.weight in model.safetensors has shape \(272, 16\)"):
        prepared()
    Path("model/model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model has no model\.safetensors"):
        prepared()
    assert not Path("run").exists()


def test_what_a_run_reads_is_not_replaced_while_it_goes_on():
    prepared()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    rows(14)
    with (
        lock_folder("run", "cktrain train"),
        pytest.raises(FolderInUse, match="run is in use by cktrain train"),
    ):
        prepared(epochs=5)
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert prepared(epochs=5).config.run.epochs == 5


def test_both_all_weights_and_an_adapter_are_refused():
    with pytest.raises(ValueError, match="full trains all weights, and adapter is given as well"):
        ck.finetune("model", "rows.jsonl", "run", full=True, adapter={"r": 4})


def test_a_run_without_validation_has_no_losses_to_tell():
    done = prepared(chat={"validation_fraction": 0.0}, overrides=["run.steps=1"])
    assert not done.config.data.validation.wanted and not done.config.checkpoint.save_best
    ck.train(done.file, bar=False)
    assert losses_in_words(done.config) == []
