"""transformers reads what beginning, end and template we keep as we do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tokenizers_made_here import SIDE_FILES, backend, write_side_files, write_tokenizer

from cktrain.data.special_tokens import special_ids
from cktrain.side_files import read_side_files
from cktrain.text_stream import Codec

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.judge


@pytest.mark.parametrize(
    ("bos", "config"),
    [
        (bos, config)
        for bos in (False, True)
        for config in ({}, {"add_bos_token": bos}, {"add_eos_token": False})
    ],
)
def test_a_prompt_has_the_ids_that_transformers_gives_it(tmp_path, bos, config):
    write_tokenizer(tmp_path, backend(bos=bos), **config)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    ours = Codec(read_side_files(tmp_path))
    for text in ("one two", "three<|im_end|>four", " five"):
        assert ours.encode(text) == theirs(text)["input_ids"], text


def test_template_and_ids_are_found(tmp_path):
    write_side_files(write_tokenizer(tmp_path))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    templates = theirs.chat_template
    assert SIDE_FILES["chat_template.jinja"] in (
        templates.values() if isinstance(templates, dict) else [templates]
    )
    settings = transformers.GenerationConfig.from_pretrained(str(tmp_path))
    assert settings.eos_token_id == special_ids(read_side_files(tmp_path))["eos_token_id"] == [2, 1]
