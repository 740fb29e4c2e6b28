"""What every command does the same way: Ctrl-C, and ranks that a launcher has started for nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cktrain
from cktrain.hf import folder as hf_folder
from cktrain.launch import cli
from cktrain.launch.cli import main
from cktrain.launch.commands import export

sys.path.insert(0, str(Path(__file__).parents[1] / "cktrain"))
from chat_models import write_weights


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a model."""
    monkeypatch.chdir(tmp_path)
    write_weights(Path("model"))


def test_ctrl_c_where_nothing_is_to_be_saved_is_a_word_and_status_130(monkeypatch, capfd):
    def interrupted(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_export", interrupted)
    assert main(["export", "model", "out"]) == 130
    assert capfd.readouterr().err == "cktrain: interrupted\n"


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "cktrain", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"cktrain {cktrain.__version__}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_export_with_its_status_and_leaves_nothing_half_made(number, monkeypatch, capfd):
    before = signal.getsignal(number)
    write_json = hf_folder._write_json

    def signalled(path, values):
        write_json(path, values)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(hf_folder, "_write_json", signalled)
    there = sorted(os.listdir())
    assert main(["export", "model", "out"]) == 128 + number
    assert sorted(os.listdir()) == there
    assert capfd.readouterr().err == f"cktrain: ended by {number.name}; nothing half made was kept\n"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("command", sorted(cli._ALONE))
def test_of_several_ranks_rank_0_alone_works_as_one_process(command, monkeypatch, capfd):
    for name, value in {"CKTRAIN_SIZE": "2", "CKTRAIN_LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    words = {
        "data": ["data", "prepare", "nowhere", "out"],
        "evaluate": ["evaluate", "nowhere", "--data", "nothing"],
        "export": ["export", "nowhere", "out"],
    }.get(command, [command, "nowhere"])
    for rank, status in (("1", 0), ("0", 2)):
        monkeypatch.setenv("CKTRAIN_RANK", rank)
        monkeypatch.setenv("CKTRAIN_LOCAL_RANK", rank)
        assert main(words) == status
        said = capfd.readouterr().err
        assert (f"{command} works as one process: of 2 ranks" in said) == (rank == "0")
        assert ("nowhere" in said) == (rank == "0")


def test_what_is_no_model_is_named_with_what_to_give(capfd):
    folder = Path("folder")
    for file in ("many/one/checkpoints/step-00000001/x", "several/one/config.json", "prepared/finetune.yaml"):
        Path(file).parent.mkdir(parents=True)
        Path(file).touch()
    for name in ("model.gguf", "Modelfile", "weights.bin", "rows.jsonl", "adapter/adapter_config.json"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text('{"base_model_name_or_path": "models/base"}')
    given = {
        "model/model.safetensors": "give its folder, model,",
        "folder/weights.bin": "save_pretrained of transformers",
        "folder/Modelfile": "the GGUF file that its FROM names",
        "folder/rows.jsonl": "which are DATA",
        "folder": "give one of them, as folder/model.gguf",
        "many": "It holds runs: give one of them, as many/one.",
        "several": "It holds models: give one of them, as several/one.",
        "prepared": "and has no checkpoint yet: cktrain train prepared/finetune.yaml",
        "folder/adapter": "trained beside (models/base), and --adapter folder/adapter",
    }
    for path, told in given.items():
        assert main(["generate", path]) == 2
        assert told in capfd.readouterr().err, path
    assert main(["finetune", "model", "model", "-o", "run"]) == 2
    assert "model holds a model, and DATA is a file or folder of rows" in capfd.readouterr().err


def test_where_no_thread_can_be_started_it_is_said(monkeypatch, capfd):
    def refused(_options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(export, "_export", refused)
    assert main(["export", "model", "out"]) == 2
    assert "no thread can be started" in capfd.readouterr().err


def test_the_command_for_ollama_can_be_copied(capfd):
    Path("my models").mkdir()
    assert main(["export", "model", "my models/it's.gguf", "--gguf", "f16", "--ollama"]) == 0
    assert "ollama create NAME -f 'my models/Modelfile'" in capfd.readouterr().out
