"""Tiny tokenizers of several kinds, and Hugging Face folders with them, built in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

WORDS = ("one", "two", "three", "four", "five")
BOS, EOS, TURN, SPARE = "<s>", "</s>", "<|im_end|>", "<spare>"


def backend(words: tuple[str, ...] = WORDS, bos: bool = False, spare: bool = False) -> Backend:
    """Bytes and some words, `<s>`, `</s>`, `<|im_end|>` as special tokens; `bos`: a post-processor that adds `<s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([BOS, EOS, TURN, *alphabet])}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    made = Backend(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in (BOS, EOS, TURN)])
    if spare:
        made.add_special_tokens([SPARE])
    if bos:
        made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return made


def write_tokenizer(folder: Path, made: Backend | None = None, **config: Any) -> Path:
    """tokenizer.json and tokenizer_config.json (eos_token `</s>` and what is given) in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (made or backend()).save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


SIDE_FILES = {
    "special_tokens_map.json": '{"eos_token": "</s>"}',
    "generation_config.json": '{"bos_token_id": 0, "eos_token_id": [2, 1], "temperature": 0.6, "do_sample": true}',
    "chat_template.jinja": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "tokenizer.model": "a model of sentencepiece",
}


def write_side_files(folder: Path) -> None:
    """What else a Hugging Face folder has."""
    for name, text in SIDE_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
