"""`reuse` keeps a folder only while everything that it stands on is as it was, and says what is not."""

import json
import os

import pytest

from cktrain.data.prepare import prepare
from cktrain.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source of two files, a tokenizer of its own, and what was made of them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "texts").mkdir()
    for name in "ab":
        (folder / "texts" / f"{name}.txt").write_text(f"{name} some words\n" * 20)
    (folder / "own").mkdir()
    Tokenizer.train(["some words"] * 3, 270).save(folder / "own")
    return folder


class Place:
    """Prepares texts into out; `said` is what the last one said."""

    def __init__(self, folder):
        self.folder = folder
        self.said = []

    def __call__(self, **options):
        self.said.clear()
        options = {"vocab_size": 270, "progress": False, "reuse": True, "say": self.said.append} | options
        before = os.stat(self.folder / "out").st_ino if (self.folder / "out").exists() else 0
        prepare(self.folder / "texts", self.folder / "out", **options)
        return os.stat(self.folder / "out").st_ino == before

    def again(self, why, **options):
        kept = self(**options)
        assert not kept and any(why in line for line in self.said), self.said
        return True


@pytest.fixture
def place(made, tmp_path):
    for path in made.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(made)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    place = Place(tmp_path)
    place()
    return place


def test_the_same_is_kept_also_when_dates_differ(place):
    assert place() and place.said == []
    os.utime(place.folder / "texts" / "a.txt", (1, 1))
    assert place()


def test_content_counts_and_not_dates(place):
    path = place.folder / "texts" / "a.txt"
    status = path.stat()
    path.write_text("b some words\n" * 20)  # as long as before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert place.again("the source has changed")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("train-00000.cktok", None, "train-00000.cktok is missing"),
        ("validation-00000.cktok", None, "validation-00000.cktok is missing"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer_config.json", "{}", "tokenizer_config.json is not the one recorded"),
        ("train-00000.cktok", -2, "train-00000.cktok is not the one recorded"),
        ("train-00000.cktok", -1, "train-00000.cktok is not the one recorded"),
        ("validation-00000.cktok", 0, "validation-00000.cktok is not the one recorded"),
    ],
)
def test_a_file_of_the_folder_that_is_not_as_it_was(place, name, content, why):
    path = place.folder / "out" / name
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    elif content == -1:  # one bit in the middle
        path.write_bytes(whole[:80] + bytes([whole[80] ^ 1]) + whole[81:])
    else:
        os.truncate(path, len(whole) + content if content else 0)
    assert place.again(why)
    assert path.read_bytes() == whole
    assert place()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"vocab_size": 265}, "vocab_size was 270 and is 265"),
        ({"validation_fraction": 0.5}, "validation_fraction was 0.05 and is 0.5"),
        ({"shard_tokens": 50}, "shard_tokens was 100000000 and is 50"),
        ({"suffixes": [".txt", ".md"]}, ""),
        ({"text_key": "body"}, "the source has changed"),
    ],
)
def test_other_options(place, options, why):
    if why:
        assert place.again(why, **options)
    else:
        assert place(**options)  # the same files all the same


def test_another_source_or_more_files(place):
    (place.folder / "texts" / "c.txt").write_text("more\n")
    assert place.again("the source has changed")
    (place.folder / "texts" / "c.txt").rename(place.folder / "texts" / "d.txt")
    assert place.again("the source has changed")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
)
def test_a_tokenizer_that_was_given(place, name):
    own = place.folder / "own"
    assert place.again("", tokenizer=own)
    assert place(tokenizer=own)
    path = own / name
    if path.exists():
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    else:
        path.write_text("{}")
    assert place.again("the tokenizer has changed", tokenizer=own)
    assert place(tokenizer=own)


def test_a_folder_of_an_older_version(place):
    path = place.folder / "out" / "dataset.json"
    dataset = json.loads(path.read_text())
    del dataset["written"], dataset["made_from"]
    path.write_text(json.dumps(dataset))
    assert place.again("older cktrain")
    assert place()
