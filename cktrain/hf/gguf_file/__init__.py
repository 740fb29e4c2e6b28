"""GGUF files of llama.cpp: read as if each were a Hugging Face folder, and written from a model.

    reader.py            the container: keys, and where each tensor's bytes are
    architectures.py     names of tensors and model types, both ways
    hyperparameters.py   keys to config.json, and back
    rope_keys.py         those of rotary scaling, and its divisors
    own_keys.py          those that one architecture has alone
    pre_tokenizers.py    what `tokenizer.ggml.pre` stands for
    tokenizer_in.py      keys to tokenizer.json and what stands beside it
    tokenizer_out.py     the way back
    source.py            config, tokenizer and tensors of a file
    import_gguf.py       a file to a folder
    export.py            a model to a file
    block_choice.py      the type of each of its tensors
    modelfile.py         Ollama's Modelfile beside it

Everything that opens a pretrained model (`cktrain.hf.config_json`, `cktrain.hf.tensors`, `cktrain.side_files`) asks
`is_gguf` about its path first. This module is light; the others need the package `gguf`, which knows the block types.
"""

from __future__ import annotations

from pathlib import Path

MAGIC = b"GGUF"


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file: by its suffix, or by how the file begins."""
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    try:
        with open(path, "rb") as file:
            return path.is_file() and file.read(4) == MAGIC
    except (OSError, ValueError):
        return False
