"""`cktrain plan`: every example has a plan, numbers are read with their units, and what does not fit is refused."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from cktrain.launch.cli import main
from cktrain.launch.commands import plan

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*.yaml"))
RUNS = [
    path
    for path in EXAMPLES
    if "model:" in path.read_text() and "from_pretrained:" not in path.read_text()  # a folder of the user's
]


@pytest.fixture
def run_plan(monkeypatch, capsys):
    """`run_plan(*arguments)` -> (exit status, stdout, stderr), without binding this process."""
    monkeypatch.setattr("cktrain.host.bind._apply", lambda binding, *_, **__: binding)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["plan", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize("example", RUNS, ids=lambda path: path.stem)
def test_every_example_has_a_plan(run_plan, example):
    status, out, err = run_plan(str(example), "--memory-only", "--memory", "64GiB", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["fits"] and found["parameters"] > 0
    assert len(found["memory"]) == found["mesh"]["pipeline"]
    assert all(rank["total"] > rank["weights"] > 0 for rank in found["memory"])


def test_there_is_an_example_of_every_composition():
    from cktrain.config_file import load_config

    kinds = {
        tuple(
            getattr(load_config(path).parallel, axis) not in (1, -1)
            for axis in ("data", "pipeline", "tensor")
        )
        for path in RUNS
    }
    assert len(kinds) >= 7  # of the eight; plain data parallelism may say -1
    assert (True, True, True) in kinds


def test_a_stated_machine_is_planned_without_measuring(run_plan, monkeypatch):
    """128 ranks of 2 TFLOP/s on 16 nodes, on any machine: the whole plan in little time."""
    monkeypatch.setattr("cktrain.bench.peak.flop_rates", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr("cktrain.bench.peak.measure_bandwidth", lambda *_, **__: pytest.fail("measured"))
    example = next(path for path in RUNS if path.stem == "data_pipeline_tensor")
    stated = (
        "--peak",
        "2T",
        "--bandwidth",
        "40G",
        "--link",
        "100Gb/s",
        "--ranks-per-node",
        "4",
        "--threads",
        "8",
    )
    status, out, err = run_plan(str(example), *stated, "--json", "--set", "precision=bf16")
    assert status == 0, err
    found = json.loads(out)
    assert found["step"]["step"] > found["step"]["schedule"] > 0
    assert found["tokens_per_second"] == pytest.approx(32 * 256 / found["step"]["step"])
    assert all(
        wire["gradients"] > 0 and wire["tensor"] > 0 and wire["pipeline"] > 0 for wire in found["wire"]
    )
    status, out, _ = run_plan(str(example), *stated, "--set", "precision=bf16")
    assert status == 0 and "pipeline bubble" in out and "sent per rank and step" in out and "stated" in out


def test_what_does_not_fit_ends_with_2_and_one_thing_to_do(run_plan):
    example = next(path for path in RUNS if path.stem == "demo")
    asked = (str(example), "--memory-only", "--set", "batch.micro_batch_size=8")  # auto would take what fits
    _, out, _ = run_plan(*asked, "--json")
    less = json.loads(out)["node_bytes"] - (4 << 20)
    status, out, err = run_plan(*asked, "--memory", str(less))
    assert status == 2
    assert "DOES NOT FIT" in out
    assert re.search(
        r"\[memory\] the run needs .* GiB, and there are .* GiB\. Set batch\.micro_batch_size: 4", err
    )


def test_degrees_and_ranks_that_do_not_fit_are_the_users(run_plan):
    example = next(path for path in RUNS if path.stem == "data_tensor")
    status, _, err = run_plan(str(example), "--memory-only", "--ranks", "3")
    assert status == 2 and "= 4 ranks, and 3 were started" in err


@pytest.mark.parametrize(
    "parse, text, value",
    [
        (plan.parse_bytes, "64GiB", 64 << 30),
        (plan.parse_bytes, "1.5g", 3 << 29),
        (plan.parse_rate, "2.1T", 2.1e12),
        (plan.parse_rate, "40GB/s", 40e9),
        (plan.parse_link, "100Gb/s", 12.5e9),
        (plan.parse_link, "12.5GB/s", 12.5e9),
        (plan.parse_link, "400Gbps", 50e9),
    ],
)
def test_units(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize("parse", [plan.parse_bytes, plan.parse_rate, plan.parse_link])
def test_a_number_without_sense_is_named(parse):
    with pytest.raises(argparse.ArgumentTypeError, match="'fast' is no"):
        parse("fast")


@pytest.mark.parametrize("share, said", [(0.5, True), (0.97, False)])
def test_a_plan_measured_beside_other_work_says_so(run_plan, monkeypatch, share, said):
    """Last, since what it frees of the process counts less in the plan after it."""
    monkeypatch.setattr("cktrain.bench.peak.flop_rates", lambda *_: [190e9, 2 * share * 95e9, share * 190e9])
    monkeypatch.setattr("cktrain.bench.peak.measure_bandwidth", lambda *_, **__: 2e10)
    example = next(path for path in RUNS if path.stem == "demo")
    small = ("--set", "model.num_hidden_layers=1", "--set", "model.vocab_size=64")
    status, out, err = run_plan(str(example), *small)
    assert status == 0, err
    assert ("OTHER WORK used these cores" in out) == said
    assert not said or "ran at 95 to 190 GFLOP/s, 60 % of its best on average" in out
