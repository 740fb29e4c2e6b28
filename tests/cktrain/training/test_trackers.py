"""TensorBoard's files are read by TensorBoard's own reader, W&B's by wandb's."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cktrain.training.trackers import missing_package, trackers

SETTINGS = {"precision": "fp64", "run.steps": 6, "log.every": 1}


@pytest.fixture
def wandb_anew():
    """wandb reads its variables once in a process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wandb_records(data: bytes) -> list[bytes]:
    """Of a .wandb file, which is a log of LevelDB's after seven bytes: blocks of 32 KiB, in which each part of a record
    has a checksum, a length and a kind (1 whole, 2 first, 3 middle, 4 last).
    """
    assert data.startswith(b":W&B")
    found, place = [], 7
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part = data[place + 7 : place + 7 + length]
        if kind in (1, 2):
            found.append(part)
        else:
            found[-1] += part
        place += 7 + length
    return found


def run(composed, config) -> str:
    """A run with its trackers, as `Session.train` begins it; the run's name for itself."""
    trainer = composed(config).trainer
    trainer.observers += trackers(config, trainer.progress.run)
    assert trainer.run()
    return trainer.progress.run


def test_a_package_that_is_missing_is_said(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing_package(tiny()) == ""
    assert missing_package(tiny(**{"log.tensorboard": True})) == (
        "[log] log.tensorboard needs tensorboardX, which is not installed. Install it (pip install tensorboardX), or leave "
        "the key out."
    )
    assert "log.wandb needs wandb" in missing_package(tiny(**{"log.wandb": "tests"}))


def test_no_tracker_unless_asked_for(tiny):
    assert trackers(tiny(), "name") == []


@pytest.mark.judge
def test_tensorboard_reads_what_the_metrics_file_has(tiny, composed, tokens_file, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    validation = {"every": 3, "batches": 1, "path": str(tokens_file)}
    config = tiny(**SETTINGS, **{"log.tensorboard": True, "data.validation": validation})
    run(composed, config)
    longer = tiny(**{**SETTINGS, "run.steps": 9}, **{"log.tensorboard": True, "data.validation": validation})
    run(composed, longer)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    own = lines(tmp_path / "run")
    losses = {event.step: event.value for event in events.Scalars("loss_metrics/global_avg_loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in own if "loss" in line}, rel=1e-6)
    held_out = {event.step: event.value for event in events.Scalars("validation_metrics/loss")}
    assert held_out == pytest.approx(
        {line["step"]: line["val_loss"] for line in own if "val_loss" in line}, rel=1e-6
    )
    assert {"grad_norm", "lr", "n_tokens_seen", "throughput(tps)", "tflops"} <= set(events.Tags()["scalars"])


@pytest.mark.judge
def test_steps_that_are_done_again_replace_those_of_before(tiny, composed, monkeypatch, tmp_path):
    """A run that is begun again from step 3 tells TensorBoard to forget steps 4 to 6; within the same second too, by
    which tensorboardX names its files.
    """
    monkeypatch.setattr("tensorboardX.event_file_writer.time", SimpleNamespace(time=lambda: 1.7e9))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    saves = {"checkpoint.every": 3, "checkpoint.keep": 9, "log.tensorboard": True}
    run(composed, tiny(**SETTINGS, **saves))
    from_three = {
        "checkpoint.resume": str(tmp_path / "run" / "checkpoints" / "step-00000003"),
        "optimizer.lr": 2e-2,
    }
    run(composed, tiny(**SETTINGS, **saves, **from_three))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("lr")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("lr")][4] == pytest.approx(
        lines(tmp_path / "run")[4]["lr"]
    )


@pytest.mark.judge
def test_wandb_keeps_a_run_offline(wandb_anew, tiny, composed, monkeypatch, tmp_path):
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    identity = run(composed, tiny(**SETTINGS, **{"log.wandb": "tests"}))
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert identity in file.name

    def read(file):
        return [wandb_internal_pb2.Record.FromString(data) for data in wandb_records(file.read_bytes())]

    deadline = time.monotonic() + 60
    while not (records := read(file)) or not records[-1].HasField("exit"):
        assert time.monotonic() < deadline, "wandb's process writes the file, and has not written its end"
        time.sleep(0.1)
    history = {}
    for record in records:
        if record.HasField("history"):
            values = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            history[values["_step"]] = values["loss_metrics/global_avg_loss"]
    assert history == pytest.approx({line["step"]: line["loss"] for line in lines(tmp_path / "run")})


@pytest.mark.judge
def test_without_a_key_the_run_goes_on(wandb_anew, tiny, composed, monkeypatch, said, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run(composed, tiny(**SETTINGS, **{"log.wandb": "tests"}))
    assert any("no key of W&B is known" in line for line in said)
    assert len(lines(tmp_path / "run")) == 6


def test_a_tensorboard_folder_that_is_none_is_named_and_the_run_goes_on(tiny, composed, tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("mine")
    config = tiny(**SETTINGS, **{"log.tensorboard": True})
    run(composed, config)
    told = capsys.readouterr().err
    assert f"{tmp_path / 'run' / 'tensorboard'}: Not a directory. Make it a folder" in told


def steps_in(folder: Path) -> list[int]:
    """Steps of the values in TensorBoard's files: records of a length, its checksum, an Event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.*")):
        data, place = file.read_bytes(), 0
        while place + 12 <= len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found += [event.step] if event.HasField("summary") else []
            place += 16 + length
    return found


def test_a_disk_that_is_full_for_a_while_holds_up_no_run(tiny, composed, monkeypatch, tmp_path, capsys):
    """tensorboardX's own thread dies of it, and its queue of ten then waits for ever."""
    record_writer = pytest.importorskip("tensorboardX.record_writer")
    flush, calls = record_writer.RecordWriter.flush, []

    def full_for_a_while(writer: object) -> None:
        calls.append(writer)
        if 5 < len(calls) < 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(writer)

    monkeypatch.setattr(record_writer.RecordWriter, "flush", full_for_a_while)
    run(composed, tiny(**{**SETTINGS, "run.steps": 30, "log.tensorboard": True}))
    told = capsys.readouterr().err
    assert told.count("TensorBoardEvents cannot follow the run: No space left on device. It goes on.") == 1
    steps = steps_in(tmp_path / "run" / "tensorboard")
    assert steps[:4] == [1, 2, 3, 4] and steps[-1] == 30 and 28 in steps
