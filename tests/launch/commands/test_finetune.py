"""`cktrain finetune` on a tiny model and some rows: what it writes and says, what it refuses, and how it goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from cktrain.bench import peak
from cktrain.config_file import load_config
from cktrain.hf import folder
from cktrain.host import bind, process
from cktrain.launch.cli import main
from cktrain.launch.commands import finetune
from cktrain.report import read_curve

sys.path.insert(0, str(Path(__file__).parents[2] / "cktrain"))
sys.path.insert(0, str(Path(__file__).parents[2] / "cktrain" / "hf" / "gguf_file"))
from chat_models import write_rows, write_weights
from gguf_made_here import small_file

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"say {i % 7}"},
            {"role": "assistant", "content": "a" * (i % 5 + 1)},
        ]
    }
    for i in range(20)
]
LENGTH = ["--sequence-length", "128"]
FAST = [
    f"--set={key}" for key in ("precision=fp32", "optimizer.lr=0.01", "data.validation.times_per_epoch=2")
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a model of fresh weights and a file of rows; nothing is bound."""
    binding = bind.Binding((0,), 1, None, "")
    for module in (bind, process):
        monkeypatch.setattr(module, "bind", lambda *_args, **_kwargs: binding)
    monkeypatch.setattr(peak, "measure_bandwidth", lambda *_args, **_kwargs: 1e10)
    monkeypatch.setattr(peak, "flop_rates", lambda *_args: [1e11])
    monkeypatch.chdir(tmp_path)
    write_weights(Path("model"))
    write_rows(Path("rows.jsonl"), ROWS)


def test_an_adapter_from_rows_to_the_next_commands(capfd):
    assert main(["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST]) == 0
    out = capfd.readouterr().out
    assert (
        "data: run/data: 19 rows in 10 sequences for training, 1 rows in 1 sequences for validation, of 128"
        in out
    )
    assert "trained (lora of rank 16)" in out and "frozen" in out
    assert (
        "optimizer: adamw, lr 0.01, betas 0.9/0.999, weight_decay 0, clip 1; cosine, warm-up 1 of 30 steps"
        in out
    )
    assert "memory: " in out and "a step, " in out
    values = yaml.safe_load(Path("run/finetune.yaml").read_text())
    assert values["run"] == {"dir": "run", "epochs": 3}
    assert values["adapter"] == {"r": 16, "lora_alpha": 32}
    assert values["optimizer"]["lr"] == 0.01 and values["checkpoint"] == {"save_best": True}
    losses = read_curve(Path("run/metrics.jsonl")).validation
    assert losses[0][0] == 0 and len(losses) == 7
    (first, last) = (losses[0][1], losses[-1][1])
    assert last < first
    assert f"validation loss: {first:.4f} before, {last:.4f} after {losses[-1][0]} steps" in out
    assert list(Path("run/best").glob("step-*"))
    assert "next: cktrain chat run\n" in out or "next: cktrain chat run/best\n" in out
    commands = [line.partition("#")[0].split() for line in out.splitlines() if "cktrain export" in line]
    assert [main(words[1:]) for words in commands] == [0, 0, 0]
    compared = re.findall(
        r"validation loss: (\S+) as trained, (\S+) as exported, of (\d+) held", capfd.readouterr().out
    )
    assert (
        len(compared) == 2 and len({trained for trained, _, _ in compared}) == 1
    )  # merged, and for llama.cpp
    (trained, merged, _), (_, quantized, _) = compared
    # The last loss of the run, or the best: products of fp32, one rounding of each merged weight; q8_0 rounds to 1/254.
    assert float(trained) == pytest.approx(min(loss for _, loss in losses), abs=2e-4)
    assert float(merged) == pytest.approx(float(trained), abs=2e-4)
    assert float(quantized) == pytest.approx(float(trained), abs=0.02)
    assert Path("run.gguf").is_file()
    assert main(["generate", "model", "--adapter", "run/best", "--max-tokens", "3"]) == 0
    assert Path("run-adapter/adapter_config.json").is_file() and Path("run-model/config.json").is_file()
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):  # PEFT's folder has them, too
        assert Path("run-adapter", name).read_bytes() == Path("run-model", name).read_bytes()
    ends = json.loads(Path("run-model/generation_config.json").read_text())["eos_token_id"]
    backend = Tokenizer.from_file("run-model/tokenizer.json")
    assert [backend.id_to_token(each) for each in ends] == ["<|endoftext|>", "<|im_end|>"]


def test_blocks_of_a_gguf_file_stay_beside_an_adapter(capfd):
    small_file(Path("q8"))
    words = [
        "finetune",
        "q8/whole.gguf",
        "rows.jsonl",
        "-o",
        "run",
        "--sequence-length",
        "64",
        "--epochs",
        "1",
        *FAST,
    ]
    assert main([*words, "--quantize", "stored"]) == 0
    said = capfd.readouterr()
    assert yaml.safe_load(Path("run/finetune.yaml").read_text())["model"] == {
        "from_pretrained": "q8/whole.gguf",
        "quantize": "stored",
    }
    assert not list(Path("run").glob("base-*"))
    assert re.search(r"of these [\d,]+ in q8_0", said.out)
    assert main(["export", "run", "merged", "--merge"]) == 0
    assert main(["evaluate", "run", "--compare", "base", "--data", "run/data", "--answers", "1"]) == 0
    assert main(["finetune", "q8/whole.gguf", "rows.jsonl", "-o", "no", "--quantize", "q9", "--dry-run"]) == 2
    assert "model.quantize" in capfd.readouterr().err


def test_an_export_that_is_whole_says_why_it_could_not_be_compared(capfd, monkeypatch):
    """The adapter is whole, and the file that the run's own loss is computed with is not."""
    assert main(["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST, "--epochs", "0.3"]) == 0
    (weights,) = Path("run/checkpoints").glob("step-*/rank0.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    capfd.readouterr()
    assert main(["export", "run", "merged", "--merge"]) == 0
    out = capfd.readouterr().out
    assert "validation loss: not computed, because" in out and "rank0.safetensors is damaged" in out
    assert main(["report", "run/metrics.jsonl"]) == 2  # which measures
    assert "training    step 1: " in capfd.readouterr().out


def test_a_report_without_the_base_says_what_was_logged(capfd):
    assert main(["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST, "--epochs", "0.3"]) == 0
    Path("model").rename("elsewhere")
    capfd.readouterr()
    assert main(["report", "run", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["training"] and found["validation"] and "loss" not in found
    assert (
        "validation: not measured, because" in found["notes"][0] and "which is not there" in found["notes"][0]
    )


def test_what_was_written_is_what_train_runs(capfd):
    assert main(["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST, "--dry-run"]) == 0
    assert "train with: cktrain train run/finetune.yaml" in capfd.readouterr().out
    assert not Path("run/checkpoints").exists()
    assert main(["train", "run/finetune.yaml", "--set", "run.dir=other"]) == 0
    assert main(["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST]) == 0
    curves = [read_curve(Path(folder) / "metrics.jsonl") for folder in ("run", "other")]
    assert curves[0].training == curves[1].training and curves[0].validation == curves[1].validation
    assert "prepared again" not in capfd.readouterr().err


def test_all_weights_of_a_prepared_folder(capfd):
    assert (
        main(["data", "prepare", "rows.jsonl", "rows", "--tokenizer", "model", *LENGTH, "--validation", "0"])
        == 0
    )
    assert main(["finetune", "model", "rows", "-o", "run", "--full", "--set", "run.steps=2"]) == 0
    out = capfd.readouterr().out
    assert "(all weights), 0 frozen" in out and "steps: 2 of 1 sequences" in out
    assert "lr 1e-05, betas 0.9/0.999, weight_decay 0.01" in out
    assert "note: nothing is validated" in out
    config = load_config("run/finetune.yaml")
    assert config.adapter is None and config.run.epochs is None and config.data.path == "rows"
    assert main(["finetune", "model", "rows", "-o", "run2", "--train-on", "all"]) == 2
    assert "--train-on says how rows are prepared, and rows is prepared" in capfd.readouterr().err


def test_a_run_that_stands_there_is_refused_resumed_or_overwritten(capfd):
    command = ["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST]
    assert main([*command, "--epochs", "1"]) == 0
    steps = read_curve(Path("run/metrics.jsonl")).training[-1][0]
    capfd.readouterr()
    assert main(command) == 2
    assert "run holds a run already. Choose another folder; --resume goes on" in capfd.readouterr().err
    assert main([*command, "--epochs", "2", "--resume"]) == 0
    told = capfd.readouterr()
    assert "changed on resume: run.epochs: 1.0 -> 2.0: the run ends after" in told.out
    assert "which is finetune.yaml.before now" in told.err
    curve = read_curve(Path("run/metrics.jsonl"))
    assert curve.training[-1][0] == 2 * steps and curve.validation[0][0] == 0
    assert main([*command, "--epochs", "1", "--overwrite"]) == 0
    assert len(list(Path("run/checkpoints").glob("set-aside-*"))) == 1
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_loss" in line].count(0) == 1
    assert read_curve(Path("run/metrics.jsonl")).training[-1][0] == steps


def test_a_run_is_fine_tuned_further_from_its_merged_weights(capfd):
    assert main(["finetune", "model", "rows.jsonl", "-o", "first", *LENGTH, *FAST, "--epochs", "1"]) == 0
    assert main(["finetune", "first", "rows.jsonl", "-o", "second", *LENGTH, *FAST, "--epochs", "1"]) == 0
    (base,) = Path("second").glob("base-*")
    assert main(["export", "first", "merged", "--merge"]) == 0
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (base, Path("merged")))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_base_that_is_no_longer_as_it_was_made_is_named(capfd):
    assert main(["export", "model", "m.gguf", "--gguf", "f16"]) == 0
    words = ["finetune", "m.gguf", "rows.jsonl", "-o", "run", *LENGTH, "--dry-run"]
    assert main(words) == 0
    assert main(words) == 0
    assert "made of m.gguf before" in capfd.readouterr().err
    (base,) = Path("run").glob("base-*")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    assert main(words) == 2
    said = f"[model] {base} is not as it was made of m.gguf: model.safetensors is not the one recorded"
    assert said in capfd.readouterr().err


def test_of_two_in_one_new_folder_the_second_is_refused_until_the_first_trains(capfd, monkeypatch):
    """Between its rows and its training a run measures: another one would replace what it is about to read."""
    words = ["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST, "--epochs", "0.2"]
    seen = []

    def second(*_args):
        if not seen:
            seen.append(main([*words, "--set", "optimizer.lr=1"]))
        return ""

    monkeypatch.setattr(finetune, "_say_plan", second)
    assert main(words) == 0 and seen == [2]
    assert "[lock] run is in use by cktrain finetune" in capfd.readouterr().err
    assert yaml.safe_load(Path("run/config.yaml").read_text())["optimizer"]["lr"] == 0.01
    assert not Path("run/.cktrain.lock").exists()


def test_where_nothing_can_be_measured_the_plan_goes_without_time(capfd, monkeypatch):
    def refused(*_args, **_kwargs):
        raise MemoryError("[memory] the bandwidth arena needs 270,532,608 bytes and the system refuses")

    monkeypatch.setattr(peak, "measure_bandwidth", refused)
    assert main(["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "memory: " in out and "time: not known, since the system refuses the memory" in out


def test_special_tokens_in_messages_are_text_or_tokens_as_asked(capfd):
    rows = [
        {"messages": [*row["messages"][:1], {"role": "assistant", "content": "a<|end|>b"}]} for row in ROWS
    ]
    write_rows(Path("rows.jsonl"), rows)
    counts = []
    for name in ("text", "parse"):
        words = [
            "finetune",
            "model",
            "rows.jsonl",
            "-o",
            name,
            *LENGTH,
            "--dry-run",
            "--special-tokens",
            name,
        ]
        assert main(words) == 0
        counts.append(json.loads(Path(name, "data/dataset.json").read_text())["chat"]["row_tokens"])
    assert counts[0] - counts[1] == len(rows) * (len("<|end|>") - 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "rows.jsonl"], "nowhere is no run"),
        (["model", "nothing.jsonl"], "nothing.jsonl"),
        (["model", "rows.jsonl", "--set", "optimizer.lrr=1"], "optimizer.lrr: unknown key"),
        (["model", "rows.jsonl", "--set", "run=3"], "run: a block of keys belongs here"),
        (["model", "rows.jsonl", "--set", "adapter.r=x"], "adapter.r"),
        (["model", "rows.jsonl", "--set", "adapter=null"], "Give --full"),
        (
            ["model", "rows.jsonl", "--full", "--set", "adapter.r=4"],
            "full trains all weights, and adapter is given",
        ),
        (["model", "rows.jsonl", "--epochs", "1", "--set", "run.steps=3"], "both say how long it is"),
        (["model", "rows.jsonl", "--sequence-length", "256"], "longer than the model's 128 positions"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_trained(words, message, capfd):
    assert main(["finetune", *words, "-o", "run"]) == 2
    assert message in capfd.readouterr().err
    assert not Path("run").exists() or not list(Path("run").iterdir())


def test_a_models_folder_is_no_runs_folder(capfd):
    before = sorted(path.name for path in Path("model").iterdir())
    assert main(["finetune", "model", "rows.jsonl", "-o", "model", *LENGTH, *FAST]) == 2
    assert "model is a model's folder (config.json)" in capfd.readouterr().err
    assert main(["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST, "--dry-run"]) == 0
    assert main(["train", "run/finetune.yaml", "--set", "run.dir=model"]) == 2
    out = capfd.readouterr()
    assert "Give the run a folder of its own" in out.out + out.err
    assert sorted(path.name for path in Path("model").iterdir()) == before


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--learning-rate", "1e-4"], "--learning-rate is a key of the configuration.*--set.*optimizer.lr"),
        (["--lr=1e-4"], "--lr is a key of the configuration.*optimizer.lr"),
        (["--batch-size", "4"], "--batch-size .*batch.micro_batch_size"),
        (["--lora-r", "8"], "--lora-r .*adapter.r"),
        (
            ["--validation", "rows.jsonl"],
            "--validation: 'rows.jsonl' is no share of the rows. .* cktrain data prepare rows.jsonl HELD_OUT",
        ),
        (["--nonsense"], "unrecognized arguments: --nonsense$"),
    ],
)
def test_options_of_other_trainers_are_answered_with_our_keys(words, answer, capfd):
    with pytest.raises(SystemExit) as status:
        main(["finetune", "model", "rows.jsonl", "-o", "run", *words])
    assert status.value.code == 2
    assert not Path("run").exists()
    assert re.search(answer, capfd.readouterr().err.strip(), re.MULTILINE)


def test_resume_without_a_checkpoint_says_where_it_begins(capfd):
    Path("run").mkdir()
    Path("run/metrics.jsonl").touch()
    command = ["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST, "--epochs", "0.1", "--resume"]
    assert main([*command, "--dry-run"]) == 0
    assert "run has no checkpoint to go on from: it begins with step 1" in capfd.readouterr().err
    assert main(command) == 0
    assert main([*command, "--dry-run"]) == 0
    assert capfd.readouterr().err.count("it begins with step 1") == 1


@pytest.mark.parametrize("what", ["tokenizer", "adapter"])
def test_what_a_run_that_goes_on_may_not_change_is_told_before_its_rows_are_replaced(what, capfd):
    """`cktrain train` with rows says the same."""
    command = ["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, *FAST, "--epochs", "0.1"]
    assert main(command) == 0
    write_rows(Path("rows.jsonl"), ROWS[:-1])  # which would be prepared again
    if what == "tokenizer":
        file = Path("model/tokenizer.json")
        values = json.loads(file.read_text())
        values["added_tokens"][-1]["content"] += "x"
        file.write_text(json.dumps(values))
    before = {path: path.read_bytes() for path in Path("run/data").iterdir()}
    capfd.readouterr()
    assert main([*command, "--resume", *(["--set=adapter.r=3"] if what == "adapter" else [])]) == 2
    said = capfd.readouterr().err
    assert {
        "tokenizer": "the model's, model/tokenizer.json, is not the tokenizer of run/checkpoints/step-",
        "adapter": "adapter.r is 16 in the checkpoint and 3 here",
    }[what] in said
    assert {path: path.read_bytes() for path in Path("run/data").iterdir()} == before
    config = yaml.safe_load(Path("run/finetune.yaml").read_text())
    assert config["adapter"]["r"] == 16
    config["data"] = {"train": "rows.jsonl", "sequence_length": 128}
    config["adapter"]["r"] = 3 if what == "adapter" else 16
    Path("run.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "run.yaml"]) == 2
    assert said.partition("] ")[2].partition(":")[0] in capfd.readouterr().err
    assert {path: path.read_bytes() for path in Path("run/data").iterdir()} == before


def test_a_model_without_a_tokenizer_is_answered_with_the_command_that_prepares_the_rows(capfd):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("model", name).rename(name)
    assert main(["export", "model", "m.gguf", "--gguf", "f16"]) == 0
    for model in ("model", "m.gguf"):
        assert main(["finetune", model, "rows.jsonl", "-o", model + "-run", *LENGTH]) == 2
        assert (
            "cktrain data prepare ROWS OUT --tokenizer TOKENIZER, and OUT given as DATA"
            in capfd.readouterr().err
        )
    words = ["--tokenizer", "tokenizer.json", "--chat-template", "plain"]
    assert main(["data", "prepare", "rows.jsonl", "data", *words, *LENGTH]) == 0
    assert main(["finetune", "m.gguf", "data", "-o", "run", *FAST, "--epochs", "0.1"]) == 0


def test_bad_rows_are_told_and_left_out_on_request(capfd):
    write_rows(Path("rows.jsonl"), [*ROWS, {"messages": [{"role": "user", "content": "no answer"}]}])
    command = ["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, "--dry-run"]
    assert main(command) == 2
    assert "1 of 21 rows cannot be used" in capfd.readouterr().err
    assert main([*command, "--skip-bad"]) == 0
    assert Path("run/data/rejected.jsonl").is_file()


class Terminal:
    """Standard input of somebody who can be asked."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "status"), [("r", 0), ("o", 0), ("", 2), ("\x04", 2)])
def test_on_a_terminal_it_asks_what_to_do_with_a_run(answer, status, capfd, monkeypatch):
    command = ["finetune", "model", "rows.jsonl", "-o", "run", *LENGTH, "--set", "run.steps=1"]
    assert main(command) == 0
    asked = []
    monkeypatch.setattr(sys, "stdin", Terminal())

    def reply(question):
        asked.append(question)
        if answer == "\x04":  # Ctrl-D
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", reply)
    assert main(command) == status
    assert asked == [
        "run holds a run. Go on with it (r), start afresh and set its checkpoints aside (o), or stop (s)? "
    ]
    out = capfd.readouterr()
    assert ("all 1 steps are done already" in out.out) == (answer == "r")
    assert bool(list(Path("run/checkpoints").glob("set-aside-*"))) == (answer == "o")
    assert ("holds a run already" in out.err) == (status == 2)


def test_an_export_onto_a_full_disk_names_where_it_was_to_be(capfd, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder, "save_folder", full)
    assert main(["export", "model", "copy"]) == 2
    assert "cktrain: [system] copy: No space left on device" in capfd.readouterr().err
