"""`cktrain generate`, `export` and `import` on a tiny run and on the folder that is exported from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cktrain.comm.solo_group import SoloGroup
from cktrain.compose import compose
from cktrain.config import Config
from cktrain.config_file import load_config
from cktrain.data.prepare import prepare
from cktrain.hf.tensors import hf_tensors
from cktrain.host import bind
from cktrain.launch.cli import main
from cktrain.safetensors_file import read_header


@pytest.fixture
def unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run inside the test's process, which is not to be bound."""
    binding = bind.Binding((0,), 1, None, "")
    monkeypatch.setattr(bind, "bind", lambda *_args, **_kwargs: binding)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbound: None) -> Any:
    """A run of four steps on a small text with a tokenizer of its own; (folder, its trainer's parameters)."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Grüße aus 東京, one two three four.\n" * 60, encoding="utf-8")
    prepare("text.txt", "data", vocab_size=280, validation_fraction=0, progress=False)
    config = Config.model_validate(
        {
            "run": {"dir": "run", "steps": 4},
            "model": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 24,
                "vocab_size": 280,
            },
            "data": {"path": "data", "sequence_length": 32},
            "batch": {"micro_batch_size": 1, "global_batch_size": 2},
            "checkpoint": {"every": 2},
            "precision": "fp32",
        }
    )
    built = compose(config, SoloGroup(), threads=1)
    built.trainer.run()
    built.close()
    return Path("run"), built.trainer.params


@pytest.fixture
def exported(run: Any, capfd: Any) -> Path:
    """The run's Hugging Face folder."""
    assert main(["export", str(run[0]), "hf"]) == 0
    capfd.readouterr()
    return Path("hf")


def test_generate_from_a_run_and_from_its_export_gives_the_same_text(run, capfdbinary):
    folder, _ = run
    options = ["--prompt", "Grüße", "--max-tokens", "20", "--seed", "3"]
    assert main(["generate", str(folder), *options]) == 0
    first = capfdbinary.readouterr()
    assert first.out.startswith("Grüße".encode()) and first.out.endswith(b"\n") and len(first.out) > 10
    assert b"tokens/s" in first.err and b"step-00000004" in first.err
    assert main(["export", str(folder), "hf"]) == 0
    assert main(["generate", str(folder / "checkpoints" / "step-00000004"), *options]) == 0
    capfdbinary.readouterr()
    assert main(["generate", "hf", *options]) == 0
    assert capfdbinary.readouterr().out == first.out
    assert main(["generate", "hf", "--max-tokens", "5"]) == 0  # from the start of a document
    assert b"positions are full" not in capfdbinary.readouterr().err
    assert main(["generate", "hf", "--max-tokens", "500", "--top-k", "1"]) == 0
    assert b"after 32 of 500 tokens the model's 32 positions are full" in capfdbinary.readouterr().err


def test_a_file_of_prompts_gives_each_what_it_gives_alone(run, capfdbinary):
    folder, _ = run
    Path("prompts.jsonl").write_text('{"prompt": "Grüße"}\n{"prompt": "one\\ntwo"}\n', encoding="utf-8")
    options = ["--max-tokens", "12", "--seed", "5", "--top-k", "9", "--min-p", "0.01"]
    assert main(["generate", str(folder), "--prompts", "prompts.jsonl", *options]) == 0
    out, err = capfdbinary.readouterr()
    rows = [json.loads(line) for line in out.decode().splitlines()]
    assert [row["prompt"] for row in rows] == ["Grüße", "one\ntwo"] and b"2 prompts" in err
    for row in rows:
        assert main(["generate", str(folder), "--prompt", row["prompt"], *options]) == 0
        assert capfdbinary.readouterr().out.decode() == row["prompt"] + row["text"] + "\n"
        assert (row["tokens"], row["finish"]) == (12, "length")
    stop = rows[0]["text"][4:6]
    assert main(["generate", str(folder), "--prompts", "prompts.jsonl", *options, "--stop", stop]) == 0
    ended = json.loads(capfdbinary.readouterr().out.decode().splitlines()[0])
    assert ended["finish"] == "stop" and rows[0]["text"].startswith(ended["text"] + stop)
    Path("prompts.txt").write_text("a\n" + "東" * 40)
    assert main(["generate", str(folder), "--prompts", "prompts.txt"]) == 2
    out, err = capfdbinary.readouterr()
    assert out == b"" and b"prompt 2 has" in err and b"the model 32 positions" in err
    assert main(["generate", str(folder), "--stop", ""]) == 2
    assert b"--stop is empty" in capfdbinary.readouterr().err


def test_generate_without_standard_output_is_refused_and_a_reader_that_leaves_ends_it(run):
    folder, _ = run
    line = f"{sys.executable} -m cktrain.launch.cli generate {folder} --max-tokens 20"
    done = subprocess.run(["sh", "-c", f"{line} >&-"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "[generate] standard output is closed" in done.stderr
    process = subprocess.Popen(line.split(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(60) == 1 and "Traceback" not in process.stderr.read()


def test_generate_as_a_process_writes_utf8_in_any_locale(run):
    folder, _ = run
    options = ["--prompt", "東京", "--max-tokens", "2"]
    line = [sys.executable, "-m", "cktrain.launch.cli", "generate", str(folder), *options]
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(line, capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith("東京".encode())


def test_export_holds_the_weights_of_the_newest_checkpoint(run, capfdbinary):
    folder, params = run
    assert main(["export", str(folder), "hf", "--max-shard-size", "10KB"]) == 0
    stored = {
        tensor.name: tensor for path in Path("hf").glob("*.safetensors") for tensor in read_header(path)
    }
    for tensor in hf_tensors(load_config(folder / "config.yaml").model, params.params):
        values = np.concatenate([piece for _, piece in stored[tensor.name].pieces()])
        assert np.array_equal(values, tensor.view(tensor.param.data)), tensor.name
    assert (Path("hf") / "tokenizer.json").read_bytes() == Path("data/tokenizer.json").read_bytes()
    assert b"parameters" in capfdbinary.readouterr().out


def test_import_checks_the_weights_and_prints_a_config(run, capfdbinary, tmp_path):
    folder, _ = run
    assert main(["export", str(folder), "hf", "--dtype", "bfloat16"]) == 0
    capfdbinary.readouterr()
    assert main(["import", "hf"]) == 0
    out, err = capfdbinary.readouterr()
    assert b"BF16, 1 file; all there, all finite" in err and b"--tokenizer hf" in err
    Path("tune.yaml").write_bytes(out)
    config = load_config("tune.yaml")
    assert config.model.from_pretrained == "hf" and config.data.sequence_length == 32
    assert yaml.safe_load(out)["run"]["dir"] == "runs/hf"
    file = Path("hf/model.safetensors")
    file.write_bytes(file.read_bytes()[:-2] + b"\xff\x7f")  # the last weight becomes NaN
    assert main(["import", "hf"]) == 2
    assert b"NaN" in capfdbinary.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "", "tokenizer.json: it is empty"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: input should be a valid dictionary"),
        (
            "tokenizer_config.json",
            '{"chat_template": 5}',
            "tokenizer_config.json: chat_template is 5, not a text",
        ),
        ("generation_config.json", "null", "generation_config.json: input should be a valid dictionary"),
        (
            "generation_config.json",
            '{"eos_token_id": "2"}',
            "generation_config.json: eos_token_id is '2', not an id",
        ),
        ("special_tokens_map.json", '{"a":', "special_tokens_map.json: not valid JSON"),
    ],
)
def test_import_reads_what_stands_beside_the_weights(exported, name, text, message, capfd):
    """A crash or a full disk leaves such files; who uses the model would meet them later."""
    (exported / name).write_text(text)
    assert main(["import", str(exported)]) == 2
    err = capfd.readouterr().err
    assert message in err and err.startswith("cktrain: [tokenizer] ") and err.count("\n") == 1


def test_import_names_config_json_for_its_ids(exported, capfd):
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps({**config, "eos_token_id": 2.5}))
    assert main(["import", str(exported)]) == 2
    assert "config.json: eos_token_id is 2.5, not an id" in capfd.readouterr().err
    assert main(["data", "prepare", "text.txt", "other", "--tokenizer", str(exported)]) == 2
    assert "config.json: eos_token_id is 2.5, not an id" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["generate", "nothing"],
            "nothing is no run (checkpoints/), no checkpoint (COMPLETE), no Hugging Face folder",
        ),
        (["generate", "run", "--prompt", "東" * 40], "the model 32 positions. Shorten the prompt"),
        (["generate", "run", "--tokenizer", "run"], "tokenizer.json: no such file"),
        (["export", "run", "data"], "data exists and is not an empty folder"),
        (["import", "run"], "run/config.json: it cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(run, arguments, message, capfd):
    assert main(arguments) == 2
    err = capfd.readouterr().err
    assert message in err and err.startswith("cktrain: [") and err.count("\n") == 1


def test_a_run_on_ids_without_a_tokenizer_says_so(run, capfd):
    np.arange(200, dtype=np.uint16).tofile("ids.bin")
    config = load_config("run/config.yaml", ["run.dir=raw", "data.path=ids.bin"])
    built = compose(config, SoloGroup(), threads=1)
    built.trainer.run()
    built.close()
    assert main(["generate", "raw"]) == 2
    assert "Give its folder with --tokenizer" in capfd.readouterr().err
    Path("data/tokenizer.json").rename("elsewhere.json")
    assert main(["generate", "raw", "--tokenizer", "elsewhere.json", "--max-tokens", "3"]) == 0
    assert main(["export", "raw", "out"]) == 0
    assert "without a tokenizer" in capfd.readouterr().out


@pytest.mark.parametrize("size", ["0", "5 apples", "1.5GB"])
def test_sizes_that_are_none(size, capsys):
    with pytest.raises(SystemExit) as error:
        main(["export", "run", "out", "--max-shard-size", size])
    assert error.value.code == 2
    assert "write it like 500MB or 5GB" in capsys.readouterr().err
