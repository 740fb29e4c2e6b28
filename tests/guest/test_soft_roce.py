"""The RDMA tests, run where there is an RDMA device: in a guest, and in two joined ones."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import guest
import providers
import pytest
import stages
from guest import Machine

pytestmark = pytest.mark.guest

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/comm/rdma"
SHOWN = ("-v", "--durations=5")
"""Each test by its name before it runs: a guest that reaches its limit shows the last line."""
OF_B = 5
"""The status of B's command where all is well."""
LAST_LINES = 12
"""Of a test that failed in a guest: of several ones all are to stand in what the stage shows of this one."""


@pytest.fixture(scope="session")
def environment(compiled: None) -> Iterator[dict[str, str]]:
    """Variables of the tests in the guest: Python finds the system's pyverbs, and nothing else of the system's."""
    guest.setup()
    with tempfile.TemporaryDirectory() as link:
        # Each plugin that loads costs seconds where Python is emulated.
        yield {
            **providers.variables(Path(link)),
            "PATH": os.environ["PATH"],  # with mpirun
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }


def pytest_command(marker: str, *options: str) -> list[str]:
    program = "import pytest, sys; sys.exit(pytest.main())"
    return [
        sys.executable,
        "-c",
        program,
        "-m",
        marker,
        "-p",
        "no:cacheprovider",
        *options,
    ]


def collected(marker: str) -> tuple[int, list[str]]:
    """How many tests there are and their files, of the host, where pytest leaves what it compiled for the guests."""
    shown = subprocess.run(
        pytest_command(marker, TESTS, "-q", "--collect-only"),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        check=True,
    )
    files = [line.partition("::")[0] for line in shown.stdout.splitlines() if "::" in line]
    return len(files), list(dict.fromkeys(files))


def assert_all_passed(
    reports: Sequence[Path], expected: int, status: int, printed: str, good: int = 0
) -> None:
    """So many tests passed in each guest and no other ran; else the failed ones are named, with the end of what they said.

    `good` is the status that the command then has. `printed` is what the guests printed: the end of it is shown where one
    ended before its tests did.
    """
    counts, failures = [], []
    for report in reports:
        count: Counter[str] = Counter()
        for case in ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ():
            if failure := stages.failure_of(case, LAST_LINES):
                failures.append(f"{report.stem}: {failure}")
            count["failed" if failure else "skipped" if case.find("skipped") is not None else "passed"] += 1
        counts.append(count)
    if failures:
        pytest.fail("\n".join([f"failed in guests: {len(failures)}", *failures]), pytrace=False)
    if status != good:
        end = "\n".join(printed.splitlines()[-LAST_LINES:])
        pytest.fail(f"the guest ended with status {status} after {counts} tests:\n{end}", pytrace=False)
    assert counts == [{"passed": expected}] * len(reports)


def said(capfd: pytest.CaptureFixture[str]) -> str:
    """What was printed so far, the guests' console at the end; pytest still shows it where the test fails."""
    shown = capfd.readouterr()
    print(shown.out, shown.err, sep="\n")
    return shown.out + shown.err


def script(command: list[str]) -> list[str]:
    """The command after the device is up."""
    return ["bash", "-c", '. tests/guest/join.sh; exec "$@"', "-", *command]


def test_on_one_device(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    report = tmp_path / "one.xml"
    expected, files = collected("rdma")
    command = script(pytest_command("rdma", *files, *SHOWN, f"--junitxml={report}"))
    assert expected >= 153  # half of them for each provider
    status = guest.run(command, Machine(), variables=environment, share=tmp_path, time_limit_s=1200)
    assert_all_passed([report], expected, status, said(capfd))


def test_on_two_joined_machines(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    # Each guest writes a file of its own: the share is one folder for both.
    variables = {**environment, "REPORTS": str(tmp_path)}
    expected, files = collected("rdma_joined")
    command = [
        *("bash", "-c"),
        f'. tests/guest/join.sh; "$@" --junitxml="$REPORTS/$GUEST_ROLE.xml" || exit; [ $GUEST_ROLE = A ] || exit {OF_B}',
        *("-", *pytest_command("rdma_joined", *files, *SHOWN)),
    ]
    machine = Machine(cpus=1, memory_mib=1024)
    assert expected >= 34
    status = guest.run(command, machine, joined=True, variables=variables, share=tmp_path, time_limit_s=1200)
    printed = said(capfd)
    # B's command ends with another status than A's, and of several ones that is what counts.
    assert_all_passed([tmp_path / f"{role}.xml" for role in "AB"], expected, status, printed, good=OF_B)
    for role in "AB":
        assert f"\n{role} [soft-roce] rxe0 on eth0 is active\n" in f"\n{printed}"
