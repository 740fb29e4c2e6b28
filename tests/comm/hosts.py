"""Hosts without machines: network namespaces joined by a bridge, whose cables can be pulled.

    with hosts.joined(3) as lab:
        with job.start(3, ..., lab=lab) as ranks:
            lab.pull(2)

A user namespace of one's own gives the rights, so root is not needed; some containers forbid it.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

NETWORK = "10.77.0."

# Each host is a process that sleeps in a network namespace of its own; the bridge stands in the one around them.
_BUILD = """
set -e
ip link set lo up
ip link add bridge type bridge
ip link set bridge up
for host in $(seq 0 $(($1 - 1))); do
    unshare -n sleep 1000 &
    pid=$!
    while [ "$(readlink /proc/$pid/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
    ip link add cable$host type veth peer name eth0 netns $pid
    ip link set cable$host master bridge up
    nsenter -t $pid -n sh -c "ip link set lo up; ip addr add 10.77.0.$((host + 1))/24 dev eth0; ip link set eth0 up"
    echo $pid
done
set +e
while read -r command; do $command; echo done; done
"""


@dataclass
class Lab:
    """Joined hosts, numbered from 0; host n has the address 10.77.0.(n + 1)."""

    shell: subprocess.Popen[str]
    pids: list[int]

    def address(self, host: int) -> str:
        """Its IPv4 address."""
        return f"{NETWORK}{host + 1}"

    def inside(self, host: int) -> list[str]:
        """What stands before a command to be run on a host."""
        return ["nsenter", "-t", str(self.pids[host]), "-U", "-n", "--preserve-credentials"]

    def pull(self, host: int) -> None:
        """Pull the cable out of the switch: packets vanish, and neither end is told."""
        self._do(f"ip link set cable{host} nomaster")

    def plug(self, host: int) -> None:
        """Put it in again."""
        self._do(f"ip link set cable{host} master bridge")

    def _do(self, command: str) -> None:
        assert self.shell.stdin is not None and self.shell.stdout is not None
        self.shell.stdin.write(command + "\n")
        self.shell.stdin.flush()
        assert self.shell.stdout.readline() == "done\n", command


def missing() -> str | None:
    """Why no hosts can be made here, or None."""
    done = subprocess.run(["unshare", "-rn", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() or "unshare failed" if done.returncode else None


@contextlib.contextmanager
def joined(count: int) -> Iterator[Lab]:
    """`count` hosts at one switch."""
    command = ["unshare", "-rn", "sh", "-c", _BUILD, "-", str(count)]
    shell = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert shell.stdin is not None and shell.stdout is not None
    pids: list[int] = []
    try:
        for _ in range(count):
            line = shell.stdout.readline()
            assert line.strip().isdigit(), line + shell.stdout.read()
            pids.append(int(line))
        yield Lab(shell, pids)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                subprocess.run(["kill", str(pid)], check=False)
        shell.stdin.close()
        shell.wait(10)
        shell.stdout.close()
