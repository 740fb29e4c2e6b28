"""A GGUF file to a Hugging Face folder, tensor by tensor: in memory is one piece of a tensor at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cktrain import cython_kernels
from cktrain.hf.config_json import read_model_config
from cktrain.hf.folder import write_folder
from cktrain.hf.gguf_file.source import float_type
from cktrain.hf.tensors import matching_tensors, write_weights
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.side_files import read_side_files


def import_gguf(
    source: str | Path, folder: str | Path, dtype: str | None = None, max_shard_bytes: int = 5_000_000_000
) -> str:
    """Write what `source` holds as a folder that `transformers` loads; returns the type of its weights.

    `dtype` is float32, float16 or bfloat16. None: the type of the file's matrices; blocks become bfloat16, in which most
    models were published (float32 keeps a block's values to the last bit).
    Raises ValueError for a file that is damaged or not known, for a folder that is not empty, and for weights that are NaN
    or infinite; OSError when writing fails. The folder is then as it was.
    """
    config = read_model_config(source)
    side = read_side_files(source)
    params = build_model(config, Numerics(cython_kernels.load(), "fp32"), positions=1).params()
    tensors = [(tensor.name, tensor) for tensor in matching_tensors(source, config, params)]
    dtype = dtype or float_type(source)
    write_folder(folder, config, partial(write_weights, tensors=tensors), side, dtype, max_shard_bytes)
    return dtype
