"""A job of `cktrain launch`: an agent on every host, the ranks that they start, and the first failure that stops all.

First every agent says what its host is; only when all have, and nothing speaks against it, the ranks are started. The
launcher reads everything in one thread. A rank that fails gives the others a moment to say what they saw, then all are
killed, and the failed rank's last lines are shown. Status 75 ("stopped, resume me") is no failure.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from cktrain import __version__
from cktrain.best_effort import LineFile
from cktrain.launch.agent import START, Start
from cktrain.launch.hosts import Host, meeting_address
from cktrain.launch.messages import PROTOCOL, Lines, decode, encode
from cktrain.training.stop import StopFlag, catchable

EXIT_INPUT, EXIT_STOPPED = 2, 75
GRACE_S = 5.0
"""How long the other ranks may go on after the first failure: as long as it takes them to see it."""
LAST_LINES = 20
# What a rank needs of the launcher's environment, where the remote shell gives none.
_CARRIED = {"PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "LANG", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
_CARRIED_PREFIXES = ("CKTRAIN_", "SLURM_JOB_END_TIME")
DEFAULT_SHELL = "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3"


class LaunchError(RuntimeError):
    """A host that cannot be used, or was lost."""


@dataclass
class Remote:
    """The launcher's end of one agent."""

    host: Host
    process: subprocess.Popen[bytes]
    facts: dict[str, Any] = field(default_factory=dict)
    lines: Lines = field(default_factory=Lines)
    said: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    """Its last words outside of the protocol: the remote shell's, or Python's."""
    open: bool = True
    running: set[int] = field(default_factory=set)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message; an agent that is gone is found out by its end of stream."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(encode(message))


@dataclass
class Ended:
    """The failure that stopped the job."""

    status: int
    text: str


class Job:
    """The agents of a job, as a context: leaving it stops them, and their ranks."""

    def __init__(self, hosts: Sequence[Host], *, shell: str = DEFAULT_SHELL, python: str = sys.executable):
        self._shell, self._python = shlex.split(shell), python
        self._hosts = hosts
        self.remotes: list[Remote] = []
        self._selector = selectors.DefaultSelector()
        self._folder: Path | None = None
        self._logs: dict[int, LineFile] = {}
        self._last: dict[int, deque[str]] = {}
        self._lines: dict[tuple[int, bool], Lines] = {}
        self._statuses: dict[int, int] = {}
        self._failure: Ended | None = None
        self._interrupts = 0
        self._signals: deque[int] = deque()

    def __enter__(self) -> Job:
        try:
            for host in self._hosts:
                self._connect(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for remote in self.remotes:
            remote.tell({"stop": True})
            with contextlib.suppress(OSError):
                assert remote.process.stdin is not None
                remote.process.stdin.close()
        deadline = time.monotonic() + GRACE_S
        for remote in self.remotes:
            try:
                remote.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                remote.process.kill()
                remote.process.wait()

    def _connect(self, host: Host) -> None:
        python = sys.executable if host.here else self._python
        command = [python, "-c", START.format(module="cktrain.launch.agent")]
        if not host.here:
            command = [*self._shell, host.name, shlex.join(["exec", *command])]
        try:
            process = subprocess.Popen(
                command,
                bufsize=0,  # a signal handler writes too
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is the launcher's to hand on
            )
        except OSError as error:
            raise LaunchError(
                f"[launch] cannot run {command[0]}: {error.strerror}. Give another remote shell with --rsh."
            ) from error
        remote = Remote(host, process)
        self.remotes.append(remote)
        assert process.stdout is not None and process.stderr is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, (remote, False))
        self._selector.register(process.stderr, selectors.EVENT_READ, (remote, True))

    # ------------------------------------------------------------------------------------------- before the start

    def meet(self, timeout_s: float) -> None:
        """Wait until every host has said what it is.

        Raises:
            LaunchError: hosts that cannot be reached, have no cktrain, or another version of it.
        """
        deadline = time.monotonic() + timeout_s
        while any(not remote.facts and remote.open for remote in self.remotes):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._read(left)
        problems = [text for remote in self.remotes if (text := self._problem(remote, timeout_s))]
        if problems:
            raise LaunchError("\n".join(problems))

    def _problem(self, remote: Remote, timeout_s: float) -> str:
        name, facts = remote.host.name, remote.facts
        if facts:
            if (facts["protocol"], facts["version"]) == (PROTOCOL, __version__):
                return ""
            return (
                f"[launch] {name} has cktrain {facts['version']} ({facts['python']}), this is {__version__}. "
                "Install the same version on all hosts."
            )
        words = "\n    ".join(remote.said)
        if remote.open:
            return (
                f"[launch] {name} did not answer within {timeout_s:g} s. Check: {self._check(name)}\n    {words}"
            ).rstrip()
        status = remote.process.wait()
        what = "cannot start cktrain's agent" if "Traceback" in words else "cannot be reached"
        return (
            f"[launch] {name} {what} (exit status {status}). Check: {self._check(name)}\n    {words}"
        ).rstrip()

    def _check(self, name: str) -> str:
        return f"{self._shell[0]} {name} {self._python} -c '\"import cktrain.launch\"'"

    # ------------------------------------------------------------------------------------------------- the run

    def run(
        self,
        arguments: Sequence[str],
        counts: Sequence[int],
        *,
        environ: Mapping[str, str],
        carried: Sequence[str] = (),
        interface: str | None = None,
        logs: Path | None = None,
        name: str = "cktrain launch",
        flag: StopFlag | None = None,
    ) -> int:
        """Start the ranks and wait for their end; returns the exit status.

        Args:
            arguments: of the `cktrain` command that every rank runs.
            counts: ranks of each host.
            environ: the launcher's environment.
            carried: names of further variables to hand to the ranks.
            interface: of the first host, at which the ranks meet.
            logs: folder that gets `rank<N>.out`, all that rank N printed; None: nothing is kept.
            name: the launcher's command, for the line that says how to resume.
            flag: the launcher's own, which leaves the signals to the ranks once they are started.
        """
        world = sum(counts)
        # Other launchers' variables would only confuse; the job's own replace older ones of this kind.
        environment = {
            key: value
            for key, value in environ.items()
            if key in _CARRIED or key in carried or key.startswith(_CARRIED_PREFIXES)
        }
        secret = secrets.token_hex(32)
        environment["CKTRAIN_JOB"] = f"launch-{secrets.token_hex(8)}"
        environment["CKTRAIN_LAUNCHER"] = name
        first = self.remotes[0]
        address = "127.0.0.1"
        if len(self.remotes) > 1:
            address = meeting_address(first.host.name, first.facts["addresses"], interface)
        environment["CKTRAIN_RENDEZVOUS"] = f"{address}:{first.facts['port']}"
        self._folder = logs
        if logs is not None:
            with contextlib.suppress(OSError):  # the log that has no place then says so
                logs.mkdir(parents=True, exist_ok=True)
            self._logs = {
                rank: LineFile(logs / f"rank{rank}.out", "[launch] what a rank prints:")
                for rank in range(world)
            }
            for log in self._logs.values():
                with log.effort:
                    log.path.touch()
        with self._forwarding(flag):
            begin = 0
            for remote, ranks in zip(self.remotes, counts, strict=True):
                remote.running = set(range(begin, begin + ranks))
                start = Start(begin, ranks, world, list(arguments), str(Path.cwd()), environment, secret)
                remote.tell({"start": asdict(start)})
                begin += ranks
            self._wait()
        return self._conclude()

    def _wait(self) -> None:
        """Until all ranks have ended, or the grace after the first failure is over."""
        deadline = None
        while any(remote.running for remote in self.remotes):
            while self._signals:
                number = self._signals.popleft()
                if number == signal.SIGTSTP:
                    self._suspend()
                else:
                    self._tell_all(number)
            if self._failure is not None and deadline is None:
                deadline = time.monotonic() + GRACE_S
            if (deadline is not None and time.monotonic() > deadline) or self._interrupts > 1:
                return
            self._read(0.2)

    def _tell_all(self, number: int) -> None:
        for remote in self.remotes:
            remote.tell({"signal": number})

    def _suspend(self) -> None:
        """Stop the ranks and then this process, as a terminal's Ctrl-Z stops a command; they go on when it does."""
        self._tell_all(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._tell_all(signal.SIGCONT)

    def _conclude(self) -> int:
        for (rank, error), lines in self._lines.items():
            for line in lines.flush():
                self._show(rank, error, line)
        if self._failure is not None:
            if self._failure.text:
                print(f"cktrain: {self._failure.text}", file=sys.stderr, flush=True)
            if self._folder is not None:
                print(
                    f"cktrain: what the ranks printed is kept in {self._folder}", file=sys.stderr, flush=True
                )
            return self._failure.status
        if self._interrupts > 1:
            print("cktrain: interrupted", file=sys.stderr, flush=True)
            return 128 + signal.SIGINT
        return max(self._statuses.values(), default=1)

    @contextlib.contextmanager
    def _forwarding(self, flag: StopFlag | None) -> Any:
        """Hand signals on to the ranks; a second interrupt kills them."""

        def forward(number: int, _frame: FrameType | None) -> None:
            self._interrupts += number == signal.SIGINT
            self._signals.append(number)  # `_wait` sends it: here another message may be half written

        numbers = catchable()
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:  # a shell without job control ignores it
            numbers.append(signal.SIGTSTP)
        before = {number: signal.signal(number, forward) for number in numbers}
        if flag is not None:
            flag.at_once = False
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ---------------------------------------------------------------------------------------------- what they say

    def _read(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            remote, words = key.data
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._selector.unregister(key.fileobj)
                if not words:
                    self._lost(remote)
            elif words:
                self._note(remote, data.splitlines())
            else:
                for line in remote.lines.feed(data):
                    self._take(remote, line)

    def _take(self, remote: Remote, line: bytes) -> None:
        message = decode(line)
        if message is None:
            self._note(remote, [line])
        elif "hello" in message:
            remote.facts = message["hello"]
        elif "problem" in message:
            remote.running.clear()
            self._fail(Ended(1, f"[launch] {remote.host.name}: {message['problem']}."))
        elif "text" in message:
            rank, error = message["rank"], message["error"]
            data = message["text"].encode("utf-8", "surrogateescape")
            for text in self._lines.setdefault((rank, error), Lines()).feed(data):
                self._show(rank, error, text)
        elif "status" in message:
            self._ended(remote, message["rank"], message["status"])

    def _note(self, remote: Remote, lines: Sequence[bytes]) -> None:
        """Keep what the remote shell says; after the start it is shown too."""
        for line in lines:
            text = line.decode("utf-8", "replace")
            remote.said.append(text)
            if remote.running:
                print(f"[{remote.host.name}] {text}", file=sys.stderr, flush=True)

    def _show(self, rank: int, error: bool, line: bytes) -> None:
        """Keep and print a line of a rank; rank 0's as it is, the others' with their number."""
        if rank in self._logs:
            self._logs[rank].write(line)
        text = line.decode("utf-8", "replace")
        self._last.setdefault(rank, deque(maxlen=LAST_LINES)).append(text)
        prefix = f"[rank {rank}] " if rank else ""
        print(prefix + text, file=sys.stderr if error else sys.stdout, flush=True)

    def _ended(self, remote: Remote, rank: int, status: int) -> None:
        remote.running.discard(rank)
        self._statuses[rank] = 128 - status if status < 0 else status
        if status in (0, EXIT_STOPPED):
            return
        how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        for error in (False, True):
            for line in self._lines.get((rank, error), Lines()).flush():
                self._show(rank, error, line)
        if (
            status == EXIT_INPUT
        ):  # the ranks agree on what is wrong with the user's input, and rank 0 has said it
            self._fail(Ended(status, ""))
            return
        last = "".join(f"\n    {line}" for line in self._last.get(rank) or self._logged(rank))
        words = f" Its last lines:{last}" if last else " It printed nothing."
        if -status == signal.SIGKILL:
            words += "\nWhere memory runs out the kernel kills so: dmesg says it, and cktrain plan what the run needs."
        self._fail(Ended(self._statuses[rank], f"[launch] rank {rank} on {remote.host.name} {how}.{words}"))

    def _logged(self, rank: int) -> list[str]:
        """The end of what a rank wrote to its log: all but rank 0 print nothing."""
        if self._folder is None:
            return []
        try:
            text = (self._folder / f"rank{rank}.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return text.splitlines()[-LAST_LINES:]

    def _lost(self, remote: Remote) -> None:
        """The agent, or the remote shell, is gone."""
        remote.open = False
        if not remote.running:
            return
        status = remote.process.wait()
        ranks = ", ".join(map(str, sorted(remote.running)))
        remote.running.clear()
        words = "".join(f"\n    {line}" for line in remote.said)
        text = f"[launch] {remote.host.name} was lost with rank {ranks} (its shell ended with status {status}).{words}"
        self._fail(Ended(1, text))

    def _fail(self, failure: Ended) -> None:
        """Only the first failure counts: the others follow from it."""
        self._failure = self._failure or failure


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
