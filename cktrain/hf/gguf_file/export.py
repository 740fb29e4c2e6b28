"""A model to a GGUF file, as llama.cpp's own converter and quantizer write it; `block_choice.py` says which type is where.

Everything is checked before the first byte is written; then one tensor at a time is converted and written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cktrain.hf.config_json import model_type_of
from cktrain.hf.gguf_file.architectures import ARCHITECTURES, BY_MODEL_TYPE, Architecture, to_neighbours
from cktrain.hf.gguf_file.block_choice import FILE_TYPES, Kind, fitting_type, wanted_type
from cktrain.hf.gguf_file.hyperparameters import write_hyperparameters
from cktrain.hf.gguf_file.reader import block_types
from cktrain.hf.gguf_file.rope_keys import divisors_of
from cktrain.hf.gguf_file.tokenizer_out import tokenizer_keys
from cktrain.hf.k_quants import K_BYTES, encode_k
from cktrain.hf.tensors import HFTensor, hf_tensors
from cktrain.memory.param_store import ParamStore
from cktrain.models.family import ModelConfig, RotaryConfig
from cktrain.models.granite import GraniteConfig
from cktrain.models.granite4 import Granite4Config
from cktrain.safetensors_file import to_finite
from cktrain.side_files import SideFiles
from cktrain.whole_output import refuse_existing, whole_file


def export_gguf(
    path: str | Path, config: ModelConfig, params: ParamStore, side: SideFiles, kind: Kind
) -> list[str]:
    """Write the file; returns notes on what is not as in the model, in words.

    Raises ValueError when it exists, for an architecture, a rotary scaling, biases or a tokenizer that llama.cpp has not,
    for a weight that is NaN or infinite, and OSError when writing fails. There is no file then.
    """
    path = Path(path)
    refuse_existing(path, "gguf")
    gguf = block_types()
    notes: list[str] = []
    config = as_granite_3(config)
    architecture = architecture_of(config)
    assert isinstance(config, RotaryConfig)
    keys: dict[str, Any] = {
        "general.type": "model",
        "general.name": title_of(path),
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
    }
    own = write_hyperparameters(_within_window(config, architecture, notes), architecture)
    keys |= {f"{architecture.name}.{key}": value for key, value in own.items()}
    keys |= tokenizer_keys(side, config.vocab_size)
    tensors = hf_tensors(config, reversed(params.params))
    _refuse_unknown(tensors, architecture)
    with whole_file(path, "gguf") as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.name)
        for key, value in keys.items():
            _add_key(writer, key, value)
        _write_tensors(writer, config, architecture, tensors, kind, notes)
        writer.close()
    return notes


def title_of(path: Path) -> str:
    """A file's name as `general.name`, which is UTF-8 whatever the name or the locale is."""
    return os.fsencode(path.stem).decode("utf-8", errors="replace")


def as_granite_3(config: ModelConfig) -> ModelConfig:
    """A dense Granite 4 as a Granite 3, whose computation it has and as which llama.cpp's converter writes it."""
    if not isinstance(config, Granite4Config):
        return config
    if config.position_embedding_type == "nope":
        raise ValueError(
            "[gguf] the model has no positions, and llama.cpp's granite has. Export a Hugging Face folder instead."
        )
    return GraniteConfig(**config.model_dump(exclude={"family", "position_embedding_type"}))


def architecture_of(config: ModelConfig) -> Architecture:
    """A model's architecture there. Raises ValueError for one that llama.cpp has not, or not with these sizes."""
    model_type = model_type_of(config)
    if model_type not in BY_MODEL_TYPE:
        raise ValueError(
            f"[gguf] a model of type {model_type} is not written as GGUF yet, {', '.join(BY_MODEL_TYPE)} are. Export a "
            "Hugging Face folder."
        )
    found = ARCHITECTURES[BY_MODEL_TYPE[model_type]]
    width = config.num_attention_heads * config.resolved_head_dim
    if found.name in ("qwen2", "olmo2") and width != config.hidden_size:
        raise ValueError(
            f"[gguf] {config.num_attention_heads} heads of {config.resolved_head_dim} are {width}, not hidden_size "
            f"{config.hidden_size}, and llama.cpp's {found.name} needs that. Export a Hugging Face folder."
        )
    return found


def _within_window(config: RotaryConfig, architecture: Architecture, notes: list[str]) -> RotaryConfig:
    """Where llama.cpp knows no window in the architecture: within its length there is no difference."""
    positions, windows = (
        config.max_position_embeddings,
        [width for width in getattr(config, "windows", []) if width],
    )
    if architecture.windows or not windows or positions is None or min(windows) >= positions:
        return config
    notes.append(
        f"context_length is {min(windows):,}, the sliding window, and not {positions:,}: llama.cpp has no window here"
    )
    return config.model_copy(update={"max_position_embeddings": min(windows)})


def _refuse_unknown(tensors: list[HFTensor], architecture: Architecture) -> None:
    """Every tensor has a name there, and is read there."""
    for tensor in tensors:
        module, _, part = tensor.name.rpartition(".")
        try:
            architecture.theirs(tensor.name)
        except KeyError:
            raise ValueError(
                f"[gguf] the model has {tensor.name}, for which {architecture.name} has no name. Merge an adapter into the "
                "weights before the export."
            ) from None
        if part == "bias" and not module.endswith(tuple(architecture.biases)):
            raise ValueError(
                f"[gguf] the model has {tensor.name}, which llama.cpp's {architecture.name} would ignore. Export a Hugging "
                "Face folder."
            )


def _add_key(writer: Any, key: str, value: Any) -> None:
    """One key in the type that llama.cpp expects: counts and ids are u32, numbers f32, bytes an array of u8."""
    types = block_types().GGUFValueType
    if isinstance(value, list | bytes):
        writer.add_array(key, value)
    else:
        kind = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING}[type(value)]
        writer.add_key_value(key, value, kind)


def _write_tensors(
    writer: Any,
    config: RotaryConfig,
    architecture: Architecture,
    tensors: list[HFTensor],
    kind: Kind,
    notes: list[str],
) -> None:
    named = [(architecture.theirs(tensor.name), tensor) for tensor in tensors]
    if config.tied and architecture.untied:
        table = next(tensor for name, tensor in named if name == "token_embd.weight")
        named.append(("output.weight", table))
        notes.append(
            f"the tied head is written a second time, as output.weight: {architecture.name} needs one there"
        )
    kinds: dict[str, str] = {}
    instead: dict[tuple[str, str], list[str]] = {}
    for name, tensor in named:
        wanted = wanted_type(name, tensor.shape, kind, config.num_hidden_layers, config.tied)
        kinds[name] = fitting_type(wanted, tensor.shape[-1])
        if kinds[name] != wanted:
            instead.setdefault((kinds[name], wanted), []).append(name)
    notes += [
        f"{len(names)} matrices are {found} and not {wanted}, their rows are no whole blocks of it: {names[0]} is one"
        for (found, wanted), names in instead.items()
    ]
    divisors = divisors_of(config)
    for name, values in divisors.items():
        _announce(writer, name, values.shape, "F32")
    for name, tensor in named:
        _announce(writer, name, tensor.shape, kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in divisors.values():
        writer.write_tensor_data(values)
    for name, tensor in named:
        values = np.ascontiguousarray(tensor.view(tensor.param.data), np.float32)
        if added := architecture.added(tensor.name):
            values = values + np.float32(added)
        if architecture.permutes(tensor.name):
            values = to_neighbours(values, config.resolved_head_dim)
        writer.write_tensor_data(_stored(values, kinds[name], tensor.name))


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Describe a tensor, whose data come later and in the same order."""
    gguf = block_types()
    known = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[known]
    row = shape[-1] // block * block_bytes
    sizes = (*shape[:-1], row)
    writer.add_tensor_info(name, sizes, np.dtype(np.uint8), int(np.prod(sizes)), raw_dtype=known)


def _stored(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    """The bytes of a tensor (rows, bytes of a row)."""
    gguf = block_types()
    what = f"{name} of the model"
    plain = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    if kind in plain:
        return to_finite(values, np.dtype(plain[kind]), what).view(np.uint8)
    finite = to_finite(values, np.dtype(np.float32), what)
    if kind.lower() in K_BYTES:
        return encode_k(finite, kind.lower())
    return np.ascontiguousarray(gguf.quants.quantize(finite, gguf.GGMLQuantizationType[kind]))
