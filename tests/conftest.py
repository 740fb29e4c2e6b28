"""What every test may use: hypothesis without deadlines, and the command line of a job of several ranks; and the brief
form, in which a test of many cases has two of them; and the night's tests, which run only where they are asked for.
"""

import logging
import os
import re
import shutil
import signal
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Tests of all folders share machine_load and made_machines.
sys.path.insert(0, str(Path(__file__).parent))

import machine_load

if not machine_load.IN_GUEST:  # there nothing uses it, and its import takes seconds
    import hypothesis

    # A deadline per example measures the machine's load, not the code.
    hypothesis.settings.register_profile("cktrain", deadline=None)
    hypothesis.settings.load_profile("cktrain")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file of which -m chooses nothing is not imported: each worker would take 20 s for all, with PyTorch among them.

    Of -m only markers that are joined by `and` are understood; a file says its markers itself.
    """
    if collection_path.suffix != ".py" or re.search(r"\bor\b|\(", config.option.markexpr):
        return None
    text = collection_path.read_text()
    for no, name in re.findall(r"\b(not )?(\w+)(?: and |$)", config.option.markexpr):
        if re.search(rf"^pytestmark = .*\bmark\.{name}\b" if no else rf"\bmark\.{name}\b", text, re.M):
            if no:
                return True
        elif not no:
            return True
    return None


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """No test that is marked `nightly`, unless -m names that. In brief, of each test that has cases the first and the last,
    which differ in all that the test is given; and no test that is marked `thorough`.
    """
    if "nightly" not in re.findall(r"\w+", config.option.markexpr):
        _leave_out(config, items, {item for item in items if item.get_closest_marker("nightly")})
    if os.environ.get("CKTRAIN_TEST_BRIEF", "") in ("", "0"):
        return
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    left = {item for each in cases.values() for item in each[1:-1]}
    left |= {item for item in items if item.get_closest_marker("thorough")}
    _leave_out(config, items, left)


def _leave_out(config: pytest.Config, items: list[pytest.Item], left: set[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = [item for item in items if item not in left]


_running: dict[str, None] = {}


def pytest_runtest_logstart(nodeid: str) -> None:
    _running[nodeid] = None


def pytest_runtest_logfinish(nodeid: str) -> None:
    _running.pop(nodeid, None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Say what was running when all were stopped: by hand, or by a stage's limit."""
    if exitstatus == pytest.ExitCode.INTERRUPTED and _running:
        terminalreporter.write_line(f"[tests] interrupted in {', '.join(_running)}")


@pytest.fixture
def mpirun(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """`[*mpirun(ranks), *command]` runs a command on that many ranks of this machine.

    Root may run it, ranks may outnumber cores, and messages go through shared memory.
    """
    pytest.importorskip("mpi4py")
    program = shutil.which("mpirun", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("mpirun is not on the PATH")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    options = ["--oversubscribe", "--mca", "pml", "ob1", "--mca", "btl", "self,sm"]
    return lambda ranks: [program, *options, "-n", str(ranks)]


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP comes as by default, although nohup started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def said():  # type: ignore[no-untyped-def]
    """A list of what the run logs while the test runs."""

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    lines: list[str] = []
    handler, logger = Heard(), logging.getLogger("cktrain")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)
