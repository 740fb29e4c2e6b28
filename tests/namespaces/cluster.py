"""Two hosts made of network namespaces: each with its own addresses, host name and processes, and a wire between them.

A process enters one through `shell`, a remote shell agent as `ssh` is one: it takes a host and a command, and gives the
command an empty environment. Needs root, `ip` and `unshare`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

SHELL = """#!/bin/sh
# NAME COMMAND: run the command in the namespace of that name, with nothing of the caller's environment
host=$1
shift
exec ip netns exec "$host" env -i unshare --uts sh -c 'hostname "$0"; cd /; eval "$1"' "$host" "$*"
"""


def not_ready() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if absent:
        return f"{' and '.join(absent)} is missing (apt-get install iproute2 util-linux)"
    trial = f"cktrain-trial-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", trial], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"the kernel makes no network namespace: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", trial], check=True)
    return None


class Cluster:
    """As a context: two namespaces, each named by its address, so that names need no resolution."""

    def __init__(self, folder: Path) -> None:
        # A network of this process's own, out of the block for benchmarks (RFC 2544).
        network = f"198.18.{os.getpid() % 250}"
        self.hosts = [f"{network}.1", f"{network}.2"]
        self.shell = folder / "shell.sh"

    def __enter__(self) -> Cluster:
        self.shell.write_text(SHELL)
        self.shell.chmod(0o755)
        self.__exit__()
        a, b = self.hosts
        for host in self.hosts:
            ip("netns", "add", host)
        ip("link", "add", "wire", "netns", a, "type", "veth", "peer", "name", "wire", "netns", b)
        for host in self.hosts:
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "addr", "add", f"{host}/24", "dev", "wire")
            ip("-n", host, "link", "set", "wire", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            if host in ip("netns", "list").split():
                for pid in self.processes(host):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
                ip("netns", "delete", host)

    def processes(self, host: str) -> list[int]:
        """Processes on a host."""
        return [int(pid) for pid in ip("netns", "pids", host).split()]

    def ranks(self, host: str) -> list[int]:
        """Processes on a host that train, in the order in which they were started."""
        found = []
        for pid in self.processes(host):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if (
                    b"train" in words
                    and b"launch" not in words
                    and not words[0].endswith((b"mpirun", b"prterun"))
                ):
                    found.append(pid)
        return sorted(found)

    def inside(self, host: str, *command: str) -> list[str]:
        """The command line that runs `command` on a host with this environment."""
        enter = ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c"]
        return [*enter, 'hostname "$0"; exec "$@"', host, *command]

    def assert_empty(self, limit_s: float = 10) -> None:
        """Nothing runs on any host any more."""
        deadline = time.monotonic() + limit_s
        while any(left := {host: self.processes(host) for host in self.hosts}.values()):
            assert time.monotonic() < deadline, f"{left} are still there"
            time.sleep(0.1)


def ip(*words: str) -> str:
    """Run iproute2's `ip`; its output."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
