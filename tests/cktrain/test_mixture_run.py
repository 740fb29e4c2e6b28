"""Runs of a mixture: what is said before and after, losses and shares by part, going on exactly, tokenizers that differ."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers_made_here import backend, write_tokenizer

from cktrain.data.prepare import prepare
from cktrain.launch.cli import main

FP64 = {"precision": "fp64", "run.steps": 4, "data.path": None}


@pytest.fixture
def mixed(tmp_path, tiny):
    """`mixed(**overrides)` -> the configuration of a tiny run over two parts, each a folder of train.bin and val.bin."""
    rng = np.random.default_rng(3)
    for name, length in (("a", 400), ("b", 900)):
        (tmp_path / name).mkdir()
        for file, count in (("train.bin", length), ("val.bin", 200)):
            rng.integers(0, 61, count).astype("<u2").tofile(tmp_path / name / file)
    parts = [{"path": str(tmp_path / "a"), "weight": 3.0}, {"path": str(tmp_path / "b"), "weight": 1.0}]
    return lambda **overrides: tiny(**{**FP64, "data.mixture": parts, **overrides})


def test_epochs_are_said_before_and_shares_after_and_losses_by_part(mixed, composed, said, tmp_path):
    config = mixed(**{"data.validation": {"every": 2}, "log.every": 1})
    assert composed(config).trainer.run()
    assert "mixture: a: 75.0%, 24 sequences, of which it has 24: 1.00 epochs" in said
    assert "mixture: b: 25.0%, 8 sequences, of which it has 56: 0.14 epochs" in said
    assert "mixture: read were 75.0% of a, 25.0% of b" in said
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if "loss" in record]
    assert all(record["mixture"] == {"a": 0.75, "b": 0.25} for record in trained) and len(trained) == 4
    for record in (record for record in records if "val_loss" in record):
        parts = record["val_loss_of_parts"]
        assert list(parts) == ["a", "b"] and parts["a"] != parts["b"]
        assert record["val_loss"] == pytest.approx(0.75 * parts["a"] + 0.25 * parts["b"], rel=1e-12)
        assert record["bits_per_byte"] is None


def test_a_run_that_goes_on_is_the_one_that_never_stopped(mixed, composed, tmp_path):
    def weights(trainer):
        return np.concatenate([param.data.ravel() for param in trainer.params.params])

    whole = composed(mixed(**{"run.dir": str(tmp_path / "whole")})).trainer
    assert whole.run()
    half = composed(mixed(**{"checkpoint.every": 2})).trainer
    for _ in range(2):
        half.step()
    half.save()
    resumed = composed(mixed()).trainer
    assert resumed.progress.step == 2 and resumed.run()
    assert np.array_equal(weights(whole), weights(resumed))


def test_other_shares_of_a_run_that_goes_on_are_told(mixed, composed, said, tmp_path):
    assert composed(mixed()).trainer.run()
    said.clear()
    parts = [{"path": str(tmp_path / "a"), "weight": 1.0}, {"path": str(tmp_path / "b"), "weight": 1.0}]
    composed(mixed(**{"data.mixture": parts, "run.steps": 6}))
    assert any("data.mixture: " in line and "examples are of other parts from here" in line for line in said)


def test_a_split_that_is_trained_on_is_told(mixed, composed, said, tmp_path):
    held_out = {"path": str(tmp_path / "b/train.bin"), "every": 2}
    composed(mixed(**{"data.validation": held_out}))
    assert "validation reads the very tokens that are trained" in " ".join(said)


def config_of(tmp_path, **parts) -> Path:
    """A YAML file of a run over these folders."""
    mixture = ", ".join(f"{{path: {path}, weight: {weight}}}" for path, weight in parts.items())
    file = tmp_path / "run.yaml"
    file.write_text(
        "run: {dir: run, steps: 3}\n"
        "model: {family: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16,\n"
        "        vocab_size: 300}\n"
        f"data: {{mixture: [{mixture}], sequence_length: 8, validation: {{every: 3}}}}\n"
        "batch: {micro_batch_size: 2, global_batch_size: 4}\n"
        "precision: fp32\n"
    )
    return file


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Folders one, two (of the same tokenizer) and three (of another)."""
    monkeypatch.chdir(tmp_path)
    tokenizers = {
        "one": write_tokenizer(tmp_path / "tok"),
        "two": tmp_path / "tok",
        "three": write_tokenizer(tmp_path / "tok3", backend(words=("four", "five"))),
    }
    for name, tokenizer in tokenizers.items():
        rows = [json.dumps({"text": f"{name} {i} " + "one two " * (i % 9)}) for i in range(40)]
        Path(f"{name}.jsonl").write_text("\n".join(rows))
        prepare(f"{name}.jsonl", name, tokenizer=tokenizer, validation_fraction=0.1, progress=False)
    return tmp_path


def test_parts_of_other_tokenizers_are_one_error_with_status_2(prepared, capsys, unbound):
    assert main(["train", str(config_of(prepared, one=1, three=2))]) == 2
    said = capsys.readouterr().err
    assert "the tokenizer that three was prepared with" in said and "is not that of one" in said
    assert "Prepare all parts of data.mixture with one" in said and said.count("[tokenizer]") == 1
    allowed = ["--set", "data.allow_other_tokenizer=true"]
    assert main(["train", str(config_of(prepared, one=1, three=2)), *allowed]) == 2
    assert not (prepared / "run/checkpoints").exists()


def test_a_part_with_another_end_of_documents_is_refused(prepared, capsys, unbound):
    prepare("two.jsonl", "other", tokenizer="tok", eos_token="<s>", validation_fraction=0.1, progress=False)
    assert main(["train", str(config_of(prepared, one=1, other=2))]) == 2
    assert "documents of other end with id 0, and those of one with 1" in capsys.readouterr().err


def test_the_command_line_trains_plans_and_reports_a_mixture(prepared, capsys, unbound):
    config = str(config_of(prepared, one=1, two=3))
    assert main(["plan", config, "--memory-only"]) == 0
    planned = capsys.readouterr().out
    assert "mixture: one: 25.0%, 3 sequences" in planned and "mixture: two: 75.0%, 9 sequences" in planned
    assert main(["train", config]) == 0
    capsys.readouterr()
    assert main(["report", "run"]) == 0
    reported = capsys.readouterr().out
    assert "one " in reported and "two " in reported and reported.count("loss ") >= 3
    assert main(["plan", str(config_of(prepared, one=1, gone=3)), "--memory-only"]) == 0
    assert "mixture" not in capsys.readouterr().out
