"""Nothing is lost at random moments: kill -9, SIGHUP, a full disk, a closed standard output, each at many of them.

    python tests/random_moments.py --moments 100 --page docs/benchmarks/random_moments_CPU_DATE.md

A small run is disturbed at a moment drawn over its start, or (four times of five) some milliseconds after a step drawn
over all of them, and is then started again with the same command. Held against a run that nobody disturbed: every
checkpoint that the run said it saved is there and complete, the last step's among them where the status is 0; the second
start gets to the end with status 0; no line of metrics.jsonl has another loss, and none is missing unless the disk was
full; the last weights and moments are the same bytes. A full disk is a limit on the size of files, set from outside in
mid-run, under which nothing but the smallest files can be written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

KINDS = ("kill -9", "SIGHUP", "full disk", "closed stdout")
STATUSES = {  # besides 0, where the moment came after the end
    "kill -9": {-signal.SIGKILL},
    "SIGHUP": {75, -signal.SIGHUP},  # the latter while Python itself starts, before any of the run's code
    "full disk": {2},  # a save in mid-run may fail; the last one, which nothing follows, ends the run
    "closed stdout": set(),
}
STEPS = 60
CONFIG = {
    "run": {"dir": "run", "steps": STEPS, "seed": 5},
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
    "optimizer": {"lr": 0.01},
    "precision": "fp32",
    "launch": {"threads": 1},
    "checkpoint": {"every": 3, "keep": 1000},
    "log": {"every": 1},
}
COMMAND = [sys.executable, "-m", "cktrain.launch.cli", "train", "run.yaml"]


@dataclass
class Outcome:
    """One moment of one kind."""

    kind: str
    status: int
    saved: int
    """Checkpoints that the disturbed run said it saved."""
    wrong: list[str] = field(default_factory=list)


class Reference:
    """A run that nobody disturbed, and how long it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = prepare(folder)
        began = time.monotonic()
        done = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, check=False)
        self.seconds = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        self.losses = losses(folder)
        self.last = last_weights(folder)


def prepare(folder: Path) -> Path:
    """A folder with the configuration and the data."""
    folder.mkdir(parents=True)
    np.random.default_rng(1).integers(0, 61, 4000).astype(np.uint16).tofile(folder / "tokens.bin")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def losses(folder: Path) -> dict[int, float]:
    """Loss by step. A line that is none is an error."""
    file = folder / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert len({line["step"] for line in lines}) == len(lines), "a step stands twice"
    return {line["step"]: line["loss"] for line in lines}


def last_weights(folder: Path) -> bytes:
    """Weights and moments of the last checkpoint."""
    return (folder / "run" / "checkpoints" / f"step-{STEPS:08d}" / "rank0.safetensors").read_bytes()


def disturb(kind: str, process: subprocess.Popen[bytes]) -> None:
    """What happens at the moment."""
    if kind == "closed stdout":
        assert process.stdout is not None
        process.stdout.close()
    elif process.poll() is None:
        if kind == "full disk":
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        else:
            process.send_signal(signal.SIGKILL if kind == "kill -9" else signal.SIGHUP)


@dataclass(frozen=True)
class Moment:
    """So many seconds after a step was logged; after the start where `step` is 0."""

    step: int
    seconds: float

    def wait(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        """Until it has come, or the run has ended."""
        log, mark = folder / "run" / "rank0.log", f"INFO step: {self.step} "
        while self.step and process.poll() is None and not (log.exists() and mark in log.read_text()):
            time.sleep(0.002)
        time.sleep(self.seconds)


def trial(kind: str, reference: Reference, folder: Path, moment: Moment) -> Outcome:
    """Disturb a run at a moment, start it again, and compare."""
    prepare(folder)
    with subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        moment.wait(folder, process)
        disturb(kind, process)
        assert process.stdout is not None and process.stderr is not None
        said = b"" if kind == "closed stdout" else process.stdout.read()
        errors = process.stderr.read().decode(errors="replace")
    log = folder / "run" / "rank0.log"
    said_in_all = said.decode() + (log.read_text(errors="replace") if log.exists() else "")
    saved = set(re.findall(r"saved (\S+step-\d{8})$", said_in_all, re.M))
    outcome = Outcome(kind, process.returncode, len(saved))
    wrong = outcome.wrong
    if process.returncode not in {0, *STATUSES[kind]}:
        wrong.append(f"status {process.returncode}: {errors[-500:]}")
    if "Traceback" in errors + said_in_all:
        wrong.append(f"a traceback: {errors[-500:]}")
    if process.returncode == 0 and not any(path.endswith(f"step-{STEPS:08d}") for path in saved):
        wrong.append("status 0 without a last checkpoint")
    wrong += [f"{path} is lost" for path in saved if not (folder / path / "COMPLETE").exists()]
    again = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, check=False)
    if again.returncode:
        wrong.append(f"started again it ends with {again.returncode}: {again.stderr[-500:]}")
        return outcome
    have = losses(folder)
    wrong += [f"step {step}: another loss" for step in have if have[step] != reference.losses[step]]
    if kind != "full disk" and have != reference.losses:
        wrong.append(f"{STEPS - len(have)} lines of metrics.jsonl are missing")
    if last_weights(folder) != reference.last:
        wrong.append("other weights at the end")
    if not wrong:
        shutil.rmtree(folder)
    return outcome


def run_trials(folder: Path, moments: int, seed: int, workers: int, seconds: float) -> list[Outcome]:
    """`moments` of each kind, in turn; none is begun after `seconds`."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the runs would inherit that it is ignored
    reference = Reference(folder / "reference")
    draw, deadline = random.Random(seed), time.monotonic() + seconds

    def some_moment() -> Moment:
        if draw.random() < 0.2:
            return Moment(0, draw.random() * reference.seconds)
        return Moment(draw.randint(1, STEPS), draw.random() * 0.02)

    plan = [(kind, i, some_moment()) for i in range(moments) for kind in KINDS]

    def one(kind: str, number: int, moment: Moment) -> Outcome | None:
        if time.monotonic() > deadline:
            return None
        return trial(kind, reference, folder / f"{kind.replace(' ', '_')}-{number}", moment)

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda row: one(*row), plan))
    return [outcome for outcome in found if outcome is not None]


def table(outcomes: list[Outcome]) -> str:
    """A row per kind."""
    rows = [
        "| kind | moments | exit statuses | checkpoints said saved | lost, or otherwise wrong |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        counts = ", ".join(f"{status}: {n}" for status, n in sorted(Counter(o.status for o in mine).items()))
        rows.append(
            f"| {kind} | {len(mine)} | {counts} | {sum(o.saved for o in mine)} | {sum(bool(o.wrong) for o in mine)} |"
        )
    return "\n".join(rows)


def _cpu() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def main() -> int:
    """Print the table, write the page; the exit status is 1 when anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    moments = int(os.environ.get("CKTRAIN_TEST_MOMENTS", "100"))
    parser.add_argument("--moments", type=int, default=moments, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no run after that time")
    parser.add_argument("--page", type=Path, help="write the result there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_trials(Path(folder), options.moments, options.seed, options.workers, options.seconds)
    print(table(outcomes))
    for outcome in outcomes:
        for line in outcome.wrong:
            print(f"{outcome.kind}: {line}")
    if options.page is not None:
        options.page.write_text(
            f"# Random moments, {time.strftime('%Y-%m-%d')}\n\n{_cpu()}. `python tests/random_moments.py --moments "
            f"{options.moments} --seed {options.seed} --workers {options.workers}`: a run of {STEPS} steps, a checkpoint "
            f"every three, is disturbed at a random moment and started again (see the script for what is compared).\n\n"
            f"{table(outcomes)}\n"
        )
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
