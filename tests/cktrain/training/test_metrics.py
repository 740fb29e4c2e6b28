"""What a run says about itself: metrics.jsonl stays whole line by line, and no figure is worth an error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import cktrain.training.meter as meter
import cktrain.training.metrics as metrics
from cktrain.training.metrics import StepMetrics
from cktrain.training.metrics_file import MetricsFile
from cktrain.training.observer import Observer, StepResult


def resumed(path: Path, step: int) -> MetricsFile:
    """The file of a run that goes on after that step."""
    file = MetricsFile(path)
    file.begun(step, 100)
    return file


def test_a_resumed_run_drops_what_comes_after_its_step_and_what_is_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1}\n\xff\xfe\n[]\n{"step": 2}\nnull\n' + b"[" * 100_000 + b'\n{"step": 3}\n{"step": 2, "lo'
    )
    resumed(path, 2).write({"step": 3, "loss": float("nan")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": None},
    ]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it would wait for a writer"))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        resumed(path, 1).write({"step": 2})
        assert os.read(reader, 100) == b'{"step": 2}\n'
    finally:
        os.close(reader)


def test_a_file_of_lines_that_no_run_wrote_is_kept(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9, "loss": 1}\n{"epoch": 1}\n')
    resumed(path, 0).write({"step": 1})
    assert path.read_text() == '{"step": 1}\n'
    assert (tmp_path / "metrics.jsonl.before").read_text() == '{"step": 9, "loss": 1}\n{"epoch": 1}\n'
    assert "lines that no run wrote" in caplog.text
    path.write_text('{"step": 9, "loss": 1}\n{"st')  # a run that was killed
    resumed(path, 0)
    assert path.read_text() == "" and len(list(tmp_path.iterdir())) == 2


def test_a_file_with_nothing_to_drop_is_not_written_again(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("on a full disk it would fail"))
    resumed(path, 1).write({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_memory_falls_back(monkeypatch):
    texts = {"/proc/self/smaps_rollup": "Rss: 9 kB\nPss: 3 kB\n", "/proc/self/statm": "10 7 2\n"}

    def read(self):
        if str(self) not in texts:
            raise PermissionError(13, "Permission denied")
        return texts[str(self)]

    monkeypatch.setattr(Path, "read_text", read)
    assert metrics.proportional_set_size() == 3 * 1024
    del texts["/proc/self/smaps_rollup"]
    assert metrics.proportional_set_size() == 7 * os.sysconf("SC_PAGE_SIZE")
    del texts["/proc/self/statm"]
    assert metrics.proportional_set_size() is None
    line = StepMetrics(1, 1.0, 1.0, 1.0, 1, 1.0, 1.0, None, None, 0.0, 0.0).line(1.0, 1)
    assert "memory: n/a  tps" in line


@pytest.mark.parametrize("broken", ["a folder", "the figures", "the bar"])
def test_a_run_goes_on_without_what_watches_it(tiny, composed, monkeypatch, capsys, broken):
    trainer = composed(tiny(precision="fp64", **{"log.every": 1})).trainer
    if broken == "a folder":
        (Path(trainer.config.run.dir) / "metrics.jsonl").mkdir(parents=True)
    elif broken == "the figures":
        monkeypatch.setattr("cktrain.training.meter.proportional_set_size", lambda: 1 // 0)
    else:

        class Bar(Observer):
            def stepped(self, step):
                raise OSError(5, "Input/output error")

        trainer.observers.append(Bar())
    assert trainer.run()
    assert (trainer.checkpoint_folder / "step-00000020" / "COMPLETE").exists()
    said = capsys.readouterr().err
    assert said.count("cktrain: warning: ") == 1
    expected = {
        "a folder": "metrics.jsonl cannot be written: Is a directory",
        "the figures": "the run cannot say how it goes: integer division or modulo by zero",
        "the bar": "Bar cannot follow the run: Input/output error",
    }
    assert expected[broken] in said


def test_speed_counts_what_is_computed_and_tokens_what_has_a_label(monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(clock))
    measured = meter.Meter(flops_per_token=3.0, peak_flops=192.0, tokens_per_step=64)
    result = StepResult(1.5, 0.1, 1e-3, tokens=5, applied=True, stop=False, comm_seconds=0.0)
    measured.add(result, 0.0)
    measured.add(result, 0.0)
    record = measured.record(2, result, tokens_seen=10)
    assert (record.tokens, record.tps, record.tflops, record.mfu) == (10, 32.0, 96e-12, 0.5)
