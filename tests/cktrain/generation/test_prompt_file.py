"""Files of prompts: lines of text, JSON lines, and what is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from cktrain.generation.prompt_file import read_prompts


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_lines_are_prompts_and_blank_ones_are_none(tmp_path):
    data = "\ufeffdef \r\n\n 東京\u2028x\nlast".encode()
    assert read_prompts(written(tmp_path, "a.txt", data)) == ["def ", " 東京\u2028x", "last"]


def test_json_lines_hold_prompts_of_several_lines(tmp_path):
    data = b'{"prompt": "a\\nb", "id": 3}\n\n{"prompt": ""}\n'
    assert read_prompts(written(tmp_path, "a.jsonl", data)) == ["a\nb", ""]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n{"text": "b"}', r'a\.jsonl:2: "prompt" is missing'),
        ("a.jsonl", b'{"prompt": 3}', r'a\.jsonl:1: "prompt" is int, not text'),
        ("a.jsonl", b'["a"]', r"a\.jsonl:1: .*found \['a'\]"),
        ("a.jsonl", b"plain text", r"a\.jsonl:1: not valid JSON"),
        ("a.txt", b"\n \n", "has no prompt"),
        ("a.txt", b"\xff\xff", "not UTF-8 text"),
    ],
)
def test_what_is_no_file_of_prompts(tmp_path, name, data, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(written(tmp_path, name, data))
    with pytest.raises(ValueError, match=r"it cannot be read"):
        read_prompts(tmp_path / "nothing.txt")
