"""A guest passes on what its command prints and how it ends, and says so when it cannot; for two joined ones
test_soft_roce.py says it."""

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


def test_output_status_files_variables_and_numa_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked, nodes = f"/var/tmp/of-the-guest-{os.getpid()}", "/sys/devices/system/node"
    script = (
        f"uname -n; echo $COLOUR; pwd; echo kept >{tmp_path}/kept; echo lost >{marked};"
        f"cat {nodes}/node*/cpulist {nodes}/node0/distance; echo wrong >&2; exit 7"
    )
    machine = Machine(cpus=4, memory_mib=1024, numa_nodes=2)
    assert guest.run(bash(script), machine, variables={"COLOUR": "deep 'red'"}, share=tmp_path) == 7
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1:] == ["deep 'red'", os.getcwd(), "0-1", "2-3", "10 21", "wrong"]
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
