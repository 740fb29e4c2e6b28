"""`cktrain export RUN OUT`: a run's newest checkpoint, or a given one, as a Hugging Face folder."""

from __future__ import annotations

import argparse
import re

from cktrain.launch import arguments

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain export`."""
    parser.add_argument("model", type=arguments.path, help="folder of a run, or a checkpoint")
    parser.add_argument("out", type=arguments.path, help="folder to make")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the weights"
    )
    parser.add_argument(
        "--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="500MB, 5GB (default)"
    )
    parser.add_argument(
        "--tokenizer",
        type=arguments.path,
        help="folder with a tokenizer.json; default: the run's own; none: export without one",
    )
    parser.add_argument(
        "--any-tokenizer", action="store_true", help="take --tokenizer although it is not the run's own"
    )
    parser.set_defaults(run=_run)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?)B?", text.strip().upper())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 500MB or 5GB")
    return int(match[1]) * _UNITS[match[2]]


def _run(options: argparse.Namespace) -> int:
    from cktrain import cython_kernels
    from cktrain.hf.config_json import model_type_of
    from cktrain.hf.folder import save_folder
    from cktrain.nn.numerics import Numerics
    from cktrain.saved_model import find_saved_model

    saved = find_saved_model(options.model)
    side = saved.side_files(options.tokenizer, options.any_tokenizer)
    _, params = saved.load(Numerics(cython_kernels.load(), "fp32"), positions=1)
    save_folder(options.out, saved.config, params, side, options.dtype, options.max_shard_size)
    print(f"{saved.path} -> {options.out}: {params.count:,} parameters, {options.dtype}")
    if not side.has_tokenizer:
        print("without a tokenizer: the run has none (give one with --tokenizer)")
    elif model_type_of(saved.config) == "qwen2":
        print(
            "note: transformers 5 loads Qwen's own tokenizer class for every model of type qwen2; for "
            "another tokenizer "
            "use PreTrainedTokenizerFast.from_pretrained instead of AutoTokenizer"
        )
    return 0
