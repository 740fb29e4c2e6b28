"""Where this process's memory comes from: the kernel's memory policy, set before anything big is allocated.

set_mempolicy(2) by number, since Python has no function for it and libnuma need not be installed. Threads that are
started later inherit the policy.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence

_NUMBER = {"x86_64": 238, "aarch64": 237}
_NUMBER_OF_GET = {"x86_64": 239, "aarch64": 236}
_PREFERRED, _INTERLEAVE = 1, 3
_MAX_NODES = 1024


def policy_of(nodes: Sequence[int]) -> str:
    """Return in words what `set_memory_policy` does for a rank whose cores are on `nodes`."""
    if len(nodes) == 1:
        return f"node {nodes[0]}"
    return f"interleaved over nodes {','.join(map(str, nodes))}" if nodes else "as the kernel chooses"


def set_memory_policy(nodes: Sequence[int]) -> None:
    """Take memory from these NUMA nodes: from one of them where there is room, from several in turn.

    One node is preferred and not forced: a full node gives slower memory instead of a killed process.

    Raises:
        OSError: the kernel refuses (a container's seccomp filter, a cpuset without that node), or is unknown.
    """
    number = _NUMBER.get(platform.machine())
    if number is None:
        raise OSError(f"no set_mempolicy is known for {platform.machine()}")
    word = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (_MAX_NODES // word))()
    for node in nodes:
        mask[node // word] |= 1 << node % word
    mode = _PREFERRED if len(nodes) == 1 else _INTERLEAVE
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel reads one bit less than it is told.
    arguments = ctypes.c_long(number), ctypes.c_long(mode), mask, ctypes.c_ulong(_MAX_NODES + 1)
    if libc.syscall(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def why_refused() -> str | None:
    """Why the kernel would refuse a memory policy, or None; asked by get_mempolicy(2), which changes nothing."""
    number = _NUMBER_OF_GET.get(platform.machine())
    if number is None:
        return f"no get_mempolicy is known for {platform.machine()}"
    libc, none = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
    if libc.syscall(ctypes.c_long(number), none, none, ctypes.c_ulong(0), none, ctypes.c_ulong(0)) == 0:
        return None
    return os.strerror(ctypes.get_errno())
