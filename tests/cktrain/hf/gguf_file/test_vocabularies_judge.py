"""llama.cpp's own vocabularies with their test texts: the ids are those that it lists for them.

They stand in the source archive of llama-cpp-python (77 MB), which is fetched once into build/.
"""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from cktrain.hf.gguf_file.reader import read_gguf
from cktrain.hf.gguf_file.tokenizer_in import tokenizer_files

pytestmark = [pytest.mark.judge, pytest.mark.slow]
KEPT = Path(__file__).resolve().parents[4] / "build" / "llama_cpp_vocabularies"
NAMES = (
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "starcoder",
    "refact",
    "command-r",
    "mpt",
    "llama-spm",
    "phi-3",
)


@pytest.fixture(scope="session")
def vocabularies() -> Path:
    """The folder of ggml-vocab-*.gguf, .inp and .out."""
    if not KEPT.is_dir():
        loading = KEPT.with_name("llama_cpp_source")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
        ]
        subprocess.run([*command, "-d", str(loading), "llama-cpp-python"], check=True, timeout=600)
        (archive,) = loading.glob("*.tar.gz")
        unpacked = KEPT.with_name(f".{KEPT.name}")
        unpacked.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as source:
            for member in source:
                name = Path(member.name).name
                if name.startswith(tuple(f"ggml-vocab-{each}.gguf" for each in NAMES)):
                    content = source.extractfile(member)
                    assert content is not None
                    (unpacked / name).write_bytes(content.read())
        archive.unlink()
        unpacked.rename(KEPT)
    return KEPT


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_that_llama_cpp_lists(name, vocabularies):
    path = vocabularies / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_str(tokenizer_files(read_gguf(path))["tokenizer.json"].decode())
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    listed = path.with_suffix(".gguf.out").read_text().splitlines()
    assert len(listed) > 40
    for text, ids in zip(texts, listed, strict=False):  # a text after the last separator is empty
        assert tokenizer.encode(text, add_special_tokens=False).ids == [
            int(index) for index in ids.split()
        ], text
