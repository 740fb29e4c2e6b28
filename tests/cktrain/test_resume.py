"""A run that goes on with another configuration: refused, or told line by line; its place in the data; older formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cktrain.checkpoint import CheckpointError
from cktrain.checkpoint_folder import find_candidates
from cktrain.hf.folder import save_folder
from cktrain.models import parse_model
from cktrain.resume import model_differences

FP64 = {"precision": "fp64", "run.steps": 4}


@pytest.fixture
def trained(tiny, composed):
    """A tiny run of four steps, saved after the last."""
    trainer = composed(tiny(**FP64)).trainer
    assert trainer.run()
    return trainer


@pytest.fixture
def changes(trained, tiny, composed, said):
    """`changes(**overrides)` -> what is said when it goes on with them, one line per key."""

    def resume(**overrides) -> list[str]:
        said.clear()
        composed(tiny(**{**FP64, "run.steps": 4, **overrides}))
        return [
            line.removeprefix("changed on resume: ") for line in said if line.startswith("changed on resume")
        ]

    return resume


MODELS = {
    "rope_theta": (
        {"model.rope_theta": 500000.0},
        "model.rope_theta is 10000.0 in the checkpoint and 500000.0 here",
    ),
    "rope_scaling": (
        {"model.rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        'model.rope_scaling is unset in the checkpoint and {"rope_type": "linear", "factor": 2.0} here',
    ),
    "window": ({"model.sliding_window": 4}, "model.sliding_window is unset in the checkpoint and 4 here"),
    "windows of some layers": (
        {"model.sliding_window": 4, "model.layer_types": ["full_attention", "sliding_attention"]},
        "model.layer_types is unset in the checkpoint",
    ),
    "norm": ({"model.rms_norm_eps": 1e-6}, "model.rms_norm_eps is 1e-05 in the checkpoint and 1e-06 here"),
    "heads of equal shapes": (
        {"model.num_attention_heads": 2, "model.num_key_value_heads": 1},
        "model.num_attention_heads is 4 in the checkpoint and 2 here; model.head_dim is 6 in the checkpoint and 12 here; "
        "model.num_key_value_heads is 2 in the checkpoint and 1 here",
    ),
    "tied": (
        {"model.tie_word_embeddings": True},
        "model.tie_word_embeddings is false in the checkpoint and true here",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_another_model_of_equal_shapes_is_refused(changes, case):
    overrides, words = MODELS[case]
    with pytest.raises(CheckpointError) as error:
        changes(**overrides)
    assert words in str(error.value) and "is of another model" in str(error.value)


def test_validation_on_the_training_tokens_is_told(tiny, composed, tokens_file, said):
    composed(tiny(**{**FP64, "data.validation": {"path": str(tokens_file), "every": 5}}))
    assert "validation reads the very tokens that are trained" in " ".join(said)


def test_gpt2s_keys_are_compared_too(tiny, composed):
    gpt2 = {**FP64, "model.family": "gpt2"}
    composed(tiny(**gpt2)).trainer.run()
    for key, value in {"activation_function": "gelu", "layer_norm_epsilon": 1e-6}.items():
        with pytest.raises(CheckpointError, match=rf"model.{key} is .* in the checkpoint and .* here"):
            composed(tiny(**gpt2, **{f"model.{key}": value}))
    with pytest.raises(
        CheckpointError, match=r"model\.max_position_embeddings is 16 in the checkpoint and 12 here"
    ):
        composed(tiny(**gpt2, **{"data.sequence_length": 12}))


@pytest.mark.parametrize(
    "same",
    [
        {"model.head_dim": 6},
        {"model.rope_scaling": {"rope_type": "default"}},
        {"model.layer_types": ["full_attention"] * 2},
        {"model.sliding_window": 4, "model.layer_types": ["full_attention"] * 2},
        {"model.max_position_embeddings": 64},
        {"model.activation_function": "gelu_new"},
    ],
)
def test_the_same_model_in_other_words_is_the_same(tiny, same):
    assert model_differences(tiny(), tiny(**same)) == []


def test_another_optimizer_is_named_by_its_key(tiny):
    told = 'optimizer.name is "adamw" in the checkpoint and "muon" here'
    assert model_differences(tiny(), tiny(**{"optimizer.name": "muon"})) == [told]


LINES = {
    "batch.global_batch_size": (
        4,
        "batch.global_batch_size: 8 -> 4: the next step begins with sequence 33, the first that was",
    ),
    "batch.micro_batch_size": (4, "batch.micro_batch_size: 2 -> 4: sums are added in another order"),
    "run.seed": (4, "run.seed: 3 -> 4: the data comes in another order from here"),
    "run.steps": (40, "run.steps: 4 -> 40: the rate of the next step is "),
    "optimizer.lr": (0.5, "optimizer.lr: 0.01 -> 0.5: the rate of the next step is 0.05 instead of 0.001"),
    "schedule.name": (
        "constant",
        'schedule.name: "cosine" -> "constant": the rate of the next step is 0.01 instead of 0.001',
    ),
    "optimizer.weight_decay": (0.0, "optimizer.weight_decay: 0.1 -> 0.0: updates follow the new value"),
    "data.shuffle": (False, "data.shuffle: true -> false: the data comes in another order"),
    "data.sequence_length": (
        8,
        "data.sequence_length: 16 -> 8: sequences are cut anew; the next step begins with sequence 65",
    ),
    "model.max_position_embeddings": (64, "model.max_position_embeddings: unset -> 64: sequences up to"),
    "parallel.zero": (0, "parallel.zero: 1 -> 0: sums are added"),
    "memory.checkpointing": ("block", 'memory.checkpointing: "none" -> "block": no number changes'),
    "precision": ("fp32", 'precision: "fp64" -> "fp32": products are computed in another type'),
    "checkpoint.keep": (1, "checkpoint.keep: 3 -> 1: holds from here"),
}


@pytest.mark.parametrize("key", LINES)
def test_what_may_change_is_said_in_a_line(changes, key):
    value, words = LINES[key]
    found = changes(**{key: value})
    assert len(found) == 1 and found[0].startswith(words), found


def test_what_changes_nothing_is_not_said(changes):
    assert changes() == []
    assert (
        changes(**{"log.every": 3, "launch.threads": 2, "comm.timeout_s": 9.0, "checkpoint.resume": "auto"})
        == []
    )


def test_data_are_told_apart_by_their_tokens(changes, tokens_file, tmp_path):
    copy = tmp_path / "copy.bin"
    shutil.copy(tokens_file, copy)
    assert changes(**{"data.path": str(copy)}) == [
        f'data.path: "{tokens_file}" -> "{copy}": the tokens are the same'
    ]
    ids = np.fromfile(tokens_file, np.uint16)
    ids[3000] ^= 1
    ids.tofile(tokens_file)
    (found,) = changes()
    assert "(fingerprints): the training tokens have changed; the next step begins with sequence 33" in found


@pytest.mark.parametrize("before, after", [(8, 4), (4, 8), (8, 12)])
def test_another_batch_size_skips_and_repeats_nothing(tiny, composed, tmp_path, before, after):
    """The windows of all steps together are those of a run that had one batch size."""
    first = composed(tiny(**{**FP64, "batch.global_batch_size": before})).trainer
    first.run()
    again = composed(tiny(**{**FP64, "run.steps": 9, "batch.global_batch_size": after})).trainer
    rows = [first.loader.rows(before * step) for step in range(4)]
    rows += [again.loader.rows(again.progress.examples + after * step) for step in range(3)]
    whole = composed(
        tiny(**{**FP64, "run.dir": str(tmp_path / "whole"), "batch.global_batch_size": 2})
    ).loader
    sequences = 4 * before + 3 * after
    expected = [whole.rows(consumed) for consumed in range(0, sequences, 2)]
    np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(expected))
    again.step()
    again.save()
    third = composed(tiny(**{**FP64, "run.steps": 9, "batch.global_batch_size": before})).trainer
    assert third.progress.examples == 4 * before + after
    consumed = third.progress.examples
    np.testing.assert_array_equal(third.loader.rows(consumed)[:2], whole.rows(consumed))


def as_format_2(path: Path) -> None:
    """Rewrite a checkpoint as the version before would have written it."""
    state = json.loads((path / "state.json").read_text())
    for key in ("examples", "run", "parents", "data"):
        del state[key]
    (path / "state.json").write_text(json.dumps({**state, "format": 2}))
    names = sorted(file.name for file in path.iterdir() if file.is_file() and file.name != "COMPLETE")
    (path / "COMPLETE").write_text(json.dumps({name: (path / name).stat().st_size for name in names}))


def test_format_2_is_read_with_a_word_on_what_is_not_known(trained, tiny, composed, said):
    path = trained.checkpoint_folder / "step-00000004"
    as_format_2(path)
    (path.parents[1] / "lineage.json").unlink()
    again = composed(
        tiny(**{**FP64, "run.steps": 8, "batch.global_batch_size": 4, "data.path": trained.config.data.path})
    )
    assert again.trainer.progress.step == 4 and again.trainer.progress.examples == 32
    np.testing.assert_array_equal(again.trainer.params.data, trained.params.data)
    assert any("has format 2: it has no digests" in line for line in said)
    again.trainer.run()
    assert [found.state.step for found in find_candidates(path.parent).found] == [8, 4]
    assert find_candidates(path.parent).found[0].state.parents[0].run == ""


def test_a_hugging_face_folder_that_is_gone_is_not_needed(trained, tiny, composed, tmp_path, said):
    model = trained.config.model.model_copy(update={"max_position_embeddings": 16})
    save_folder(tmp_path / "hf", model, trained.params)
    config = tiny(**{**FP64, "run.dir": str(tmp_path / "tuned")})
    config = config.model_copy(update={"model": parse_model({"from_pretrained": str(tmp_path / "hf")})})
    tuned = composed(config).trainer
    tuned.run()
    (tmp_path / "hf").rename(tmp_path / "moved")
    again = composed(config.model_copy(update={"run": config.run.model_copy(update={"steps": 6})})).trainer
    assert again.progress.step == 4
    np.testing.assert_array_equal(again.params.data, tuned.params.data)
    assert any("hf is gone; the architecture is the checkpoint's" in line for line in said)
    other = config.model_copy(update={"model": parse_model({"from_pretrained": str(tmp_path / "typo")})})
    with pytest.raises(ValueError, match="typo"):
        composed(other)


def test_data_of_fewer_sequences_than_a_batch_are_told(tiny, composed, said, tokens_file):
    np.fromfile(tokens_file, np.uint16)[: 16 * 7 + 1].tofile(tokens_file)
    composed(tiny())
    assert any("gives 7 sequences of 16 tokens, and a step takes 8" in line for line in said)
    said.clear()
    composed(tiny(**{"batch.global_batch_size": 4}))
    assert not any("sequences of 16" in line for line in said)
