"""`cktrain launch` on this machine: the losses of one process, and no rank that outlives the job."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

CONFIG = {
    "run": {"steps": 8, "seed": 5},
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
    "checkpoint": {"every": 0},
    "log": {"every": 1},
}
ENDLESS = ("--set", "run.steps=1000000")
CKTRAIN = [sys.executable, "-m", "cktrain.launch.cli"]


class Runs:
    """Trainings in one folder, with the same small model and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(1)
        rng.integers(0, 61, 4000).astype(np.uint16).tofile(folder / "tokens.bin")

    def config(self, name: str) -> str:
        path = self.folder / f"{name}.yaml"
        run = {**CONFIG["run"], "dir": str(self.folder / name)}
        path.write_text(yaml.safe_dump({**CONFIG, "run": run}))
        return str(path)

    def start(self, name: str, *launch: str, settings=(), **environment: str) -> subprocess.Popen[str]:
        """`cktrain launch LAUNCH… train CONFIG SETTINGS…`, or without it where nothing is given for it."""
        words = ["launch", *launch] if launch else []
        return subprocess.Popen(
            [*CKTRAIN, *words, "train", self.config(name), *settings],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def losses(self, name: str) -> list[float]:
        metrics = self.folder / name / "metrics.jsonl"
        return (
            [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
            if metrics.exists()
            else []
        )

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 60
        while len(self.losses(name)) < step:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path)


def ended(process: subprocess.Popen[str], limit_s: float = 60) -> tuple[int, str]:
    output, _ = process.communicate(timeout=limit_s)
    return process.returncode, output


def processes_of(run: str) -> list[int]:
    """Processes that have the run's configuration on their command line."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().decode().split("\0")
            state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if any(word.endswith(f"{run}.yaml") for word in words) and "launch" not in words and state != "Z":
            found.append(int(directory.name))
    return sorted(found)


def state_of(pid: int) -> str:
    """R, S … or T for one that is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def assert_nothing_is_left(folder: Path, run: str, limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while left := processes_of(f"{folder}/{run}"):
        assert time.monotonic() < deadline, f"{left} are still there"
        time.sleep(0.1)


def test_two_ranks_have_the_losses_of_one_process(runs):
    """fp64 on the reference kernels: only the order of additions differs, 1e-10."""
    fp64 = ("--set", "precision=fp64")
    one = ended(runs.start("one", settings=fp64, CKTRAIN_ISA="reference"))
    two = ended(runs.start("two", "-n", "2", settings=fp64, CKTRAIN_ISA="reference"))
    assert (one[0], two[0]) == (0, 0), two[1]
    assert len(runs.losses("two")) == 8
    np.testing.assert_allclose(runs.losses("two"), runs.losses("one"), rtol=0, atol=1e-10)
    kept = (runs.folder / "two" / "rank0.out").read_text()
    assert "step: 8" in kept and (runs.folder / "two" / "rank1.out").exists()


def test_a_killed_rank_stops_all_and_is_named(runs):
    process = runs.start("run", "-n", "2", settings=ENDLESS)
    runs.wait_for_step("run", 2, process)
    victim = processes_of(f"{runs.folder}/run")[1]  # started second
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    status, output = ended(process)
    assert status == 128 + signal.SIGKILL
    assert time.monotonic() - began < 20
    assert "rank 1 on localhost was killed by SIGKILL. Its last lines:" in output
    assert "Where memory runs out the kernel kills so: dmesg says it" in output
    assert "[launch] rank 1: " in output  # its log's first line: it printed nothing
    assert_nothing_is_left(runs.folder, "run")


def test_a_rank_that_dies_before_it_has_joined_the_others(runs):
    """The others would wait for it for two minutes."""
    process = runs.start("run", "-n", "2", settings=ENDLESS)
    while not (ranks := processes_of(f"{runs.folder}/run")):
        assert process.poll() is None
    os.kill(ranks[0], signal.SIGKILL)
    status, output = ended(process, limit_s=30)
    assert status == 128 + signal.SIGKILL and "rank 0 on localhost was killed by SIGKILL" in output
    assert_nothing_is_left(runs.folder, "run")


@pytest.mark.parametrize("whom", ["launcher", "agent"])
def test_no_rank_outlives_the_launcher_or_the_agent(runs, whom):
    process = runs.start("run", "-n", "2", settings=ENDLESS)
    runs.wait_for_step("run", 2, process)
    ranks = processes_of(f"{runs.folder}/run")
    assert len(ranks) == 2
    agent = int((Path("/proc") / str(ranks[0]) / "stat").read_text().rpartition(")")[2].split()[1])
    os.kill(process.pid if whom == "launcher" else agent, signal.SIGKILL)
    status, output = ended(process)
    if whom == "agent":
        assert status == 1 and "localhost was lost with rank 0, 1" in output
    assert_nothing_is_left(runs.folder, "run")


def test_a_signal_stops_all_with_a_checkpoint_and_the_line_that_resumes(runs):
    process = runs.start("run", "-n", "2", settings=ENDLESS)
    runs.wait_for_step("run", 2, process)
    process.send_signal(signal.SIGINT)
    status, output = ended(process)
    assert status == 75
    assert f"resume with: cktrain launch -n 2 train {runs.folder}/run.yaml --set run.steps=1000000" in output
    done = len(runs.losses("run"))
    again = ended(runs.start("run", "-n", "2", settings=("--set", f"run.steps={done + 2}")))
    assert again[0] == 0 and "resumed from" in again[1]
    assert len(runs.losses("run")) == done + 2


def test_a_signal_to_every_process_of_a_job_is_one_signal(runs):
    """As systemd and batch systems send it: the launcher, its agent and the ranks."""
    process = runs.start("run", "-n", "2", settings=ENDLESS)
    runs.wait_for_step("run", 2, process)
    ranks = processes_of(f"{runs.folder}/run")
    agent = int((Path("/proc") / str(ranks[0]) / "stat").read_text().rpartition(")")[2].split()[1])
    for number in (agent, *ranks, process.pid):
        os.kill(number, signal.SIGTERM)
    status, output = ended(process)
    assert status == 75 and "resume with: cktrain launch -n 2 train" in output, output


def test_before_a_jobs_time_ends_all_ranks_stop_together(runs):
    """The time is told to one rank only: it is one flag for all."""
    soon = str(int(time.time()) + 60)
    margin = ("--set", "launch.end_margin_s=3600")
    status, output = ended(
        runs.start("run", "-n", "2", settings=(*ENDLESS, *margin), SLURM_JOB_END_TIME=soon)
    )
    assert status == 75
    assert "stopped by the end of the job's time after step 1; checkpoint" in output


def test_bad_input_is_said_once_and_before_anything_starts(runs):
    status, output = ended(runs.start("run", "-n", "2", settings=("--set", "run.stepz=3")))
    assert status == 2 and output.count("unknown key") == 1 and "Did you mean 'run.steps'" in output
    status, output = ended(runs.start("run", "-n", "3", settings=("--set", "parallel.data=2")))
    assert status == 2 and "and 3 were started" in output
    assert not (runs.folder / "run").exists()
    status, output = ended(runs.start("run", "-n", "2", settings=("--set", "data.path=nothing.bin")))
    assert status == 2 and output.count("nothing.bin") <= 2  # what is wrong, and the command that was given


# ------------------------------------------------------------------------------- hosts, with a shell of our own


def shell(folder: Path, text: str) -> str:
    path = folder / "shell.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_an_empty_environment_on_the_other_side(runs):
    """The remote shell hands nothing on; the secret is on no command line."""
    seen = runs.folder / "commands"
    remote = shell(runs.folder, f'echo "$@" >>{seen}\nexec env -i sh -c "$2"')
    process = runs.start(
        "run", "--rsh", remote, "--hosts", "elsewhere:2", settings=ENDLESS, CKTRAIN_ISA="generic"
    )
    runs.wait_for_step("run", 2, process)
    ranks = processes_of(f"{runs.folder}/run")
    environment = dict(
        word.split("=", 1)
        for word in (Path("/proc") / str(ranks[0]) / "environ").read_text().split("\0")
        if "=" in word
    )
    assert environment["CKTRAIN_ISA"] == "generic" and "HOME" not in environment
    secret = (
        Path("/proc") / str(ranks[0]) / "fd" / environment["CKTRAIN_SECRET_FILE"].rpartition("/")[2]
    ).read_bytes()
    assert len(secret) == 32
    said = [seen.read_text(), *environment.values()]
    said += [(Path("/proc") / str(pid) / "cmdline").read_text() for pid in (*ranks, process.pid)]
    assert not any(secret.hex() in text for text in said)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75
    assert_nothing_is_left(runs.folder, "run")


HERE = '[ "$1" = here ] && exec sh -c "$2"; '
OLDER = '{"hello": {"protocol": 1, "version": "0.0.1", "python": "p", "addresses": [], "port": 1}}'


@pytest.mark.parametrize(
    "script, complaint",
    [
        ('echo "no route to $1" >&2; exit 255', "away cannot be reached (exit status 255)"),
        ("exec sleep 60", "away did not answer within 3 s"),
        (
            'exec sh -c "${2%%import sys*}import nothing_such\'"',
            "away cannot start cktrain's agent (exit status 1)",
        ),
        (f"echo '@cktrain {OLDER}'; exec cat", "away has cktrain 0.0.1 (p), this is "),
    ],
    ids=["unreachable", "silent", "no cktrain", "another version"],
)
def test_a_host_that_cannot_be_used_is_named_before_anything_starts(runs, script, complaint):
    remote = shell(runs.folder, HERE + script)
    began = time.monotonic()
    status, output = ended(
        runs.start("run", "--rsh", remote, "--hosts", "here:1,away:1", "--start-timeout", "3")
    )
    assert status == 1 and complaint in output, output
    assert time.monotonic() - began < 30
    assert not (runs.folder / "run").exists()
    assert_nothing_is_left(runs.folder, "run")


# --------------------------------------------------------------------------- ranks that somebody else has started


def as_torchrun(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def test_the_variables_of_torchrun(runs):
    pair = [runs.start("run", **as_torchrun(rank, 2, 29000 + os.getpid() % 1000)) for rank in range(2)]
    results = [ended(process) for process in pair]
    assert [status for status, _ in results] == [0, 0], results
    assert len(runs.losses("run")) == 8


def test_a_rank_with_another_configuration_or_instruction_set(runs):
    port = 30000 + os.getpid() % 1000
    other = ("--set", "optimizer.lr=0.5")
    pair = [
        runs.start("run", settings=other if rank else (), **as_torchrun(rank, 2, port)) for rank in range(2)
    ]
    results = [ended(process) for process in pair]
    assert [status for status, _ in results] == [2, 2]
    assert "optimizer.lr is 0.01 on rank 0, 0.5 on rank 1" in results[0][1]
    isas = ["generic", "avx2"]
    pair = [runs.start("run", CKTRAIN_ISA=isas[rank], **as_torchrun(rank, 2, port + 1)) for rank in range(2)]
    results = [ended(process) for process in pair]
    if "avx2 is" in results[1][1]:
        pytest.skip("this CPU has no AVX2")
    assert [status for status, _ in results] == [0, 0]
    assert "different instruction sets: generic on rank 0, avx2 on rank 1" in results[0][1]


# ------------------------------------------------------------------------------------------------- the batch script

SRUN = """
while [ "${1#-}" != "$1" ]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
first=$?
wait $! || exit $?
exit $first
"""
SCONTROL = """
case $1 in
show) echo 127.0.0.1 ;;
requeue) echo "requeue $2" ;;
esac
"""


def test_the_batch_script_resumes_itself(runs):
    """With stand-ins for srun, which starts two ranks, scontrol and squeue: 75 puts the job back, 0 and 2 do not.

    Slurm 22.05 was seen to do as they do; it tells a job's end by squeue alone, and "NONE" where there is none.
    """
    programs = runs.folder / "bin"
    programs.mkdir()
    launcher = f'exec {sys.executable} -m cktrain.launch.cli "$@"'
    stand_ins = {"srun": SRUN, "scontrol": SCONTROL, "squeue": 'echo "$JOB_END"', "cktrain": launcher}
    for name, text in stand_ins.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    script = Path(__file__).resolve().parents[2] / "examples" / "slurm.sbatch"
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "CKTRAIN_SECRET_FILE": str(runs.folder / "secret"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "one",
    }

    def submit(end: dict[str, str], *settings: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(script), runs.config("run"), *settings],
            cwd=runs.folder,
            env={**environment, **end},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 60))
    status, output = submit({"JOB_END": soon})
    assert status == 75, output
    assert f"requeue {os.getpid()}" in output and len(runs.losses("run")) == 1
    assert stat.S_IMODE((runs.folder / "secret").stat().st_mode) == 0o600
    status, output = submit({"SLURM_JOB_END_TIME": str(int(time.time()) + 3600)})
    assert status == 0 and "requeue" not in output, output
    assert "resumed from" in output and len(runs.losses("run")) == 8
    status, output = submit({"JOB_END": "NONE"}, "--set", "run.stepz=1")
    assert status == 2 and "requeue" not in output


def test_a_job_that_is_stopped_by_the_terminal_goes_on_where_it_was(runs):
    """Ctrl-Z stops the ranks too, for longer than they would wait for each other; what continues it continues them."""
    settings = ("--set", "run.steps=60", "--set", "comm.timeout_s=6")
    job = runs.start("suspended", "-n", "2", settings=settings)
    runs.wait_for_step("suspended", 2, job)
    job.send_signal(signal.SIGTSTP)
    ranks = processes_of(f"{runs.folder}/suspended")
    assert len(ranks) == 2
    deadline = time.monotonic() + 30
    while {state_of(pid) for pid in (*ranks, job.pid)} != {"T"}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = len(runs.losses("suspended"))
    time.sleep(7)
    assert len(runs.losses("suspended")) == before
    job.send_signal(signal.SIGCONT)
    status, output = ended(job)
    assert status == 0, output
    assert len(runs.losses("suspended")) == 60
