"""Two tokenizers are the same when they make the same ids and texts, however their files are spelled."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tokenizers import normalizers
from tokenizers_made_here import WORDS, backend

from cktrain.data.same_tokenizer import tokenizer_differences, with_other_tokenizer
from cktrain.side_files import SideFiles


def side_of(made, **files) -> SideFiles:
    text = made if isinstance(made, str) else made.to_str()
    return SideFiles({"tokenizer.json": text.encode(), **files}, found_in="folder")


def test_another_spelling_is_the_same_tokenizer():
    values = json.loads(backend().to_str())
    values["model"]["merges"] = [
        " ".join(pair) for pair in values["model"]["merges"]
    ]  # as older versions wrote them
    values["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    values["model"]["vocab"] = dict(reversed(values["model"]["vocab"].items()))
    del values["model"]["dropout"], values["model"]["ignore_merges"]
    other = json.dumps(dict(reversed(values.items())), indent=8)
    assert tokenizer_differences(side_of(backend()), side_of(other)) == []


def test_each_part_that_differs_is_named():
    more = side_of(backend((*WORDS, "six")))
    (vocabulary, merges) = tokenizer_differences(side_of(backend()), more)
    assert vocabulary.startswith("vocabulary (2 differ, ") and "'si': none and" in vocabulary
    assert merges.startswith("merges (")
    lower = backend()
    lower.normalizer = normalizers.Lowercase()
    assert tokenizer_differences(side_of(backend()), side_of(lower)) == ["normalizer"]
    assert tokenizer_differences(side_of(backend()), side_of(backend(bos=True))) == ["post-processor"]
    (added,) = tokenizer_differences(side_of(backend()), side_of(backend(spare=True)))
    assert added.startswith("added tokens (1 differ, 3 and 4 tokens; '<spare>'")


def test_the_same_bytes_are_not_even_read():
    nonsense = SideFiles({"tokenizer.json": b"nonsense"})
    assert tokenizer_differences(nonsense, replace(nonsense, found_in="elsewhere")) == []
    with pytest.raises(ValueError, match="not valid JSON"):
        tokenizer_differences(nonsense, side_of(backend()))


def test_special_ids_go_along_only_where_they_are_the_same_tokens():
    settings = b'{"eos_token_id": [2, 1], "temperature": 0.5}'
    mine = side_of(backend(), **{"generation_config.json": settings, "chat_template.jinja": b"mine"})
    both, lost = with_other_tokenizer(mine, side_of(backend(spare=True)))
    assert lost == [] and both.files["generation_config.json"] == settings
    assert "chat_template.jinja" not in both.files  # it is the other tokenizer's that counts
    values = json.loads(backend().to_str().replace("<|im_end|>", "<|turn|>"))
    both, lost = with_other_tokenizer(mine, side_of(json.dumps(values)))
    assert lost == ["eos_token_id 2 was '<|im_end|>' and is '<|turn|>'"]
    assert json.loads(both.files["generation_config.json"]) == {"temperature": 0.5}
