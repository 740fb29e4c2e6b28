"""`cktrain chat` as a process: lines from a pipe, a terminal with Ctrl-C, and doors that close."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "cktrain"))
from chat_models import write_weights

PATIENCE_S = 60
COMMAND = [sys.executable, "-m", "cktrain.launch.cli", "chat", "model", "--temperature", "0"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a model of many positions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    write_weights(Path("model"), positions=200_000)


def talk(lines: bytes, *options: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *options],
        input=lines,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=PATIENCE_S,
    )


def test_lines_of_a_pipe_are_messages_in_any_locale():
    Path("a.jsonl").write_text('{"half": ')  # somebody's editor left no end of line
    lines = "Grüße, 東京 🙂\n\n//etc is what?\n/save a.jsonl\n/nonsense\n\xff\n/reset\n/save b.jsonl\nHi\n/exit\nno\n"
    data = lines.encode().replace("\xff".encode(), b"\xff")
    options = ["--max-tokens", "8", "--system", "Sei knapp: 短", "--verbose"]
    done = talk(data, *options, LC_ALL="C", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr.decode()
    half, written = Path("a.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(written)
    assert half == '{"half": '
    said = [message["content"] for message in row["messages"]]
    assert [message["role"] for message in row["messages"]] == ["system", *["user", "assistant"] * 2]
    assert said[0::1][0] == "Sei knapp: 短" and said[1] == "Grüße, 東京 🙂" and said[3] == "/etc is what?"
    assert done.stdout.decode().startswith(f"{said[2]}\n{said[4]}\n")
    error = done.stderr.decode("utf-8", "replace")
    assert "/nonsense is none of /reset" in error and "not UTF-8 text at byte 0" in error
    assert "nothing was said yet" in error and not Path("b.jsonl").exists()
    assert error.count("tokens before it") == 3 and ", 0 of them not read again" in error
    assert "> " not in error and "> " not in done.stdout.decode()


def test_the_end_of_input_ends_it_and_what_is_too_long_does_not():
    done = talk(b"long " * 500 + b"\nHi", "--context", "128", "--max-tokens", "4")
    assert done.returncode == 0 and b"[chat] the message has" in done.stderr
    assert done.stdout.count(b"\n") >= 1


def test_doors_that_are_closed():
    for redirection, message in ((">&-", "standard output is closed"), ("<&-", "standard input is closed")):
        done = subprocess.run(
            ["sh", "-c", f"{' '.join(COMMAND)} {redirection}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stdin.write(b"Hi\n")
    process.stdin.flush()
    assert process.wait(PATIENCE_S) == 1 and b"Traceback" not in process.stderr.read()


class Terminal:
    """A process of `cktrain chat` whose three streams are one terminal."""

    def __init__(self, *options: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "-c", *COMMAND, *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb", **environment},
        )
        os.close(slave)
        self.shown = b""

    def wait_for(self, text: bytes, interrupts: bool = False) -> None:
        """Until the terminal shows it after what was waited for before; with `interrupts` Ctrl-C is typed until then.

        Python's readline does not see one that comes after its prompt and before it waits for input.
        """
        end = time.monotonic() + PATIENCE_S
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if interrupts:
                self.write("\x03")
            if select.select([self.master], [], [], 1)[0]:
                self.shown += os.read(self.master, 4096)
        self.shown = self.shown.partition(text)[2]

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        """Its status; what it still shows is read."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self.master, 4096)
        os.close(self.master)
        return self.process.wait(1)


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_conversation():
    terminal = Terminal("--max-tokens", "150000", "--context", "190000")
    terminal.wait_for(b"> ")
    terminal.wait_for(b"(/exit or Ctrl-D ends)", interrupts=True)
    terminal.wait_for(b"> ")
    time.sleep(0.5)
    terminal.write("東京?\n")
    terminal.wait_for("東京?".encode())
    time.sleep(1)
    terminal.write("\x03")
    terminal.wait_for(b"(stopped)")
    terminal.wait_for(b"> ")
    terminal.write("/save kept.jsonl\n")
    terminal.wait_for(b"messages appended")
    terminal.wait_for(b"> ")
    terminal.write("\x04")
    assert terminal.end() == 0
    assert json.loads(Path("kept.jsonl").read_text(encoding="utf-8"))["messages"][0]["content"] == "東京?"


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_terminal_takes_every_character_in_any_locale(environment):
    terminal = Terminal("--max-tokens", "2", **environment)
    terminal.wait_for(b"> ")
    time.sleep(0.5)
    terminal.write("éü\x7f 東 🙂\n/save kept.jsonl\n")
    terminal.wait_for(b"messages appended")
    terminal.wait_for(b"> ")
    terminal.write("\x04")
    assert terminal.end() == 0
    (row,) = map(json.loads, Path("kept.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["messages"][0]["content"] == "é 東 🙂"


def test_a_terminal_that_goes_away_ends_it(hangup):
    terminal = Terminal("--max-tokens", "150000", "--context", "190000")
    terminal.wait_for(b"> ")
    terminal.write("Hi\n")
    time.sleep(0.5)
    terminal.process.send_signal(signal.SIGHUP)
    assert terminal.end() == 128 + signal.SIGHUP and b"Traceback" not in terminal.shown
