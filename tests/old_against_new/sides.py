"""The two sides of a comparison: a tree of sources with its own compiled modules, and how its commands are started.

A commit is checked out as a git worktree under build/old_against_new/ and built in place, once; the checkout itself is
built in place too. All trees share the checkout's build/modules, so what does not differ is compiled once.

Dependencies are those of the Python that runs the comparison. Its own editable install is passed over: PYTHONPATH names
a folder where the rooms are linked under their import names (cktrain/comm -> comm/ …), and comes first. Ranks inherit
PYTHONPATH, so a launched run is of one side as well.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / "build" / "old_against_new"
ROOMS = ("comm", "cython_kernels", "launch")
LONGEST_COMMAND = 300.0
"""Seconds after which a command is stopped."""


class CommandFailed(RuntimeError):
    """A command of one side ended with another status than 0, or not in time."""


@dataclass(frozen=True)
class Side:
    """One side, built and ready."""

    name: str
    """old, new"""
    commit: str
    """The commit's short name; with a + where the checkout has changes that are not committed."""
    root: Path
    """Its sources."""
    imports: Path
    """The folder of PYTHONPATH."""
    work: Path
    """Where its commands run. Paths in configurations are relative to it, so that both sides read the same ones."""

    def environment(self, isa: str = "") -> dict[str, str]:
        """Of a command: this side's modules, no settings of the caller's, BLAS on one thread."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CKTRAIN_")}
        kept |= {"PYTHONPATH": str(self.imports), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        scripts = str(Path(sys.executable).parent)
        kept |= {"PATH": f"{scripts}{os.pathsep}{kept['PATH']}", "PYTHONIOENCODING": "utf-8"}
        kept |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return kept | ({"CKTRAIN_ISA": isa} if isa else {})

    def has(self, program: str) -> bool:
        """Whether a program is on the PATH of its commands."""
        return shutil.which(program, path=self.environment()["PATH"]) is not None

    def run(self, command: list[str], isa: str = "") -> str:
        """What a command prints. Raises CommandFailed with the end of what it said."""
        try:
            done = subprocess.run(
                command,
                cwd=self.work,
                env=self.environment(isa),
                capture_output=True,
                text=True,
                timeout=LONGEST_COMMAND,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"{self.name}: not done after {LONGEST_COMMAND:.0f} s") from None
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-2:]
            raise CommandFailed(f"{self.name}: exit status {done.returncode}: {' | '.join(said)}")
        return done.stdout

    def cktrain(self, *words: str, isa: str = "") -> str:
        """What a command of cktrain prints."""
        return self.run([sys.executable, "-m", "cktrain.launch.cli", *words], isa)


@contextmanager
def alone() -> Iterator[None]:
    """One comparison at a time in a checkout: a second one would clear the first one's folders."""
    MADE.mkdir(parents=True, exist_ok=True)
    with (MADE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another comparison runs in {MADE}: wait for it") from None
        yield


def prepare(name: str, commit: str | None) -> Side:
    """Check out and build a side; None is the checkout as it stands. Raises SystemExit with what is in the way."""
    if commit is None:
        changes = _git("status", "--porcelain")
        label = _git("rev-parse", "--short=10", "HEAD") + ("+" if changes else "")
        root = ROOT
    else:
        label = _git("rev-parse", "--short=10", "--verify", f"{commit}^{{commit}}")
        root = MADE / "trees" / label
        if not root.exists():
            _git("worktree", "prune")
            _git("worktree", "add", "--detach", "--quiet", str(root), label)
    built = MADE / f"built-{label}"
    if commit is None or not built.exists():
        print(f"building {name}: {label}", file=sys.stderr, flush=True)
        _build(root)
        built.touch()
    work = MADE / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    root = root.resolve()
    side = Side(name, label, root, _link(root, MADE / "imports" / name), work)
    _check_imports(side)
    return side


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _build(root: Path) -> None:
    log, modules = MADE / "build.log", {"CKTRAIN_BUILT": str(ROOT / "build" / "modules")}
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=root,
            env={**os.environ, **modules},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        end = "\n".join(log.read_text().splitlines()[-20:])
        raise SystemExit(f"{end}\nthe compiled modules of {root} cannot be built: {log}")


def _link(root: Path, imports: Path) -> Path:
    shutil.rmtree(imports, ignore_errors=True)
    package = imports / "cktrain"
    package.mkdir(parents=True)
    for entry in (root / "cktrain").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for room in ROOMS:
        (package / room).symlink_to(root / room)
    return imports


def _check_imports(side: Side) -> None:
    """Every room, and a compiled module, comes from this side's tree."""
    modules = ["cktrain", *(f"cktrain.{room}" for room in ROOMS), "cktrain.cython_kernels._runtime"]
    code = f"import importlib\nfor m in {modules}: print(importlib.import_module(m).__file__)"
    for path in side.run([sys.executable, "-c", code]).split():
        if not Path(path).resolve().is_relative_to(side.root):
            raise SystemExit(f"{side.name} imports {path}, and should from {side.root}")
