"""`cktrain report`: what a run has learned, of the newest complete checkpoint, and not a byte written into its folder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from cktrain.comm.solo_group import SoloGroup
from cktrain.compose import compose
from cktrain.config import Config
from cktrain.data.prepare import prepare
from cktrain.host import bind
from cktrain.launch.cli import main
from cktrain.report import read_curve


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, of four steps with two checkpoints, and its `data`."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text.txt").write_text("".join(f"one two three {n} four.\n\n" for n in range(80)))
    prepare(folder / "text.txt", folder / "data", vocab_size=280, validation_fraction=0.1, progress=False)
    config = Config.model_validate(
        {
            "run": {"dir": str(folder / "run"), "steps": 4},
            "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
                      "vocab_size": 280},
            "data": {"path": str(folder / "data"), "sequence_length": 32, "validation": {"every": 2, "batches": None}},
            "batch": {"micro_batch_size": 1, "global_batch_size": 2},
            "optimizer": {"lr": 0.02},
            "checkpoint": {"every": 2},
            "log": {"every": 1},
            "precision": "fp32",
        }
    )  # fmt: skip
    built = compose(config, SoloGroup(), threads=1)
    built.trainer.run()
    built.close()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's folder, to be damaged; commands run in this process, which is not to be bound."""
    monkeypatch.setattr(bind, "bind", lambda *_args, **_kwargs: bind.Binding((0,), 1, (), ""))
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(folder)): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns)
        for p in sorted([folder, *folder.rglob("*")])
    }


def test_a_picture_without_matplotlib_names_what_to_install(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", str(run), "--plot", str(tmp_path / "loss.png")]) == 2
    assert "needs matplotlib: pip install 'cktrain[plots]'" in capsys.readouterr().err


def test_a_report_reads_only_and_draws_where_it_is_told_to(run, capsys, tmp_path):
    before = contents(run)
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "training" in out and "step 4: " in out and "validation after step 4: loss " in out
    assert f"checkpoint of step 4: {run / 'checkpoints' / 'step-00000004'}" in out
    assert out.count("bits per byte") == 3
    recorded = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(line["val_loss"] for line in reversed(recorded) if "val_loss" in line)
    assert f"loss {last:.4f}" in out  # what training itself measured, over the whole split
    assert contents(run) == before
    assert main(["report", str(run), "--plot", str(tmp_path / "loss.png")]) == 0
    assert (tmp_path / "loss.png").stat().st_size > 5000
    capsys.readouterr()
    assert main(["report", str(run), "--plot", str(tmp_path / "curve")]) == 0
    assert (
        f"loss curve: {tmp_path / 'curve.png'}" in capsys.readouterr().out
        and (tmp_path / "curve.png").exists()
    )
    assert contents(run) == before


def test_other_validation_tokens_than_the_run_s_are_told(run, capsys):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    changed = [json.dumps({**json.loads(line), "val_data": "another"}) for line in lines]
    (run / "metrics.jsonl").write_text("\n".join(changed))
    assert main(["report", str(run)]) == 0
    assert "these tokens are others than those that the run was validated on" in capsys.readouterr().out


def test_the_report_as_json(run, capsys):
    """The same figures as in words, and in words what could not be told."""
    assert main(["report", str(run)]) == 0
    words = capsys.readouterr().out
    assert main(["report", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["step"] == 4 and told["checkpoint"] == str(run / "checkpoints" / "step-00000004")
    assert f"loss {told['loss']:.4f} over {told['tokens']:,} tokens" in words
    for bits in (told["bits_per_byte"], *told["n_grams_bits_per_byte"].values()):
        assert f"{bits:.4f} bits per byte" in words
    assert [step for step, _ in told["training"]] == [1, 2, 3, 4] and told["notes"] == []
    (run / "metrics.jsonl").unlink()
    assert main(["report", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "training" not in told and "metrics.jsonl: it cannot be read" in told["notes"][0]


def test_the_newest_complete_checkpoint_counts_whatever_config_yaml_says(run, capsys):
    (run / "config.yaml").write_text("checkpoint: {resume: none}\n")
    (run / "checkpoints" / "step-00000004" / "COMPLETE").unlink()
    assert main(["report", str(run)]) == 0
    assert "validation after step 2: " in capsys.readouterr().out


def test_without_a_complete_checkpoint_nothing_untrained_is_reported(run, capsys):
    for marker in (run / "checkpoints").glob("*/COMPLETE"):
        marker.unlink()
    assert main(["report", str(run)]) == 2
    said = capsys.readouterr()
    assert "step 4: " in said.out and "validation" not in said.out.split("losses")[0]
    assert "no complete checkpoint" in said.err and str(run) in said.err and "after step" not in said.out


@pytest.mark.parametrize("lacking", ["data", "validation shards"])
def test_what_cannot_be_told_is_said(run, trained, capsys, lacking):
    there = [trained / "data"] if lacking == "data" else sorted((trained / "data").glob("val*"))
    for path in there:
        path.rename(path.with_name("gone-" + path.name))
    try:
        assert there and main(["report", str(run)]) == 0
    finally:
        for path in there:
            path.with_name("gone-" + path.name).rename(path)
    out = capsys.readouterr().out
    assert "step 4: " in out and "validation: not measured, because" in out and str(trained / "data") in out


@pytest.mark.parametrize("part", ["metrics.jsonl", "checkpoints"])
def test_a_part_of_the_run_is_as_good_as_the_run(run, capsys, part):
    assert main(["report", str(run / part)]) == 0
    out = capsys.readouterr().out
    assert "cannot be read" not in out and "training    step 1: " in out and "validation after step" in out


def test_lines_that_are_no_record_are_counted_and_left_out(run, capsys):
    file = run / "metrics.jsonl"
    good = len(read_curve(file).training)
    with file.open("ab") as lines:
        lines.write(
            b'{"step": 5, "loss": NaN}\n{"step": 6, "loss": null, "other": [1]}\n{"step": true}\n[]\n\xff\n'
            b'{"loss": 1.0}\n\n{"step": "7", "loss": 1}\n'
            + b"[" * 99999
            + b'\n{"step": 8, "loss": 1.5}\n{"step": 9, "lo'
        )
    curve = read_curve(file)
    assert len(curve.training) == good + 1 and curve.training[-1] == (8, 1.5)
    assert len(curve.unread) == 8
    assert main(["report", str(run)]) == 0
    assert "left out: 8 line(s) of metrics.jsonl that are no record" in capsys.readouterr().out


def test_a_run_without_metrics_is_still_measured(run, capsys):
    (run / "metrics.jsonl").unlink()
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "metrics.jsonl: it cannot be read: No such file" in out and "validation after step 4" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "nothing is no run"),
        (["run", "--plot", "loss.xyz"], "Give a file that can be written"),
        (["run", "--plot", "no/such/loss.png"], "no/such/loss.png: No such file"),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_status_2(run, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(run.parent)
    assert main(["report", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_checkpoint_can_be_named_and_paths_are_expanded(run, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    assert main(["report", "~/run/checkpoints/step-00000002"]) == 0
    out = capsys.readouterr().out
    assert "validation after step 2" in out and "training" in out
