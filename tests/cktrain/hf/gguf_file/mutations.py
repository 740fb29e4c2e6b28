"""Damaged GGUF files: each is read whole or refused in words, in no more time than its size asks for.

python tests/cktrain/hf/gguf_file/mutations.py 100000     many of them, and what became of them
"""

from __future__ import annotations

import re
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from gguf_made_here import SIZES, byte_level, side_files

from cktrain import cython_kernels
from cktrain.hf.config_json import read_model_config
from cktrain.hf.gguf_file.export import export_gguf
from cktrain.hf.tensors import matching_tensors
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.safetensors_file import to_finite
from cktrain.side_files import read_side_files

_ABSURD = (0, 1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def small_file(folder: Path) -> bytes:
    """A whole file of one layer, in Q8_0."""
    config = parse_model({**SIZES, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32})
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    params = ParamStore(build_model(config, numerics, 64).params(), numerics)
    params.initialize(seed=7)
    export_gguf(folder / "whole.gguf", config, params, side_files(folder / "side", byte_level()), "q8_0")
    return (folder / "whole.gguf").read_bytes()


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """One of: cut short, bytes changed, an absurd number, a piece taken out or doubled; mostly in the header."""
    changed = bytearray(data)
    header = 12_000 if draw.random() < 0.9 else len(data)
    at = int(draw.integers(min(header, len(data) - 8)))
    kind = draw.integers(5)
    if kind == 0:
        return bytes(changed[: int(draw.integers(len(data)))])
    if kind == 1:
        for _ in range(int(draw.integers(1, 4))):
            changed[int(draw.integers(min(header, len(data))))] = int(draw.integers(256))
    elif kind == 2:
        changed[at : at + 8] = struct.pack("<Q", _ABSURD[int(draw.integers(len(_ABSURD)))])
    elif kind == 3:
        del changed[at : at + int(draw.integers(1, 64))]
    else:
        changed[at:at] = changed[at : at + int(draw.integers(1, 64))]
    return bytes(changed)


def outcome(path: Path) -> str:
    """Read all of a file as an import does: "whole", or the error without its numbers and names."""
    try:
        config = read_model_config(path)
        side = read_side_files(path)
        assert side.json("config.json")
        params = build_model(config, Numerics(cython_kernels.load("reference"), "fp32"), positions=1).params()
        for tensor in matching_tensors(path, config, params):
            for _, values in tensor.pieces():
                to_finite(values, np.dtype(np.float32), tensor.name)
    except ValueError as error:
        text = str(error)
        assert re.match(r"\[\w+\] .*[.)] [A-Z].*\.$", text, re.DOTALL), text
        return re.sub(r"'.*?'|\"[^\"]*\"|[\d,]+|/\S+", "…", text)[:60]
    return "whole"


def main() -> None:
    """Try as many as were asked for; print the commonest outcomes and the longest time."""
    count, longest = int(sys.argv[1]), 0.0
    draw, found = np.random.default_rng(2026), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        data, path = small_file(Path(folder)), Path(folder, "mutated.gguf")
        for _ in range(count):
            path.write_bytes(mutated(data, draw))
            began = time.perf_counter()
            found[outcome(path)] += 1
            longest = max(longest, time.perf_counter() - began)
    print(f"{count:,} files, each read whole or refused in words; the longest took {longest:.2f} s")
    for text, times in found.most_common(12):
        print(f"{times:>8,}  {text}")


if __name__ == "__main__":
    main()
