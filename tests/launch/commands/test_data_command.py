"""`cktrain data prepare`: signals, streams that are closed, and what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cktrain.data import prepare as preparing
from cktrain.launch.cli import main

pytestmark = pytest.mark.usefixtures("hangup")

PREPARE = ["data", "prepare", "corpus.jsonl", "out", "--vocab-size", "270"]


@pytest.fixture(autouse=True)
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.jsonl").write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(20)))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_a_signal_leaves_nothing_behind(monkeypatch, capsys, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        for _ in range(1000):
            time.sleep(0.001)
        raise AssertionError("not interrupted")

    monkeypatch.setattr(preparing, "write_synced", interrupted)
    assert main(PREPARE) == 128 + number
    how = "interrupted" if name == "SIGINT" else f"ended by {name}"
    assert f"cktrain: {how}; nothing half made was kept" in capsys.readouterr().err
    assert os.listdir() == ["corpus.jsonl"]
    assert signal.getsignal(number) is before


def test_an_ignored_hangup_stays_ignored(monkeypatch):
    monkeypatch.setattr(
        preparing, "_check_splits", lambda *arguments: os.kill(os.getpid(), signal.SIGHUP), raising=True
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(PREPARE) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_streams_that_are_closed_or_full_end_nothing():
    """Standard output is full, standard input and error are closed: the folder is made, and nothing is written into it."""
    closing = "import os, sys; os.close(0); os.close(2); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-m", "cktrain.launch.cli", *PREPARE]
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", closing, *command], stdout=full, check=False)
    assert done.returncode == 0
    assert main([*PREPARE, "--reuse"]) == 0
    assert not any(
        b"encoding" in path.read_bytes() for path in Path("out").iterdir() if path.suffix == ".cktok"
    )


def test_a_folder_of_before_rows_of_ids_is_kept(capsys):
    assert main(PREPARE) == 0
    dataset = Path("out", "dataset.json")
    values = json.loads(dataset.read_text())
    del values["rows_of_ids"]
    dataset.write_text(json.dumps(values))
    capsys.readouterr()
    assert main([*PREPARE, "--reuse"]) == 0
    assert "documents end with" in capsys.readouterr().out
    assert json.loads(dataset.read_text()) == values  # it was kept, not made again


def test_a_reader_of_standard_error_that_ends():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "cktrain.launch.cli", *PREPARE]
    done = subprocess.run(command, stderr=writing, stdout=writing, check=False)
    os.close(writing)
    assert done.returncode == 0 and Path("out/dataset.json").exists()


def test_it_says_what_it_left_out(capsys):
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("\ufeffhello\r\n" * 3)
    Path("texts/b.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": ""}\n')
    Path("texts/c.orc").write_text("ORC")
    prepare = ["data", "prepare", "texts", "out", "--vocab-size", "270"]
    assert main(prepare) == 2
    assert "b.jsonl:2" in capsys.readouterr().err
    assert main([*prepare, "--skip-bad-rows"]) == 0
    said = capsys.readouterr().err
    for part in (
        "1 left out: another suffix, .orc (c.orc)",
        '1 bad rows left out: "text" is null, not text (first: texts/b.jsonl:2)',
        "1 rows with empty text left out",
        "3 line ends CR LF or CR read as LF",
        "byte order marks at the start of 1 files left out",
    ):
        assert part in said, part
    dataset = json.loads(Path("out/dataset.json").read_text())
    assert dataset["left_out"] == {"another suffix, .orc": {"count": 1, "first": ["c.orc"]}}
    assert main([*prepare, "--overwrite", "--suffixes", ".txt", "--validation-fraction", "0"]) == 0
    assert main([*prepare, "--overwrite", "--suffixes", "txt"]) == 2
    assert "each begins with a dot" in capsys.readouterr().err


def test_names_that_are_no_text(capsys):
    assert main([*PREPARE[:3], "caf\né", *PREPARE[4:]]) == 0
    assert capsys.readouterr().out.startswith("caf\\né: ") and os.path.isdir("caf\né")
    assert main([*PREPARE[:3], "caf\udcff", *PREPARE[4:]]) == 0  # a name that this locale cannot read
    assert Path("caf\udcff/tokenizer.json").is_file()


def test_what_is_asked_too_much(capsys):
    assert main([*PREPARE[:-1], "2000000"]) == 2
    assert "which no text fills" in capsys.readouterr().err
    assert main([*PREPARE, "--tokenizer", "tokenizer.json"]) == 2
    assert "Leave one out" in capsys.readouterr().err
    for fraction in ("nan", "-1", "inf"):
        with pytest.raises(SystemExit) as ended:
            main([*PREPARE, f"--validation-fraction={fraction}"])
        assert ended.value.code == 2
    assert os.listdir() == ["corpus.jsonl"]


def test_a_failure_inside_the_tokenizers_library(monkeypatch, capsys):
    class PanicException(BaseException):
        """What pyo3 raises where Rust panics: no Exception."""

    def panics(*arguments):
        raise PanicException("index out of bounds")

    monkeypatch.setattr(preparing.Tokenizer, "encode_batch", panics)
    assert main(PREPARE) == 2
    assert "the tokenizers library gave up (index out of bounds)" in capsys.readouterr().err
    assert os.listdir() == ["corpus.jsonl"]


def test_a_text_that_does_not_fill_the_vocabulary_is_told(capsys):
    assert main(["data", "prepare", "corpus.jsonl", "out", "--vocab-size", "5000"]) == 0
    has = json.loads(Path("out/dataset.json").read_text())["vocab_size"]
    assert 257 <= has < 5000
    assert f"the tokenizer has {has:,} tokens: the text gives no more of 5,000" in capsys.readouterr().out
