"""`cktrain` as its users run it: whole runs, signals, resume, and one clear error with status 2 for each bad input."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.usefixtures("hangup")

CONFIG = {
    "run": {"dir": "run", "steps": 30, "seed": 5},
    "model": {
        "family": "llama",
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "vocab_size": 300,
    },
    "data": {"path": "data", "sequence_length": 16},
    "batch": {"micro_batch_size": 2, "global_batch_size": 8},
    "optimizer": {"lr": 0.01},
    "log": {"every": 1},
}


class Folder:
    """A working folder with a configuration; `cktrain(...)` runs the command in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "run.yaml").write_text(yaml.safe_dump(CONFIG))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cktrain.launch.cli", *arguments]

    def cktrain(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    def train(self, *overrides: str, **options) -> subprocess.CompletedProcess[str]:
        return self.cktrain("train", "run.yaml", *(w for o in overrides for w in ("--set", o)), **options)

    def losses(self, run: str = "run") -> list[float]:
        return [
            json.loads(line)["loss"] for line in (self.path / run / "metrics.jsonl").read_text().splitlines()
        ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A small prepared data folder: some hundred lines of made-up prose with a trained tokenizer of 300 words."""
    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    words = ["tensor", "kernel", "rank", "bucket", "stage", "größe", "naïve", "gradient"]
    text = "\n".join(json.dumps({"text": " ".join(rng.choice(words, 40))}) for _ in range(300))
    (root / "text.jsonl").write_text(text)
    result = Folder(root).cktrain("data", "prepare", "text.jsonl", "data", "--vocab-size", "300")
    assert result.returncode == 0, result.stderr
    return root / "data"


@pytest.fixture
def folder(tmp_path, prepared) -> Folder:
    (tmp_path / "data").symlink_to(prepared)
    return Folder(tmp_path)


def test_a_run_leaves_its_files_and_can_be_asked_for_text_and_a_report(folder):
    result = folder.train("data.validation.every=10")
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"^step: 30  loss: \d\.\d{5}  grad_norm: .* memory: .*GiB\(\d+%\)  tps: ", result.stdout, re.M
    )
    assert result.stdout.count("validate step: ") == 3
    run = folder.path / "run"
    assert {"config.yaml", "metrics.jsonl", "rank0.log", "checkpoints"} <= {p.name for p in run.iterdir()}
    text = folder.cktrain("generate", "run", "--prompt", "tensor", "--max-tokens", "5", "--temperature", "0")
    assert text.returncode == 0 and text.stdout.startswith("tensor"), text.stderr
    report = folder.cktrain("report", "run")
    assert report.returncode == 0, report.stderr
    bits = [float(x) for x in re.findall(r"(\d\.\d{4}) bits per byte", report.stdout)]
    assert len(bits) == 3 and all(0.35 < x < 1 for x in bits), report.stdout  # 3 bits a word of 8 bytes
    again = folder.train("data.validation.every=10")
    assert again.returncode == 0 and "all 30 steps are done already" in again.stdout


def test_a_bare_environment_is_enough(folder):
    """No home, no folder for temporary files, no time zone, ASCII, thread variables of another program, an odd name."""
    bare = {"TMPDIR": "/nowhere", "TZ": "No/Where", "LC_ALL": "C", "OMP_NUM_THREADS": "9", "PATH": "/nowhere"}
    name = "café, #1: 'x'"
    result = folder.train(f"run.dir={name}", "run.steps=2", env=bare)
    assert result.returncode == 0, result.stderr
    assert "OMP_NUM_THREADS was 9 and is now" in result.stdout
    assert (folder.path / name / "checkpoints" / "step-00000002" / "COMPLETE").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR2])
def test_a_stopped_and_resumed_run_equals_one_that_was_not(folder, number):
    """Status 75, the command that resumes, and then bit for bit the same losses."""
    whole = folder.train("run.dir=whole", "run.steps=200")
    assert whole.returncode == 0
    command = folder.command("train", "run.yaml", "--set", "run.steps=200")
    with subprocess.Popen(
        command, cwd=folder.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        metrics = folder.path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (metrics.exists() and '"step": 3,' in metrics.read_text()):
            time.sleep(0.005)
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    done = len(folder.losses())
    assert 3 <= done < 200
    assert "resume with: cktrain train run.yaml --set run.steps=200" in output
    resumed = folder.train("run.steps=200")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed from run/checkpoints/step-{done:08d}" in resumed.stdout
    assert folder.losses() == folder.losses("whole")


def raw(folder: Folder, name: str, ids: np.ndarray) -> None:
    ids.astype(np.uint16).tofile(folder.path / name)


def make_files(folder: Folder) -> None:
    """The damaged inputs of BAD_INPUT."""
    ids = np.arange(4000) % 300
    raw(folder, "short.bin", ids[:10])
    raw(folder, "empty.bin", ids[:0])
    beyond = ids.copy()
    beyond[0] = 999
    raw(folder, "beyond.bin", beyond)
    (folder.path / "odd.bin").write_bytes(ids.astype(np.uint16).tobytes()[:-1])
    shard = (folder.path / "data" / "train-00000.cktok").read_bytes()
    (folder.path / "truncated.cktok").write_bytes(shard[:-7])
    (folder.path / "header.cktok").write_bytes(shard[:20])
    (folder.path / "broken.yaml").write_text("run: [")


BAD_INPUT = {
    "unknown key": (["optimizer.lrate=1"], r"optimizer\.lrate: unknown key\. Did you mean 'optimizer\.lr'\?"),
    "mistyped value": (["run.steps=many"], r"run\.steps: .*integer, found 'many'"),
    "hidden by heads": (
        ["model.hidden_size=26"],
        r"run\.yaml:\d+: model: hidden_size 26 .* num_attention_heads 4",
    ),
    "heads by groups": (["model.num_key_value_heads=3"], r"num_attention_heads 4 .* num_key_value_heads 3"),
    "batch by micro-batch": (["batch.global_batch_size=7"], r"global_batch_size 7 .* micro_batch_size 2"),
    "no such data": (["data.path=nowhere"], r"nowhere: no such file or folder"),
    "empty shard": (["data.path=empty.bin"], r"empty\.bin: the file is empty"),
    "shard shorter than a sequence": (["data.path=short.bin"], r"10 tokens are fewer than the 17"),
    "half an id": (["data.path=odd.bin"], r"odd\.bin: 7,999 bytes is not a multiple of 2"),
    "truncated shard": (["data.path=truncated.cktok"], r"truncated\.cktok: .*\d"),
    "truncated header": (["data.path=header.cktok"], r"header\.cktok: .*\d"),
    "id beyond the vocabulary": (
        ["data.path=beyond.bin", "data.shuffle=false"],
        r"id 999 at position 0 .* of 300",
    ),
    "vocabulary below the data's": (
        ["model.vocab_size=200"],
        r"token id \d+ at position .* the model's vocabulary of 200",
    ),
    "no validation split": (["data.path=beyond.bin", "data.validation.every=1"], r"has no validation split"),
    "threads above cores": (["launch.threads=4096"], r"threads: 4096 on rank 0, which has \d+ core"),
    "ranks that are not there": (["parallel.data=3"], r"= 3 ranks, and 1 were started"),
    "fp64 on compiled kernels": (["precision=fp64"], r"fp64 needs the reference kernels"),
    "no checkpoint there": (["checkpoint.resume=nowhere"], r"nowhere is not a folder"),
    "no pretrained folder": (["model={from_pretrained: nowhere}"], r"nowhere"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_error_and_changes_nothing(folder, case):
    overrides, message = BAD_INPUT[case]
    make_files(folder)
    result = folder.train(*overrides)
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder.path / "run" / "checkpoints").exists()


def test_a_broken_file_and_a_missing_one(folder):
    make_files(folder)
    for name, message in (
        ("broken.yaml", r"broken\.yaml:1: not valid YAML"),
        ("nothing.yaml", "No such file"),
    ):
        result = folder.cktrain("train", name)
        assert result.returncode == 2 and re.search(message, result.stderr), result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_disk_that_fills_in_mid_save_leaves_the_last_good_checkpoint(folder):
    """A limit on file sizes stands for the full disk: the write of the weights fails half-way."""
    assert folder.train("run.steps=5").returncode == 0
    checkpoints = folder.path / "run" / "checkpoints"
    good = contents(checkpoints / "step-00000005")
    limit = len(good["rank0.safetensors"]) // 2

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = folder.train("run.steps=10", preexec_fn=little_room)
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.search(r"cannot write .*step-00000010: .*last good checkpoint is untouched", result.stderr)
    assert os.listdir(checkpoints) == ["step-00000005"]
    assert contents(checkpoints / "step-00000005") == good
    assert folder.train("run.steps=10").returncode == 0


def test_a_killed_run_goes_on_from_its_last_checkpoint(folder):
    command = folder.command("train", "run.yaml", "--set", "run.steps=400", "--set", "checkpoint.every=5")
    with subprocess.Popen(command, cwd=folder.path, stdout=subprocess.DEVNULL) as process:
        checkpoints = folder.path / "run" / "checkpoints"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            checkpoints.exists() and len(list(checkpoints.glob("step-*"))) >= 2
        ):
            time.sleep(0.005)
        process.kill()
    result = folder.train("run.steps=400", "checkpoint.every=100")
    assert result.returncode == 0, result.stderr
    assert folder.train("run.dir=whole", "run.steps=400").returncode == 0
    assert folder.losses() == folder.losses("whole")


def test_a_second_run_in_one_folder_is_refused_by_name(folder):
    """While the first trains; and when the first was killed, the next takes its lock over and says so."""
    command = folder.command("train", "run.yaml", "--set", "run.steps=100000", "--set", "checkpoint.every=5")
    with subprocess.Popen(command, cwd=folder.path, stdout=subprocess.DEVNULL) as first:
        checkpoints = folder.path / "run" / "checkpoints"
        deadline = time.monotonic() + 60
        while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        (folder.path / "alias").symlink_to("run")
        second = folder.train("run.dir=alias")
        first.kill()
    assert second.returncode == 2
    who = rf"cktrain: \[lock\] alias is in use by cktrain train, pid {first.pid} on \S+ since [^\n]*\n"
    assert re.fullmatch(who, second.stderr), second.stderr
    third = folder.train("run.steps=10", "checkpoint.every=5")
    assert third.returncode == 0, third.stderr
    assert f"[lock] run: took over the lock of cktrain train, pid {first.pid} on " in third.stdout
    assert not (folder.path / "run" / ".cktrain.lock").exists()
