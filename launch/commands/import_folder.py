"""`cktrain import HF_DIR`: check a Hugging Face folder and print a config that starts from it."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from cktrain.launch import arguments

_LONGEST = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain import`."""
    parser.add_argument("folder", type=arguments.path, help="folder with config.json and safetensors")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pathlib import Path

    from cktrain import cython_kernels
    from cktrain.hf.config_json import read_model_config
    from cktrain.hf.tensors import check_weights
    from cktrain.models.build import build_model
    from cktrain.nn.numerics import Numerics
    from cktrain.side_files import TOKENIZER_FILE

    folder = Path(options.folder)
    config = read_model_config(folder)
    length = config.max_position_embeddings
    assert length is not None
    params = build_model(config, Numerics(cython_kernels.load(), "fp32"), positions=1).params()
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
    given = options.folder if not options.folder.startswith("-") else f"./{options.folder}"
    if (folder / TOKENIZER_FILE).is_file():
        command = ["cktrain", "data", "prepare", "TEXT", f"data/{name}", "--tokenizer", given]
        print(f"tokens: {shlex.join(command)}", file=sys.stderr)
    print(_config(name, given, min(length, _LONGEST)), end="")
    return 0


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
