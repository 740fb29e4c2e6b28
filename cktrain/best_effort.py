"""What only watches a run never ends it: terminal lines, the progress bar, log files, metrics, figures of memory, tidying.

Whoever writes for a watcher does it inside `BestEffort`. The first failure is a warning, in whichever channel still
works; the run goes on, and the next line is tried again, since a full disk or a lost mount may come back. Two kinds of
channel are built on it: `LineFile`, which appends whole lines to a file, and `WatchedStream` around standard output and
standard error. What a command was asked for (shards, weights, the text of `generate`) is no watcher: its errors count.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import stat
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

PATIENCE_S = 10.0
"""How long a reader of standard output may read nothing (Ctrl-S, a stopped pager) before it is passed over."""
_PIECE = 4096  # what a pipe or a terminal that is said to be writable takes without waiting (PIPE_BUF)


class BestEffort:
    """Context manager around what may fail: `what` is warned of at the first exception, and `remedy` says what to do.

    Only exceptions of the kind `Exception` are taken: an interrupt goes through.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        self.failing = False
        """Whether the last attempt failed."""
        self.failures = 0

    def __enter__(self) -> BestEffort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.failing = isinstance(error, Exception)
        if not self.failing:
            return False
        self.failures += 1
        if self.failures == 1:
            assert error is not None
            warn(f"{self.what}: {reason(error)}. {self.remedy}")
        return True


def warn(text: str) -> None:
    """Log a warning through the handlers that work; on standard error too when one of them does not, or there is none.

    A handler whose attribute `failing` is true does not work.
    """
    logger = logging.getLogger("cktrain")
    working = [handler for handler in logger.handlers if not getattr(handler, "failing", False)]
    record = logger.makeRecord(logger.name, logging.WARNING, "", 0, f"warning: {text}", (), None)
    for handler in working:
        handler.handle(record)
    if not working or len(working) < len(logger.handlers):
        with contextlib.suppress(Exception):
            print(f"cktrain: warning: {text}", file=sys.stderr, flush=True)


def reason(error: BaseException) -> str:
    """An exception in a few words."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return words.rstrip(".") or type(error).__name__


class LineFile:
    """Appends whole lines to a file, opened for each: a folder that was lost and came back is found again.

    A line that does not fit (full disk, size limit) is taken back; what a killed writer left without an end is ended
    before the next line, so that a line that was written whole is always a line.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.effort = BestEffort(
            f"{what} {path} cannot be written", "The run goes on; these lines are missing."
        )

    def write(self, line: str | bytes) -> None:
        """Append `line`, which has no end of line of its own; never raises an Exception."""
        with self.effort:
            data = line if isinstance(line, bytes) else line.encode("utf-8", "backslashreplace")
            append_line(self.path, data)


def append_line(path: Path, line: bytes) -> None:
    """Append a line, which has no end of its own, whole or not at all; raises OSError. A half line before it is ended."""
    # Neither a pipe without a reader nor one that is full holds up the run.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    try:
        _append(descriptor, line + b"\n")
    finally:
        os.close(descriptor)


def _append(descriptor: int, data: bytes) -> None:
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    size = os.fstat(descriptor).st_size
    if regular and size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data
    done = 0
    try:
        while done < len(data):
            done += os.write(descriptor, data[done:])
    except OSError:
        if regular and done:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
        raise


class WatchedStream(io.TextIOBase):
    """Standard output or error of a command whose work is not what it prints: writing never raises an Exception.

    Nothing is buffered, so that nothing is left that would fail when Python ends, and a character that the terminal's
    encoding lacks is written as an escape. Lines that nobody reads for `PATIENCE_S` are left out, here alone.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._held = False
        remedy = "The run goes on; what it says stands in its log, where it has one."
        self.effort = BestEffort(f"{name} cannot be written", remedy)
        if stream is None:  # closed by whoever started the command, who wants nothing
            self.effort.failing, self.effort.failures = True, 1

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's own."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def failing(self) -> bool:
        """Whether the last write failed."""
        return self.effort.failing

    def isatty(self) -> bool:
        """Whether it is a terminal; one that is gone is none."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError, AttributeError):  # one that is a program's own may only write
            return False

    def fileno(self) -> int:
        """The stream's descriptor."""
        if self._descriptor is None:
            raise io.UnsupportedOperation("fileno")
        return self._descriptor

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, text: str) -> int:
        """Write it now, or not at all; returns its length."""
        if self._stream is None:
            return len(text)
        with self.effort:
            if self._descriptor is None:
                self._stream.write(text)
                self._stream.flush()
            else:
                self._put(self._descriptor, text.encode(self.encoding, "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Nothing: there is no buffer."""

    def _put(self, descriptor: int, data: bytes) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while data:
            began = time.monotonic()
            if not poll.poll(0 if self._held else 1e3 * PATIENCE_S):
                waited = time.monotonic() - began
                self._held = True
                raise OSError(errno.EAGAIN, f"nobody has read it for {waited:.0f} s")
            self._held = False
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(descriptor, data[:_PIECE]) :]


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None


@contextlib.contextmanager
def watched_streams(*, output: bool = True) -> Any:
    """Context: `sys.stderr`, and with `output` `sys.stdout`, are `WatchedStream`s.

    Descriptors 0 to 2 that were closed are put on /dev/null first, or the next file would become one of them, and
    whoever prints would write into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(WatchedStream(sys.stderr, "standard error")))
        if output:
            stack.enter_context(contextlib.redirect_stdout(WatchedStream(sys.stdout, "standard output")))
        yield
