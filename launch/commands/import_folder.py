"""`cktrain import SRC [OUT]`: check a Hugging Face folder, or make one of a GGUF file, and print a config to start from.

cktrain import models/smol             a folder is checked, and stays where it is
cktrain import smol.gguf models/smol   a GGUF file becomes a folder
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from cktrain.launch import arguments

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain import`."""
    parser.add_argument(
        "source", type=arguments.path, help="folder with config.json and safetensors, or a GGUF file"
    )
    parser.add_argument("out", nargs="?", type=arguments.path, help="folder to make of a GGUF file")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="type of the folder's weights; default: that of the GGUF file's matrices, bfloat16 for quantized ones",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from cktrain.hf.gguf_file import is_gguf

    if not is_gguf(options.source):
        if options.out is not None or options.dtype is not None:
            raise ValueError(
                f"[import] {options.source} is no GGUF file: a folder is checked where it is. Leave OUT and --dtype out."
            )
        _check(options.source)
        return 0
    if options.out is None:
        raise ValueError(f"[import] {options.source} is a GGUF file. Name a folder to make of it as well.")
    from cktrain.hf.gguf_file.import_gguf import import_gguf
    from cktrain.hf.gguf_file.source import block_kinds

    dtype = import_gguf(options.source, options.out, options.dtype)
    kinds = ", ".join(f"{count} {kind}" for kind, count in block_kinds(options.source).items())
    print(f"{options.source} ({kinds} tensors) -> {options.out}, {dtype}", file=sys.stderr)
    _check(options.out)
    return 0


def _check(given: str) -> None:
    """Read the whole folder, say what it holds, and print a configuration."""
    from pathlib import Path

    from cktrain import cython_kernels
    from cktrain.hf.config_json import read_model_config
    from cktrain.hf.tensors import check_weights
    from cktrain.models.build import build_model
    from cktrain.nn.numerics import Numerics
    from cktrain.side_files import TOKENIZER_FILE

    folder = Path(given)
    config = read_model_config(folder)
    length = config.max_position_embeddings
    assert length is not None
    params = build_model(config, Numerics(cython_kernels.load(), "fp32"), positions=1).params()
    _check_side_files(folder)
    stored = check_weights(folder, config, params)
    types = ", ".join(sorted({tensor.dtype for tensor in stored}))
    files = len({tensor.file for tensor in stored})
    print(
        f"{folder}: {config.family}, {sum(param.size for param in params):,} parameters in {len(stored)} "
        f"tensors of {types}, "
        f"{files} file{'s' * (files != 1)}; all there, all finite",
        file=sys.stderr,
    )
    name = folder.resolve().name or "model"
    given = given if not given.startswith("-") else f"./{given}"
    if (folder / TOKENIZER_FILE).is_file():
        command = ["cktrain", "data", "prepare", "TEXT", f"data/{name}", "--tokenizer", given]
        print(f"tokens: {shlex.join(command)}", file=sys.stderr)
    print(_config(name, given, min(length, _LONGEST)), end="")


def _check_side_files(folder: Path) -> None:
    """Read what stands beside the weights: who uses the model would meet it later. ValueError, naming the file."""
    from cktrain.data.chat.template import stock_templates
    from cktrain.data.special_tokens import special_ids
    from cktrain.data.tokenizer_backend import read_backend
    from cktrain.side_files import read_side_files

    side = read_side_files(folder)
    for name in side.files:
        if name.endswith("_config.json") or name in ("special_tokens_map.json", "added_tokens.json"):
            side.json(name)
    stock_templates(side)
    special_ids(side)
    if side.has_tokenizer:
        read_backend(side)


def _config(name: str, folder: str, length: int) -> str:
    """A configuration that starts from the folder: a line per block, whatever the names are made of."""
    from cktrain.yaml_text import dump_yaml

    blocks: dict[str, dict[str, Any]] = {
        "run": {"dir": f"runs/{name}", "steps": 1000},
        "model": {"from_pretrained": folder},
        "data": {"path": f"data/{name}", "sequence_length": length},
        "batch": {"micro_batch_size": 1, "global_batch_size": 16},
        "optimizer": {"lr": 2.0e-5},
        "schedule": {"warmup_steps": 50},
    }
    return "".join(f"{key + ':':<11} {dump_yaml(values, flow=True)}\n" for key, values in blocks.items())
