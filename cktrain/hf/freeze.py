"""Which parameters `model.freeze` keeps from being trained: shell patterns over Hugging Face's tensor names.

    model.embed_tokens                 the module, all of its tensors
    model.layers.[0-9].*               the first ten layers
    *norm*                             `*` also stands for dots

A frozen parameter has no gradient, no moments and no master weights, and below the lowest trained layer no backward is
computed. Hugging Face's names are those of the model's files; where several of their tensors are one matrix here (query,
key and value; gate and up), they are frozen together or not at all.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from cktrain.hf.quantize import tag_quantized
from cktrain.hf.tensors import hf_tensors, stored_tensors
from cktrain.memory.param import Param
from cktrain.models.family import ModelConfig
from cktrain.nn.embedding import Embedding
from cktrain.nn.formats import Widened
from cktrain.nn.linear import Linear
from cktrain.nn.module import Module
from cktrain.safetensors_file import DTYPES


def freeze(config: ModelConfig, params: Sequence[Param]) -> None:
    """Tag as frozen what `config.freeze` names; before the parameters have memory.

    Raises ValueError for a pattern that names nothing, with the closest names, for a matrix that would be frozen in
    part, and when nothing is left to train.
    """
    if not config.freeze:
        return
    tensors = hf_tensors(config, params)
    names = [tensor.name for tensor in tensors]
    frozen: set[str] = set()
    for pattern in config.freeze:
        found = {name for name in names if _names(pattern, name)}
        if not found:
            raise ValueError(
                f"[model] model.freeze: {pattern!r} names no tensor of the model. {_closest(pattern, names)}"
            )
        frozen |= found
    for param in dict.fromkeys(params):
        own = [tensor.name for tensor in tensors if tensor.param is param]
        left = [name for name in own if name not in frozen]
        if left and len(left) < len(own):
            raise ValueError(
                f"[model] model.freeze names {', '.join(sorted(frozen.intersection(own)))} and not "
                f"{', '.join(left)}: they are one matrix here. Freeze all of them or none."
            )
        if not left:
            param.tag(trainable=False)
    if not any(param.trainable for param in params):
        raise ValueError(
            f"[model] model.freeze names all {len(names):,} tensors, so nothing is left to train. Leave some out."
        )


def hold_as_stored(folder: str | Path, config: ModelConfig, model: Module) -> str:
    """Let frozen matrices have the blocks of `config.quantize`, or else the dtype of their files, where it is narrow.

    Narrower than the compute dtype, they are widened by blocks while they are multiplied, and row by row where they are
    looked up (`nn/formats.py`). Matrices whose parts have several dtypes in the files are widened once. Returns what was
    done in words, empty when nothing. Raises ValueError for a quantization that does not fit.
    """
    stored = stored_tensors(folder, config)
    parts: dict[Param, list[str]] = {}
    for tensor in hf_tensors(config, [param for param in model.params() if not param.trainable]):
        parts.setdefault(tensor.param, []).append(tensor.name)
    if config.quantize != "none":
        tag_quantized(config.quantize, stored, parts, model)
    kept: dict[Param, str] = {}
    for module in model.modules():
        if not isinstance(module, (Embedding, Linear)) or module.weight.spec.blocks:
            continue
        weight = module.weight
        dtypes = {stored[name].dtype if name in stored else "" for name in parts.get(weight, [])}
        if dtypes in ({"BF16"}, {"F16"}) and module.num.compute_dtype.itemsize > 2:
            (kept[weight],) = dtypes
            weight.tag(storage=np.dtype(DTYPES[kept[weight]]))
            module.format = Widened(weight)  # a tied head's too
    counts: Counter[str] = Counter()
    for weight, name in kept.items():
        counts[name] += weight.size
    for param in parts:
        for rows, format in param.block_layout():
            counts[format.name] += (rows.stop - rows.start) * param.shape[1]
    return ", ".join(f"{count:,} in {name}" for name, count in counts.items())


def _names(pattern: str, name: str) -> bool:
    """Whether a pattern names a tensor, or a module that it belongs to."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _closest(pattern: str, names: Sequence[str]) -> str:
    modules = [name.rpartition(".")[0] for name in names]
    near = difflib.get_close_matches(pattern, dict.fromkeys([*names, *modules]), n=3, cutoff=0.3)
    return f"The closest names are {', '.join(near)}." if near else f"Its names are like {names[0]}."
