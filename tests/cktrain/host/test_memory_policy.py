"""The kernel's memory policy of a process, as /proc shows it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cktrain.host.memory_policy import policy_of

PROGRAM = """
import mmap, re, sys
from cktrain.host.memory_policy import set_memory_policy
set_memory_policy([int(node) for node in sys.argv[1].split(",")])
region = mmap.mmap(-1, 1 << 22)
region.write(b"x" * (1 << 22))
print(open("/proc/self/numa_maps").read())
"""


@pytest.mark.parametrize("nodes, shown", [("0", "prefer:0"), ("0,0", "interleave:0")])
def test_new_memory_comes_from_there(nodes, shown):
    done = subprocess.run([sys.executable, "-c", PROGRAM, nodes], capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("this container may not set a memory policy")
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_a_node_that_is_not_there():
    done = subprocess.run([sys.executable, "-c", PROGRAM, "900"], capture_output=True, text=True)
    assert "OSError" in done.stderr


def test_in_words():
    assert policy_of([3]) == "node 3"
    assert policy_of([0, 1]) == "interleaved over nodes 0,1"
    assert policy_of([]) == "as the kernel chooses"
