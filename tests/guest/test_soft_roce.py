"""The RDMA tests, run where there is an RDMA device: in a guest, and in two joined ones.

What is marked `nightly` of them runs in guests of the night.
"""

from __future__ import annotations

from pathlib import Path

import guest
import pytest
import selected
from guest import Machine
from selected import OF_B, ROOT, assert_all_passed

pytestmark = pytest.mark.guest


def said(capfd: pytest.CaptureFixture[str]) -> str:
    """What was printed so far, the guests' console at the end; pytest still shows it where the test fails."""
    shown = capfd.readouterr()
    print(shown.out, shown.err, sep="\n")
    return shown.out + shown.err


@pytest.mark.parametrize(
    ("marker", "least"),
    [
        ("rdma and not nightly", 134),  # half of them for each provider
        pytest.param("rdma and nightly", 19, marks=pytest.mark.nightly),
    ],
)
def test_on_one_device(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    marker: str,
    least: int,
) -> None:
    monkeypatch.chdir(ROOT)
    report = tmp_path / "one.xml"
    expected, tests = selected.selected(marker)
    assert expected >= least
    command = ["bash", "-c", '. tests/guest/join.sh; exec "$@"', "-", *tests, f"--junitxml={report}"]
    status = guest.run(command, Machine(), variables=environment, share=tmp_path, time_limit_s=1200)
    assert_all_passed([report], expected, status, said(capfd))


@pytest.mark.parametrize(
    ("marker", "least"),
    [
        ("rdma_joined and not nightly", 22),
        pytest.param("rdma_joined and nightly", 12, marks=pytest.mark.nightly),
    ],
)
def test_on_two_joined_machines(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    marker: str,
    least: int,
) -> None:
    monkeypatch.chdir(ROOT)
    expected, tests = selected.selected(marker)
    assert expected >= least
    # Each guest writes a file of its own: the share is one folder for both.
    script = (
        '. tests/guest/join.sh; "$@" --junitxml="$GUEST_SHARE/$GUEST_ROLE.xml" || exit;'
        f"[ $GUEST_ROLE = A ] || exit {OF_B}"
    )
    status = guest.run(
        ["bash", "-c", script, "-", *tests],
        Machine(cpus=1, memory_mib=1024),
        joined=True,
        variables=environment,
        share=tmp_path,
        time_limit_s=1200,
    )
    printed = said(capfd)
    # B's command ends with another status than A's, and of several ones that is what counts.
    assert_all_passed([tmp_path / f"{role}.xml" for role in "AB"], expected, status, printed, good=OF_B)
    for role in "AB":
        assert f"\n{role} [soft-roce] rxe0 on eth0 is active\n" in f"\n{printed}"
