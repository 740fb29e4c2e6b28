"""What only watches ends no run: standard output and error, logs, metrics; and every rank says what it alone knows."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from cktrain.data.prepare import prepare

pytestmark = pytest.mark.usefixtures("hangup")

CONFIG = {
    "run": {"dir": "run", "steps": 6, "seed": 5},
    "model": {
        "family": "llama",
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "vocab_size": 61,
    },
    "data": {"path": "tokens.bin", "sequence_length": 16},
    "batch": {"micro_batch_size": 2, "global_batch_size": 8},
    "precision": "fp32",
    "checkpoint": {"every": 0},
    "log": {"every": 1},
}
CKTRAIN = [sys.executable, "-m", "cktrain.launch.cli"]
TRAIN = [*CKTRAIN, "train", "run.yaml"]
LAUNCH = [*CKTRAIN, "launch", "-n", "2", "train", "run.yaml"]


@pytest.fixture
def folder(tmp_path):
    np.random.default_rng(1).integers(0, 61, 4000).astype(np.uint16).tofile(tmp_path / "tokens.bin")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def assert_done(folder):
    assert (folder / "run" / "checkpoints" / "step-00000006" / "COMPLETE").exists()
    log = (folder / "run" / "rank0.log").read_text()
    assert "step: 6 " in log and "Traceback" not in log
    return log


def test_a_reader_that_has_seen_enough(folder):
    """`cktrain train … | head -1`: status 0, and the warning where it can still be seen."""
    reader, writer = os.pipe()
    with subprocess.Popen(TRAIN, cwd=folder, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert said.splitlines() == [
        "cktrain: warning: standard output cannot be written: Broken pipe. "
        "The run goes on; what it says stands in its log, where it has one."
    ]
    assert said.strip().removeprefix("cktrain: ") in assert_done(folder)


@pytest.mark.parametrize("command", [TRAIN, LAUNCH], ids=["train", "launch"])
def test_output_and_errors_on_a_full_disk(folder, command):
    with open("/dev/full", "wb") as full:
        assert subprocess.run(command, cwd=folder, stdout=full, stderr=full, timeout=60).returncode == 0
    assert_done(folder)
    if command is LAUNCH:
        assert "step: 6 " in (folder / "run" / "rank0.out").read_text()


def test_nothing_to_write_to_and_files_that_cannot_be_written(folder):
    """Descriptors 0 to 2 are closed, and folders stand where files should be: only the checkpoint is left."""
    for name in ("rank0.log", "metrics.jsonl"):
        (folder / "run" / name).mkdir(parents=True)
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *TRAIN], cwd=folder, timeout=60)
    assert done.returncode == 0
    assert (folder / "run" / "checkpoints" / "step-00000006" / "COMPLETE").exists()


def test_a_limit_on_file_sizes_that_only_logs_reach(folder):
    """SIGXFSZ is an error like any other: metrics.jsonl keeps whole lines and the run gets to its end."""
    command = [*TRAIN, "--set", "run.steps=30", "--set", "checkpoint.every=0"]

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    done = subprocess.run(
        command, cwd=folder, timeout=60, capture_output=True, text=True, preexec_fn=little_room
    )
    assert done.stdout.count("step: 30 ") == 1  # only the checkpoint is too large, and that is what it says
    assert done.returncode == 2 and "cannot write run/checkpoints/step-00000030" in done.stderr
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1)) and len(lines) < 30
    assert done.stderr.count("warning: [launch] the log") == 1


def test_rows_of_data_are_asked_for_and_who_reads_them_may_leave(folder):
    """`data show | head -1` ends quietly, as other commands whose output was asked for."""
    (folder / "text.txt").write_text("One, two, three.\n" * 400)
    prepare(folder / "text.txt", folder / "data", vocab_size=280, progress=False)
    read, write = os.pipe()
    os.close(read)
    words = [*CKTRAIN, "data", "show", "data", "-n", "100"]
    done = subprocess.run(words, cwd=folder, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2 and "No space left on device" in done.stderr


@pytest.mark.parametrize("command, status", [("plan", 2), ("--help", 0)])
def test_what_a_command_was_asked_for_is_no_watcher(folder, command, status):
    """It ends with a sentence and a status that says so, not with Python's 120."""
    words = [*CKTRAIN, command, *(["run.yaml", "--memory-only"] if command == "plan" else [])]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == status
    assert ("No space left on device" in done.stderr) == (status == 2) and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [TRAIN, LAUNCH], ids=["train", "launch"])
@pytest.mark.parametrize("moment", ["[launch] rank 0", "step: 2 "], ids=["before", "after"])
def test_a_hangup_ends_with_75_and_the_line_that_resumes(folder, command, moment):
    """SIGHUP to the command alone, before and after the first step."""
    with subprocess.Popen(
        [*command, "--set", "run.steps=1000000"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if moment in line:
                process.send_signal(signal.SIGHUP)
                break
        said += process.stdout.readlines()
        process.wait(60)
    output = "".join(said)
    assert process.returncode == 75 and "Traceback" not in output, output
    assert said[-1].startswith("resume with: cktrain "), output
    assert "stopped by SIGHUP" in output or "stopped by another rank's signal" in output
