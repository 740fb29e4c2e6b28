"""`cktrain import HF_DIR`: check a Hugging Face folder and print a config that starts from it."""

from __future__ import annotations

import argparse
import sys

_CONFIG = """\
run:        {{dir: runs/{name}, steps: 1000}}
model:      {{from_pretrained: {folder}}}
data:       {{path: data/{name}, sequence_length: {length}}}
batch:      {{micro_batch_size: 1, global_batch_size: 16}}
optimizer:  {{lr: 2.0e-5}}
schedule:   {{warmup_steps: 50}}
"""
_LONGEST = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain import`."""
    parser.add_argument("folder", help="folder with config.json and safetensors")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from cktrain import cython_kernels
    from cktrain.data.tokenizer import TOKENIZER_FILE
    from cktrain.models.build import build_model
    from cktrain.models.hugging_face import check_weights, read_model_config
    from cktrain.nn.numerics import Numerics

    folder = Path(options.folder)
    config = read_model_config(folder)
    length = config.max_position_embeddings
    assert length is not None
    params = build_model(config, Numerics(cython_kernels.load(), "fp32"), positions=1).params()
    stored = check_weights(folder, params)
    types = ", ".join(sorted({tensor.dtype for tensor in stored}))
    files = len({tensor.file for tensor in stored})
    print(
        f"{folder}: {config.family}, {sum(param.size for param in params):,} parameters in {len(stored)} "
        f"tensors of {types}, "
        f"{files} file{'s' * (files != 1)}; all there, all finite",
        file=sys.stderr,
    )
    name = folder.resolve().name
    if (folder / TOKENIZER_FILE).is_file():
        print(f"tokens: cktrain data prepare TEXT data/{name} --tokenizer {folder}", file=sys.stderr)
    print(
        _CONFIG.format(
            name=json.dumps(name)[1:-1], folder=json.dumps(str(folder)), length=min(length, _LONGEST)
        ),
        end="",
    )
    return 0
