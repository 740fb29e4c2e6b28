"""Ranks that are forked from a process which has imported what they need: imports are most of a short rank's CPU time, and
take seconds where Python is emulated.

    nursery = Nursery(rdma=True)    # with what the rdma transport needs, and the other programs of rdma/
    rank = nursery.start(["rank_program.py", "repeat", "large"], environment)   # used as a subprocess.Popen
    nursery.close()

The nursery is a process of its own that has opened no device, so nothing of a device is shared. It forks at request and
tells of each end; requests and answers are lines of JSON, and a request brings the descriptor of the rank's output. One
`here` is itself forked off, from a caller of one thread that has opened no device either, and has its imports.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

_REQUEST_BYTES = 1 << 16


class Rank:
    """A forked rank, with what of subprocess.Popen's interface tests use."""

    def __init__(self, nursery: Nursery, pid: int, stdout: int):
        self._nursery, self.pid = nursery, pid
        self.returncode: int | None = None
        self.stdout = os.fdopen(stdout, encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ended(self.pid)
        return self.returncode

    def wait(self) -> int:
        while (status := self.poll()) is None:
            self._nursery.wait_for_news()
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> tuple[str, None]:
        text = self.stdout.read()
        self.stdout.close()
        self.wait()
        return text, None


class Nursery:
    """The process that forks ranks, as its parent sees it."""

    def __init__(self, *, rdma: bool, here: bool = False) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._wait: Callable[[], object]
        if here:
            pid = os.fork()
            if pid == 0:
                self._line.close()
                _serve_and_end(theirs, rdma=rdma)
            self._wait = lambda: os.waitpid(pid, 0)
        else:
            command = [sys.executable, __file__, str(theirs.fileno()), *(["rdma"] if rdma else [])]
            self._wait = subprocess.Popen(command, pass_fds=[theirs.fileno()]).wait
        theirs.close()
        self._started: list[int] = []
        self._ended: dict[int, int] = {}

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> Rank:
        """Run the `main` of a program of tests/comm; `command` is its name and arguments."""
        ours, theirs = os.pipe()
        request = json.dumps([list(command), dict(environment)]).encode()
        assert len(request) < _REQUEST_BYTES
        socket.send_fds(self._line, [request], [theirs])
        os.close(theirs)
        while not self._started:
            self._hear(wait=True)
        return Rank(self, self._started.pop(), ours)

    def ended(self, pid: int) -> int | None:
        """The status of a rank that has ended, as Popen gives it."""
        while pid not in self._ended and self._hear(wait=False):
            pass
        return self._ended.get(pid)

    def wait_for_news(self) -> None:
        """Until a rank has ended, of which `ended` then knows."""
        self._hear(wait=True)

    def _hear(self, *, wait: bool) -> bool:
        try:
            said = self._line.recv(1000, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        assert said, "the process that forks ranks has ended"
        kind, pid, status = json.loads(said)
        if kind == "started":
            self._started.append(pid)
        else:
            self._ended[pid] = status
        return True

    def close(self) -> None:
        self._line.close()
        self._wait()


def _serve_and_end(line: socket.socket, *, rdma: bool) -> NoReturn:
    """In a child of pytest: without what that does at its end, and where it puts what is printed and logged."""
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    logging.root.handlers.clear()
    try:
        _serve(line, rdma=rdma)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _serve(line: socket.socket, *, rdma: bool) -> None:
    """Fork at each request until the other side is gone."""
    importlib.import_module("rank_program")
    for name in ("engine_group", "node", "two_level"):
        importlib.import_module(f"cktrain.comm.{name}")
    if rdma:
        sys.path.insert(0, str(Path(__file__).parent / "rdma"))
        for name in ("peer", "registering"):
            importlib.import_module(name)
        importlib.import_module("cktrain.comm.transport.rdma")
        for name in ("native", "pyverbs"):
            importlib.import_module("cktrain.comm.transport.verbs").load_provider(name)
    gc.freeze()  # so that a collection in a rank leaves these pages alone, and shared
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    while True:
        if line in select.select([line, wake], [], [])[0]:
            try:
                request, outputs, _, _ = socket.recv_fds(line, _REQUEST_BYTES, 1)
            except ConnectionResetError:  # it has not read of all ends
                return
            if not request:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for fd in (line.fileno(), wake, woken):
                    os.close(fd)
                _be_rank(*json.loads(request), outputs[0])
            os.close(outputs[0])
            line.send(json.dumps(["started", pid, 0]).encode())
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 1000)
        for pid, status in iter(_reap, None):
            line.send(json.dumps(["ended", pid, status]).encode())


def _reap() -> tuple[int, int] | None:
    """A child that has ended, and its status as Popen gives it."""
    with contextlib.suppress(ChildProcessError):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            return pid, os.waitstatus_to_exitcode(status)
    return None


def _be_rank(command: list[str], environment: dict[str, str], output: int) -> NoReturn:
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = command
        status = importlib.import_module(Path(command[0]).stem).main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), rdma=sys.argv[2:] == ["rdma"])
