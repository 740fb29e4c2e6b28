"""`cktrain export SRC OUT`: a run's newest checkpoint, a given one, or a model's folder or GGUF file, in another form.

cktrain export runs/demo hf                   a Hugging Face folder
cktrain export runs/demo demo.gguf --gguf f16 a file for llama.cpp
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cktrain.launch import arguments

if TYPE_CHECKING:
    from cktrain.saved_model import SavedModel
    from cktrain.side_files import SideFiles

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain export`."""
    parser.add_argument(
        "model",
        type=arguments.path,
        help="folder of a run, a checkpoint, a Hugging Face folder, or a GGUF file",
    )
    parser.add_argument("out", type=arguments.path, help="folder to make; with --gguf a file")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="type of the weights; default: float32, with --merge that of the base's files",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="of an adapter's run: the base's weights with the adapter in them",
    )
    parser.add_argument(
        "--adapter", action="store_true", help="of an adapter's run: the adapter, as PEFT's folder"
    )
    parser.add_argument(
        "--gguf",
        nargs="?",
        const="f32",
        choices=("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k", "mxfp4"),
        help="write a GGUF file for llama.cpp, its matrices in this type (f32); with --adapter the adapter alone",
    )
    parser.add_argument(
        "--ollama", action="store_true", help="with --gguf: write a Modelfile for Ollama beside the file"
    )
    parser.add_argument(
        "--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="500MB, 5GB (default)"
    )
    parser.add_argument(
        "--tokenizer",
        type=arguments.path,
        help="folder with a tokenizer.json, or an id of a Hub; default: the run's own; none: export without one",
    )
    parser.add_argument(
        "--any-tokenizer", action="store_true", help="take --tokenizer although it is not the run's own"
    )
    parser.add_argument(
        "--no-validation",
        action="store_true",
        help="do not compute the validation loss of the run's model and of what was written",
    )
    parser.set_defaults(run=_run)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?)B?", text.strip().upper())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 500MB or 5GB")
    return int(match[1]) * _UNITS[match[2]]


def _run(options: argparse.Namespace) -> int:
    try:
        return _export(options)
    except OSError as error:
        if error.filename is None and options.gguf is None:  # of a write that failed, which knows no name
            error.filename = options.out
        raise


def _export(options: argparse.Namespace) -> int:
    from cktrain.adapter_export import export_merged
    from cktrain.export_check import losses_in_words
    from cktrain.saved_model import find_saved_model

    saved = find_saved_model(options.model)
    if options.adapter and options.merge:
        raise ValueError("[export] --adapter and --merge are two exports. Give one of them.")
    if options.adapter and options.ollama:
        raise ValueError(
            "[export] --ollama describes a whole model, and --adapter is none. Leave one of them out."
        )
    if saved.adapter is not None and not (options.adapter or options.merge):
        raise ValueError(
            f"[export] {saved.path} is of an adapter. Give --merge for the base's weights with the adapter in them, or "
            "--adapter for PEFT's folder."
        )
    if options.ollama and options.gguf is None:
        raise ValueError("[export] --ollama writes a Modelfile beside a GGUF file. Give --gguf as well.")
    if options.gguf is not None and options.dtype is not None:
        raise ValueError(
            f"[export] --gguf {options.gguf} names the type of the weights too. Leave --dtype out."
        )
    if options.adapter:
        _write_adapter(saved, Path(options.out), options.gguf)
        return 0
    side = saved.side_files(options.tokenizer, options.any_tokenizer)
    if options.gguf is not None:
        _write_gguf(saved, side, options)
    elif options.merge:
        words = export_merged(saved, Path(options.out), side, options.dtype)
        print(f"{saved.path} -> {options.out}: {words}")
    else:
        _write_folder(saved, side, options)
    if not options.no_validation and (compared := losses_in_words(saved, options.out)):
        print(compared)
    return 0


def _write_adapter(saved: SavedModel, out: Path, gguf: str | None) -> None:
    from cktrain.adapter_export import export_adapter, export_gguf_adapter_of, for_vllm
    from cktrain.hf.gguf_file.adapter_out import ADAPTER_KINDS

    if gguf is None:
        count = export_adapter(saved, out)
        print(f"{saved.path} -> {out}: an adapter of {count:,} weights, for PEFT")
        print(for_vllm(saved, out))
        return
    kind = next((kind for kind in ADAPTER_KINDS if kind == gguf), None)
    if kind is None:
        raise ValueError(
            f"[export] --adapter --gguf {gguf}: an adapter is written as {' or '.join(ADAPTER_KINDS)}. Give one."
        )
    count = export_gguf_adapter_of(saved, out, kind)
    print(f"{saved.path} -> {out}: an adapter of {count:,} weights, {kind}, for llama.cpp's --lora")


def _write_gguf(saved: SavedModel, side: SideFiles, options: argparse.Namespace) -> None:
    from cktrain.adapter_export import exported_params
    from cktrain.hf.gguf_file.export import export_gguf
    from cktrain.hf.gguf_file.modelfile import modelfile
    from cktrain.whole_output import refuse_existing, whole_file

    out = Path(options.out)
    refuse_existing(out, "gguf")  # before the model is read
    beside = out.with_name("Modelfile")
    # What cannot be a Modelfile is refused before the model is written.
    text = modelfile(beside, out.name, side) if options.ollama else None
    params = exported_params(saved, options.merge)
    notes = export_gguf(options.out, saved.config, params, side, options.gguf)
    count = sum(param.size for param in params.params if not param.spec.adapter)
    print(f"{saved.path} -> {options.out}: {count:,} parameters, {options.gguf}")
    for note in notes:
        print(f"note: {note}")
    if text is not None:
        with whole_file(beside, "ollama") as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        print(f"{beside}: ollama create NAME -f {shlex.quote(str(beside))}")
    if not side.has_tokenizer:
        print("without a tokenizer: the run has none (give one with --tokenizer)")


def _write_folder(saved: SavedModel, side: SideFiles, options: argparse.Namespace) -> None:
    from cktrain.adapter_export import exported_params
    from cktrain.hf.config_json import model_type_of
    from cktrain.hf.folder import save_folder

    params = exported_params(saved, merge=False)
    dtype: Literal["float32", "bfloat16"] = options.dtype or "float32"
    save_folder(options.out, saved.config, params, side, dtype, options.max_shard_size)
    print(f"{saved.path} -> {options.out}: {params.count:,} parameters, {dtype}")
    if not side.has_tokenizer:
        print("without a tokenizer: the run has none (give one with --tokenizer)")
    elif model_type_of(saved.config) == "qwen2":
        print(
            "note: transformers 5 loads Qwen's own tokenizer class for every model of type qwen2; for "
            "another tokenizer use PreTrainedTokenizerFast.from_pretrained instead of AutoTokenizer"
        )
