"""A guest passes on what its command prints and how it ends, and says so when it cannot."""

import os
import re
from pathlib import Path

import guest
import pytest
from guest import GUEST_DIED, TIME_LIMIT, Machine

pytestmark = pytest.mark.guest

SMALL = Machine(cpus=1, memory_mib=512)


def bash(script: str) -> list[str]:
    return ["bash", "-c", script]


def test_output_status_files_and_variables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marked = f"/var/tmp/of-the-guest-{os.getpid()}"
    script = f"uname -n; echo $COLOUR; pwd; echo kept >{tmp_path}/kept; echo lost >{marked}; echo wrong >&2; exit 7"
    assert guest.run(bash(script), SMALL, variables={"COLOUR": "deep 'red'"}, share=tmp_path) == 7
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1:] == ["deep 'red'", os.getcwd(), "wrong"]
    assert "exit status 7" in shown.err
    assert (tmp_path / "kept").read_text() == "kept\n"
    assert not Path(marked).exists()  # what is written elsewhere never reaches the host


def test_a_panic_is_no_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert guest.run(bash("echo before; echo c >/proc/sysrq-trigger"), SMALL) == GUEST_DIED
    shown = capsys.readouterr()
    assert shown.out == "before\n" and "panicked before the command was over" in shown.err


def test_the_time_limit(capsys: pytest.CaptureFixture[str]) -> None:
    script = "echo first; printf 'second, which has no end'; sleep 600"
    assert guest.run(bash(script), SMALL, time_limit_s=2) == TIME_LIMIT
    shown = capsys.readouterr().err
    assert re.search(r"was stopped: its time limit of \d+ s has passed \(2 s on a host that boots in", shown)
    assert "The last line that it printed: second, which has no end." in shown


def test_numa_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    script = "cat /sys/devices/system/node/node*/cpulist /sys/devices/system/node/node0/distance"
    assert guest.run(bash(script), Machine(cpus=4, memory_mib=1024, numa_nodes=2)) == 0
    assert capsys.readouterr().out.splitlines() == ["0-1", "2-3", "10 21"]


def test_joined_guests_reach_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        ". tests/guest/join.sh; peer=10.8.0.$([ $GUEST_ROLE = A ] && echo 2 || echo 1);"
        "for _ in $(seq 60); do busybox ping -c 1 -W 1 -s 8900 $peer >/dev/null && echo reached && break; done;"
        "sleep 3; [ $GUEST_ROLE = A ] || exit 5"
    )
    assert guest.run(bash(script), SMALL, joined=True) == 5
    out = capsys.readouterr().out.splitlines()
    assert "A reached" in out and "B reached" in out
    assert "A [soft-roce] rxe0 on eth0 is active" in out
