"""Checkpoints: bitwise resume, completeness, and what is said about damaged or foreign ones."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter

import numpy as np
import pytest

import cktrain.checkpoint as checkpoint
from cktrain.checkpoint import CheckpointError, complete_checkpoints, load_checkpoint
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.optim.optimizer import AdamW
from cktrain.safetensors_file import StoredTensor


def train(composed, config, isa="reference"):
    run = composed(config, isa)
    assert run.trainer.run()
    return run.trainer


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "sgd"])
@pytest.mark.parametrize("isa, precision", [("reference", "fp64"), (None, "fp32")])
def test_resume_is_bitwise(tiny, composed, tmp_path, optimizer, isa, precision):
    common = {"precision": precision, "optimizer.name": optimizer}
    if optimizer == "adamw_8bit":  # whose large parameters are different
        common |= {"model.hidden_size": 64, "model.intermediate_size": 96}
    whole = train(composed, tiny(**common, **{"run.dir": str(tmp_path / "whole")}), isa)
    config = tiny(**common, **{"run.dir": str(tmp_path / "parts"), "checkpoint.every": 7})
    train(composed, config, isa)
    for folder in ("step-00000014", "step-00000020"):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / folder)
    again = composed(config, isa).trainer
    assert again.progress.step == 7
    again.run()
    np.testing.assert_array_equal(again.params.data, whole.params.data)
    for name, moment in whole.optimizer.state.items():
        np.testing.assert_array_equal(again.optimizer.state[name], moment)


def test_only_the_newest_are_kept(tiny, composed):
    trainer = train(composed, tiny(precision="fp64", **{"checkpoint.every": 3, "checkpoint.keep": 2}))
    assert [p.name for p in complete_checkpoints(trainer.checkpoint_folder)] == [
        "step-00000018",
        "step-00000020",
    ]


@pytest.mark.parametrize(
    "stuck", ["step-00000003", ".step-00000006.tmp", ".step-00000001.tmp", ".step-00000006.old"]
)
def test_what_cannot_be_deleted_is_a_warning_and_the_new_one_is_whole(
    tiny, composed, monkeypatch, capsys, stuck
):
    config = tiny(precision="fp64", **{"checkpoint.every": 3, "checkpoint.keep": 1, "run.steps": 9})
    run = composed(config)
    folder = run.trainer.checkpoint_folder
    if stuck.startswith("."):
        (folder / stuck / "in it").mkdir(parents=True)
    remove = shutil.rmtree

    def refuse(path, *args, **kwargs):
        if path.name == stuck:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        remove(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert run.trainer.run()
    assert "step-00000009" in [path.name for path in complete_checkpoints(folder)]
    said = capsys.readouterr().err
    assert f"{folder / stuck} is no longer needed and cannot be deleted: Operation not permitted." in said
    # Written again over one that is there, as a run does that was resumed from before it.
    run.trainer.save()
    assert "step-00000009" in [path.name for path in complete_checkpoints(folder)]


def test_memory_that_is_short_in_a_save_is_an_error_that_says_so(tiny, composed, monkeypatch):
    trainer = composed(tiny(precision="fp64")).trainer

    def short(*_args):
        raise MemoryError("4096 bytes")

    monkeypatch.setattr(checkpoint, "_owned_blocks", short)
    with pytest.raises(CheckpointError, match=r"cannot write .*: MemoryError: 4096 bytes; the last good"):
        trainer.save()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_the_last_good_checkpoint(tiny, composed, monkeypatch):
    trainer = train(composed, tiny(precision="fp64"))
    good = contents(trainer.checkpoint_folder / "step-00000020")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in ("write_safetensors", "sync"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, broken, full)
            with pytest.raises(CheckpointError, match="disk is full"):
                trainer.save()
    assert [p.name for p in trainer.checkpoint_folder.iterdir()] == ["step-00000020"]
    assert contents(trainer.checkpoint_folder / "step-00000020") == good


@pytest.mark.parametrize("damage", ["no marker", "truncated", "missing file"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tiny, composed, damage):
    config = tiny(precision="fp64", **{"checkpoint.every": 10})
    trainer = train(composed, config)
    newest = trainer.checkpoint_folder / "step-00000020"
    file = newest / "rank0.safetensors"
    if damage == "no marker":
        (newest / "COMPLETE").unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.unlink()
    assert composed(config).trainer.progress.step == 10
    with pytest.raises(CheckpointError, match=r"step-00000020: .*(COMPLETE marker|truncated|missing)"):
        composed(tiny(precision="fp64", **{"checkpoint.resume": str(newest)}))


def test_bits_turned_over_inside_the_header_are_an_error(tiny, composed):
    config = tiny(precision="fp64")
    newest = train(composed, config).checkpoint_folder / "step-00000020"
    file = newest / "rank0.safetensors"
    data = bytearray(file.read_bytes())
    data[9] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        composed(config)


def test_another_model_is_refused_with_both_shapes(tiny, composed):
    train(composed, tiny(precision="fp64"))
    with pytest.raises(CheckpointError, match=r"has shape \(24, 40\), this model's has \(24, 48\)"):
        composed(tiny(precision="fp64", **{"model.intermediate_size": 48}))
    with pytest.raises(CheckpointError, match="is missing"):
        composed(tiny(precision="fp64", **{"model.num_hidden_layers": 3}))


def test_a_newer_format_is_refused(tiny, composed):
    config = tiny(precision="fp64")
    newest = train(composed, config).checkpoint_folder / "step-00000020"
    state = json.loads((newest / "state.json").read_text())
    state["format"] = 99
    text = json.dumps(state)
    (newest / "state.json").write_text(text)
    marker = json.loads((newest / "COMPLETE").read_text())
    marker["state.json"] = len(text)
    (newest / "COMPLETE").write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match="format 99"):
        composed(config)


@pytest.mark.parametrize("shares", [2, 4])
def test_a_data_rank_reads_its_slice_of_the_moments_alone(tiny, composed, monkeypatch, shares):
    """Every rank of a data group reads all weights, and each element of a moment is read by one of them."""
    run = composed(tiny(**{"run.steps": 3}))
    run.trainer.run()
    whole, saved = run.trainer.optimizer, run.trainer.save()
    params = ParamStore(build_model(tiny().model, run.trainer.model.num, 16).params(), run.trainer.model.num)
    read: Counter[str] = Counter()
    pieces = StoredTensor.pieces

    def counted(tensor, *rows):
        for where, values in pieces(tensor, *rows):
            read[tensor.name.partition(".")[0]] += values.size
            yield where, values

    monkeypatch.setattr(StoredTensor, "pieces", counted)
    size = params.size // 16
    for share in range(shares):
        span = (size * share // shares * 16, size * (share + 1) // shares * 16)
        optimizer = AdamW(params, tiny().optimizer, [span])
        load_checkpoint(saved, params, optimizer)
        for name in whole.moments:
            np.testing.assert_array_equal(optimizer.state[name], whole.state_at(name, *span))
    assert read["param"] == shares * params.count
    row = max(param.shape[-1] for param in params.params)
    assert params.count <= read["exp_avg"] <= params.count + 2 * shares * row
