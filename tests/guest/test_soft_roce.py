"""The RDMA tests, run where there is an RDMA device: in a guest, and in two joined ones."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import guest
import providers
import pytest
from guest import Machine

pytestmark = pytest.mark.guest

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/comm/rdma"
SHOWN = ("-v", "--durations=5")
"""Each test by its name before it runs: a guest that reaches its limit shows the last line."""


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
        TESTS,
        "-m",
        marker,
        "-p",
        "no:cacheprovider",
        *options,
    ]


def collected(marker: str) -> int:
    """How many tests there are, counted on the host, where pytest leaves what it compiled for the guests."""
    shown = subprocess.run(
        pytest_command(marker, "-q", "--collect-only"),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        check=True,
    )
    return sum("::" in line for line in shown.stdout.splitlines())


def results(report: Path) -> Counter[str]:
    """Passed, failed and skipped tests of a JUnit file."""
    count: Counter[str] = Counter()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        count["failed" if bad else "skipped" if case.find("skipped") is not None else "passed"] += 1
    return count


def script(command: list[str]) -> list[str]:
    """The command after the device is up."""
    return ["bash", "-c", '. tests/guest/join.sh; exec "$@"', "-", *command]


def test_on_one_device(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    report = tmp_path / "results.xml"
    command = script(pytest_command("rdma", *SHOWN, f"--junitxml={report}"))
    expected = collected("rdma")
    assert expected >= 153  # half of them for each provider
    status = guest.run(command, Machine(), variables=environment, share=tmp_path, time_limit_s=1200)
    assert status == 0
    assert results(report) == {"passed": expected}


def test_on_two_joined_machines(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    # Each guest writes a file of its own: the share is one folder for both.
    variables = {**environment, "REPORTS": str(tmp_path)}
    command = [
        *("bash", "-c"),
        '. tests/guest/join.sh; exec "$@" --junitxml="$REPORTS/$GUEST_ROLE.xml"',
        *("-", *pytest_command("rdma_joined", *SHOWN)),
    ]
    machine = Machine(cpus=1, memory_mib=1024)
    expected = collected("rdma_joined")
    assert expected >= 34
    status = guest.run(command, machine, joined=True, variables=variables, share=tmp_path, time_limit_s=1200)
    assert status == 0
    for role in "AB":
        assert results(tmp_path / f"{role}.xml") == {"passed": expected}, role
