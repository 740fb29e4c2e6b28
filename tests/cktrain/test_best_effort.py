"""What only watches: lines that are whole or not there, one warning where it can be seen, nothing raised."""

from __future__ import annotations

import io
import logging
import os
import resource
import sys
import threading

import pytest

import cktrain.best_effort as best_effort
from cktrain.best_effort import BestEffort, LineFile, WatchedStream, watched_streams


def test_an_error_is_warned_of_once_and_an_interrupt_goes_through(capsys):
    effort = BestEffort("[x] the thing", "Do that.")
    for _ in range(3):
        with effort:
            raise OSError(5, "Input/output error")
        assert effort.failing
    assert capsys.readouterr().err == "cktrain: warning: [x] the thing: Input/output error. Do that.\n"
    with effort:
        pass
    assert not effort.failing and effort.failures == 3
    with pytest.raises(KeyboardInterrupt), effort:
        raise KeyboardInterrupt


def test_a_warning_goes_to_the_handlers_that_work(capsys):
    class Kept(logging.Handler):
        failing = False

        def __init__(self):
            super().__init__()
            self.lines = []

        def emit(self, record):
            self.lines.append(record.getMessage())

    logger, works, broken = logging.getLogger("cktrain"), Kept(), Kept()
    broken.failing = True
    for handler in (works, broken):
        logger.addHandler(handler)
    try:
        best_effort.warn("so")
        assert works.lines == ["warning: so"] and broken.lines == []
        assert capsys.readouterr().err == "cktrain: warning: so\n"
        broken.failing = False
        best_effort.warn("both")
        assert broken.lines == ["warning: both"] and capsys.readouterr().err == ""
    finally:
        for handler in (works, broken):
            logger.removeHandler(handler)


def test_a_line_that_does_not_fit_is_taken_back(tmp_path, capsys):
    file = LineFile(tmp_path / "lines", "the log")
    file.write("whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        file.write("too long by far")
        file.write("again")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.write("after")
    assert (tmp_path / "lines").read_text() == "whole\nafter\n"
    assert file.effort.failures == 2
    assert capsys.readouterr().err.count("the log") == 1


def test_a_half_line_is_ended_before_the_next(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'one\n{"half\xff')
    LineFile(path, "it").write("next é \udcff")
    assert path.read_bytes() == b'one\n{"half\xff\n' + "next é \\udcff\n".encode()


@pytest.mark.parametrize("what", ["a folder", "a pipe", "gone", "full"])
def test_odd_files_are_one_warning_and_no_wait(tmp_path, capsys, what):
    path = tmp_path / "in" / "lines"
    path.parent.mkdir()
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "gone":
        path.parent.rmdir()
    else:
        path.symlink_to("/dev/full")
    file = LineFile(path, "the log")
    for _ in range(3):
        file.write("x" * 40_000)
    warned = 0 if what == "a pipe" else 1  # without a reader it takes what its buffer holds
    assert (file.effort.failures, capsys.readouterr().err.count("warning: the log")) == (3 * warned, warned)


def test_a_folder_that_comes_back_is_written_again(tmp_path):
    file = LineFile(tmp_path / "in" / "lines", "the log")
    file.write("lost")
    (tmp_path / "in").mkdir()
    file.write("kept")
    (tmp_path / "in" / "lines").unlink()
    file.write("again")
    assert (tmp_path / "in" / "lines").read_text() == "again\n"


def stream_to(target, encoding="utf-8"):
    return WatchedStream(io.TextIOWrapper(target, encoding=encoding, write_through=True), "standard output")


def test_a_closed_pipe_and_a_full_disk_are_one_warning(capsys):
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor in (writer, os.open("/dev/full", os.O_WRONLY)):
        with os.fdopen(descriptor, "wb", buffering=0) as raw:
            stream = stream_to(raw)
            for _ in range(3):
                print("x", file=stream, flush=True)
            assert stream.failing and stream.effort.failures >= 3
    said = capsys.readouterr().err
    assert said.count("standard output cannot be written: Broken pipe.") == 1
    assert said.count("standard output cannot be written: No space left on device.") == 1


def test_a_character_that_the_terminal_lacks_is_an_escape(tmp_path):
    with (tmp_path / "out").open("wb", buffering=0) as raw:
        stream_to(raw, "ascii").write("café \udc80\n")
    assert (tmp_path / "out").read_bytes() == b"caf\\xe9 \\udc80\n"


def test_a_reader_that_does_not_read_is_passed_over_and_found_again(monkeypatch, capsys):
    monkeypatch.setattr(best_effort, "PATIENCE_S", 0.05)
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", buffering=0) as raw:
        stream = stream_to(raw)
        line = "x" * 1000 + "\n"
        while not stream.failing:
            stream.write(line)
        for _ in range(10):
            stream.write(line)  # at once: the patience is spent once
        got = []
        drain = threading.Thread(target=lambda: got.append(os.read(reader, 1 << 20)))
        drain.start()
        drain.join(10)
        stream.write("here again\n")
        assert not stream.failing
        assert os.read(reader, 1 << 20).endswith(b"here again\n")
    os.close(reader)
    assert capsys.readouterr().err.count("nobody has read it for 0 s") == 1


def test_closed_descriptors_are_no_place_for_the_next_file(tmp_path):
    """In a child without 0, 1 and 2: a file that is opened gets another number, and printing is nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for descriptor in range(3):
                os.close(descriptor)
            sys.stdout = sys.stderr = None
            with watched_streams(), (tmp_path / "file").open("wb", buffering=0) as file:
                print("nothing", flush=True)
                print("nothing", file=sys.stderr, flush=True)
                status = 0 if file.fileno() > 2 else 1
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_stream_of_a_programs_own_may_only_write():
    """As programs that log both to a file and to the terminal have, and notebooks."""
    said = []

    class OnlyWrites:
        def write(self, text):
            said.append(text)
            return len(text)

        def flush(self):
            pass

    stream = WatchedStream(OnlyWrites(), "standard output")
    assert not stream.isatty() and stream.encoding == "utf-8"
    print("a line", file=stream, flush=True)
    assert "".join(said) == "a line\n" and not stream.failing
