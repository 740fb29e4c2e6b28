"""Damage that keeps a file's size: found by its digest, or by numbers that are not finite; the file is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cktrain.checkpoint import CheckpointError, load_checkpoint
from cktrain.checkpoint_record import read_checkpoint
from cktrain.file_identity import sha256_of_file
from cktrain.nn.numerics import Numerics
from cktrain.safetensors_file import read_header

FP64 = {"precision": "fp64", "run.steps": 4, "checkpoint.every": 2}


@pytest.fixture
def trained(tiny, composed):
    """A tiny run with checkpoints of steps 2 and 4."""
    trainer = composed(tiny(**FP64)).trainer
    assert trainer.run()
    return trainer


@pytest.fixture
def newest(trained) -> Path:
    return trained.checkpoint_folder / "step-00000004"


def forget_digests(path: Path) -> None:
    """As in a marker of format 2, or of one who wrote it by hand."""
    names = json.loads((path / "COMPLETE").read_text())
    (path / "COMPLETE").write_text(json.dumps({name: (path / name).stat().st_size for name in names}))


def test_every_file_has_its_size_and_digest(newest):
    marker = json.loads((newest / "COMPLETE").read_text())
    files = {path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file()}
    assert set(marker) == files - {"COMPLETE"}
    for name, record in marker.items():
        assert record == {"bytes": (newest / name).stat().st_size, "sha256": sha256_of_file(newest / name)}


@pytest.mark.parametrize("file", ["rank0.safetensors", "config.yaml", "state.json"])
@pytest.mark.parametrize("damage", ["zeroed", "one bit"])
def test_damage_is_found_and_the_newest_whole_one_taken(trained, newest, tiny, composed, said, file, damage):
    data = bytearray((newest / file).read_bytes())
    if damage == "zeroed":
        data[-2000 if len(data) > 4000 else -9 :] = bytes(2000 if len(data) > 4000 else 9)
    else:
        data[len(data) // 2] ^= 1
    (newest / file).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"step-00000004: {file}( is damaged|: )"):
        composed(tiny(**{**FP64, "checkpoint.resume": str(newest)}))
    if file != "state.json":
        params = trained.params
        with pytest.raises(CheckpointError, match=r"its SHA-256 is .*Take another checkpoint"):
            load_checkpoint(newest, params, None)
    assert composed(tiny(**{**FP64, "run.steps": 6})).trainer.progress.step == 2
    assert any(f"passed over step-00000004: {file}" in line for line in said)


def test_when_all_are_damaged_the_run_does_not_start_afresh(trained, newest, tiny, composed):
    for name in ("step-00000002", "step-00000004"):
        file = newest.with_name(name) / "rank0.safetensors"
        file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    with pytest.raises(
        CheckpointError, match=r"none of the checkpoints there is whole \(step-00000004: rank0"
    ):
        composed(tiny(**FP64))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["param.", "exp_avg."])
def test_numbers_that_are_not_finite_are_named_without_a_digest_too(newest, tiny, composed, value, kind):
    file = newest / "rank0.safetensors"
    tensor = next(tensor for tensor in read_header(file) if tensor.name.startswith(kind))
    data = bytearray(file.read_bytes())
    data[tensor.start : tensor.start + 8] = np.float64(value).tobytes()
    file.write_bytes(data)
    forget_digests(newest)
    words = (
        rf"step-00000004: rank0.safetensors: 1 numbers of {kind}.* are NaN or infinite. Resume from another"
    )
    with pytest.raises(CheckpointError, match=words):
        composed(tiny(**{**FP64, "checkpoint.resume": str(newest)}))


def test_files_that_the_marker_does_not_name_are_not_read(trained, newest, tiny, composed):
    shutil.copy(newest / "rank0.safetensors", newest / "rank7.safetensors")
    (newest / "notes").mkdir()
    (newest / "notes" / "rank1.safetensors").write_text("mine")
    again = composed(tiny(**{**FP64, "run.steps": 6})).trainer
    np.testing.assert_array_equal(again.params.data, trained.params.data)


def test_a_file_that_cannot_be_read_is_named(newest, monkeypatch):
    import cktrain.checkpoint_record as record

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(record, "sha256_of_file", refuse)
    found = record.damaged_file(read_checkpoint(newest))
    assert found.endswith("cannot be read (Permission denied)")


def test_a_file_that_grew_is_named(newest, tiny, composed):
    with (newest / "rank0.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match=r"rank0.safetensors is too long: [\d,]+ of [\d,]+ bytes"):
        composed(tiny(**{**FP64, "checkpoint.resume": str(newest)}))


def test_a_read_only_checkpoint_is_resumed(trained, newest, tiny, composed):
    for path in (*newest.iterdir(), newest):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        assert composed(tiny(**{**FP64, "run.steps": 6})).trainer.progress.step == 4
    finally:
        newest.chmod(0o700)


def test_fp32_weights_go_into_an_fp64_run_and_back(tiny, composed, tmp_path):
    first = composed(tiny(**{**FP64, "precision": "fp32"})).trainer
    first.run()
    again = composed(tiny(**{**FP64, "run.steps": 6})).trainer
    assert isinstance(again.params.numerics, Numerics)
    np.testing.assert_array_equal(again.params.data, first.params.data.astype(np.float64))
