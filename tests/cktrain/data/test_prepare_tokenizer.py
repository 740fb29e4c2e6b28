"""Preparing data with a tokenizer that somebody else made: all its files, its own rule, and what it does to the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers
from tokenizers_made_here import SIDE_FILES, backend, write_side_files, write_tokenizer

from cktrain.data.prepare import prepare
from cktrain.data.shards import open_source
from cktrain.launch.cli import main
from cktrain.side_files import Encoding, read_tokenizer
from cktrain.text_stream import Codec


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What prepare says, with a text of two documents in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("One two</s>three.\n<|endoftext|>\nfour <|im_end|>\n")
    return []


def make(said: list[str], tokenizer: Path, **options: Any) -> tuple[dict[str, Any], list[int]]:
    summary = prepare(
        "text.txt",
        "data",
        tokenizer=tokenizer,
        validation_fraction=0,
        progress=False,
        say=said.append,
        **options,
    )
    source = open_source("data")
    return summary, source.read(0, len(source)).tolist()


def test_all_files_come_along(said):
    folder = write_tokenizer(Path("hf"))
    write_side_files(folder)
    (folder / "config.json").write_text('{"eos_token_id": [1, 2], "pad_token_id": 2, "vocab_size": 288}')
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    summary, _ = make(said, folder)
    assert {name: Path("data", name).read_bytes() for name in SIDE_FILES} == {
        name: (folder / name).read_bytes() for name in SIDE_FILES
    }
    assert not Path("data/config.json").exists()
    assert summary["special_ids"] == {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 2}
    assert set(SIDE_FILES) <= set(summary["written"])
    make(said, folder, overwrite=True)  # a folder in it is known too
    Path("data/additional_chat_templates/mine.jinja").write_text("by hand")
    with pytest.raises(ValueError, match=r"would be deleted: additional_chat_templates/mine\.jinja"):
        make(said, folder, overwrite=True)


def test_documents_and_prompts_begin_as_the_tokenizers_own_rule_says(said):
    summary, ids = make(said, write_tokenizer(Path("bos"), backend(bos=True)))
    assert summary["begin_ids"] == [0] and ids[0] == 0 and ids[-1] == 1 and ids.count(0) == ids.count(1) == 2
    side = read_tokenizer("data")
    recorded = Encoding(**{key: summary[key] for key in ("special_tokens", "begin_ids", "eos_id")})
    assert Codec(side).encode("One")[0] == 0
    _, plain = make(said, write_tokenizer(Path("plain")), overwrite=True)
    assert 0 not in plain and plain.count(1) == 2
    assert Codec(read_tokenizer("data")).encode("One")[0] != 0
    assert recorded.eos_id == 1 and said == [line for line in said if "post-processor" not in line]
    make(said, write_tokenizer(Path("both"), backend(bos=True), add_bos_token=False), overwrite=True)
    assert any(
        "put [] before and [] after a text, the post-processor of tokenizer.json [0] and []" in line
        for line in said
    )


def test_special_tokens_in_the_text_are_counted_and_text_or_tokens(said):
    summary, ids = make(said, write_tokenizer(Path("hf")))
    assert summary["special_tokens_in_text"] == {"</s>": 1, "<|im_end|>": 1}
    assert ids.count(1) == 2 and 2 not in ids
    assert "</s> (1), <|im_end|> (1). They became ordinary text (--special-tokens parse makes" in said[-1]
    summary, ids = make(said, Path("hf"), special_tokens="parse", reuse=True)
    assert ids.count(1) == 3 and ids.count(2) == 1 and summary["special_tokens"] == "parse"
    assert "They became the tokens" in said[-1]
    assert any("special_tokens was text and is parse" in line for line in said)


def test_which_token_ends_documents_is_said_and_can_be_chosen(said, capsys):
    write_side_files(write_tokenizer(Path("hf")))
    options = ["text.txt", "data", "--tokenizer", "hf", "--validation-fraction", "0", "--overwrite"]
    assert main(["data", "prepare", *options]) == 0
    out = capsys.readouterr().out
    assert "documents end with </s> (1); the model's files also end texts with 2 (--eos-token chooses)" in out
    assert main(["data", "prepare", *options, "--eos-token", "<|im_end|>"]) == 0
    assert "documents end with <|im_end|> (2)" in capsys.readouterr().out
    assert open_source("data").eos_id == 2
    assert main(["data", "prepare", *options, "--eos-token", "<nowhere>"]) == 2
    assert "'<nowhere>' was asked for and is not in the vocabulary" in capsys.readouterr().err


def test_text_that_does_not_come_back_is_told_with_an_example(said):
    lower = backend()
    lower.normalizer = normalizers.Lowercase()
    summary, _ = make(said, write_tokenizer(Path("lower"), lower))
    assert summary["round_trip"] == {"documents": 2, "changed": 1}
    assert any("1 of 2 sampled documents do not come back" in line and "'One two" in line for line in said)


def test_unknown_tokens_are_counted(said):
    words = {"[UNK]": 0, "two": 1, "four": 2, "</s>": 3, ".": 4}
    made = Backend(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    summary, ids = make(said, write_tokenizer(Path("words"), made, bos_token=None))
    assert summary["unknown_tokens"] == ids.count(0) > 3
    assert any("are [UNK], the unknown token" in line for line in said)


def test_a_tokenizer_of_the_target_itself_survives_its_replacement(said):
    make(said, write_tokenizer(Path("hf")))
    before = Path("data/tokenizer.json").read_bytes()
    make(said, Path("data"), overwrite=True)
    assert Path("data/tokenizer.json").read_bytes() == before


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_reuse_sees_a_changed_file_beside_the_tokenizer(said, name):
    folder = write_tokenizer(Path("hf"))
    write_side_files(folder)
    make(said, folder)
    make(said, folder, reuse=True)
    assert not any("prepared again" in line for line in said)
    values = {"eos_token": "<|im_end|>", "eos_token_id": 2}
    (folder / name).write_text(json.dumps(values))
    make(said, folder, reuse=True)
    assert any("because the tokenizer has changed" in line for line in said)
