"""Arguments of every command: paths expanded in one place, numbers finite and in range; status 2 with the option's name."""

from __future__ import annotations

import argparse
import shlex

import pytest
import yaml

from cktrain.launch.cli import build_parser, main
from cktrain.launch.commands.import_folder import _config
from cktrain.launch.commands.launch import _own_words

FOLDER = ["generate", "x"]
PLAN = ["plan", "x.yaml"]
PREPARE = ["data", "prepare", "x", "y"]
COLLECTIVES = ["bench", "collectives"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*FOLDER, "--temperature", "nan"], "--temperature: nan is not in 0"),
        ([*FOLDER, "--temperature", "inf"], "--temperature: inf is not in 0"),
        ([*FOLDER, "--temperature", "-1"], "--temperature: -1 is not in 0"),
        ([*FOLDER, "--temperature", "1e400"], "--temperature: inf is not in 0"),
        ([*FOLDER, "--temperature", "hot"], "--temperature: 'hot' is no number"),
        ([*FOLDER, "--top-p", "0"], "--top-p: 0 is not above 0, up to 1"),
        ([*FOLDER, "--top-p", "1.5"], "--top-p: 1.5 is not above 0, up to 1"),
        ([*FOLDER, "--top-p", "nan"], "--top-p: nan is not above 0"),
        ([*FOLDER, "--top-k", "-1"], "--top-k: -1 is not in 0"),
        ([*FOLDER, "--top-k", "2.5"], "--top-k: '2.5' is no integer"),
        ([*FOLDER, "--max-tokens", "-5"], "--max-tokens: -5 is not in 0"),
        ([*FOLDER, "--max-tokens", "9" * 30], "--max-tokens: "),
        ([*FOLDER, "--max-tokens", "9" * 5000], "is no integer"),
        ([*FOLDER, "--seed", "-1"], "--seed: -1 is not in 0"),
        ([*FOLDER, "--threads", "0"], "--threads: 0 is not in 1"),
        ([*FOLDER, "--threads", "1000000"], "--threads: 1,000,000 is not in 1 to 8,192"),
        (["generate", ""], "the path is empty"),
        (["generate", "$HOME/x"], "begins with $, and variables are not expanded here"),
        (["generate", "~no-such-user/x"], "whose home folder is not known"),
        (["generate", "a" * 300], "Shorten it"),
        (["export", "x", "~no-such-user"], "whose home folder is not known"),
        ([*PREPARE, "--vocab-size", "0"], "--vocab-size: 0 is not in 1"),
        ([*PREPARE, "--validation-fraction", "nan"], "--validation: nan is not in 0 to 0.5"),
        ([*PREPARE, "--validation-fraction", "0.9"], "--validation: 0.9 is not in 0 to 0.5"),
        ([*PREPARE, "--shard-tokens", "0"], "--shard-tokens: 0 is not in 1"),
        ([*PLAN, "--ranks", "0"], "--ranks: 0 is not in 1"),
        ([*PLAN, "--ranks", "-2"], "--ranks: -2 is not in 1"),
        ([*PLAN, "--ranks-per-node", "0"], "--ranks-per-node: 0"),
        ([*PLAN, "--memory", "0GiB"], "--memory: '0GiB' is no amount above 0"),
        ([*PLAN, "--memory", "9" * 400 + "G"], "is no amount above 0"),
        ([*PLAN, "--memory", "1.2.3G"], "--memory: '1.2.3G' is no amount above 0"),
        ([*PLAN, "--peak", "0T"], "--peak: '0T' is no amount above 0"),
        ([*PLAN, "--link", "0Gb/s"], "--link: '0Gb/s' is no amount above 0"),
        (["launch", "-n", "0", "train"], "0 is not in 1"),
        (["launch", "--start-timeout", "nan"], "--start-timeout: nan is not above 0"),
        (["launch", "--start-timeout", "0"], "--start-timeout: 0 is not above 0"),
        (["launch", "--start-timeout", "inf"], "--start-timeout: inf is not above 0"),
        (["launch", "--rsh", ""], "--rsh: '' is no command"),
        (["launch", "--rsh", "ssh 'x"], "is no command: No closing quotation"),
        ([*COLLECTIVES, "--tcp-sockets", "0"], "--tcp-sockets: 0 is not in 1 to 16"),
        (["bench", "step", "x", "--steps", "0"], "--steps: 0 is not in 1"),
        (["bench", "gemm", "--repetitions", "-1"], "--repetitions: -1"),
        (["bench", "overlap", "--share", "inf"], "--share: inf"),
        (["report", "x", "--plot", ""], "--plot: the path is empty"),
        (["train", "$CONFIG"], "begins with $"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_named(arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "~/a.yaml"], ["config"]), (["plan", "~/a.yaml"], ["config"]), (["doctor", "~/a.yaml"], ["config"]),
        (["bench", "step", "~/a.yaml"], ["config"]), ([*COLLECTIVES, "--table", "~/t"], ["table"]),
        (["generate", "~/m", "--tokenizer", "~/t"], ["model", "tokenizer"]), (["import", "~/m", "~/o"], ["source", "out"]),
        (["export", "~/m", "~/o", "--tokenizer", "~/t"], ["model", "out", "tokenizer"]),
        (["data", "prepare", "~/s", "~/o", "--tokenizer", "~/t"], ["source", "out", "tokenizer"]),
        (["report", "~/r", "--plot", "~/p"], ["run_dir", "plot"]),
        (["launch", "--logs", "~/l", "--topology", "~/t", "--python", "~/p"], ["logs", "topology", "python"]),
    ],
)  # fmt: skip
def test_a_home_is_expanded_in_every_path(arguments, names, monkeypatch):
    monkeypatch.setenv("HOME", "/h/ada")
    options = build_parser(arguments[0]).parse_args(arguments)
    for name in names:
        assert str(getattr(options, name)).startswith("/h/ada/"), name


NAMES = ["café", "m, v2", "a: b", "#x", "it's", 'a "b"', "x y", "{a}", "[b]", "- c", "&d", "*e", "1e-3", "010", "null",
         "a\nb", "東京", "$HOME", "a\\b", "%s", "{name}", "!x", "y\udce9"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_import_prints_yaml_that_reads_back_whatever_the_folder_is_called(name):
    text = _config(name, f"hf/{name}", 64)
    assert len(text.splitlines()) == 6 or "\n" in name
    from cktrain.yaml_text import parse_yaml

    for values in (parse_yaml(text, "printed")[0], yaml.safe_load(text) if name.isprintable() else None):
        if values is not None:
            assert values["run"]["dir"] == f"runs/{name}" and values["data"]["path"] == f"data/{name}"
            assert values["model"]["from_pretrained"] == f"hf/{name}"
            assert values["optimizer"]["lr"] == 2e-5


@pytest.mark.parametrize("name", ["a b", "it's", "./$x", "a;b", "-n"])
def test_what_starts_the_same_ranks_again_keeps_every_option(name):
    options = argparse.Namespace(
        hosts="a:2",
        rsh=f"ssh -i '{'k'}'",
        python=f"/{name}/python",
        interface=name,
        logs=name,
        env=["A", name],
    )
    words = shlex.split(shlex.join(_own_words(options, 4)))
    parsed = build_parser("launch").parse_args([*words[1:], "train", "x"])
    for key in ("hosts", "rsh", "python", "interface", "logs", "env"):
        assert getattr(parsed, key) == getattr(options, key), key
