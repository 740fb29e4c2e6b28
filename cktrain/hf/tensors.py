"""Weights between a Hugging Face folder and `ParamStore`, one piece of a tensor in memory at a time.

A parameter here is one or several tensors there: the family's `TensorNames` say which. For Llama's:

    …self_attn.qkv_proj (q + k + v rows, C)   q_proj (q, C), k_proj (k, C), v_proj (v, C)
    …mlp.gate_up_proj (2I, C)                 gate_proj (I, C), up_proj (I, C)
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from cktrain.best_effort import warn
from cktrain.foreign_file import read_json, shorten
from cktrain.hf.gguf_file import is_gguf
from cktrain.hf.quantize import block_rows
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.models import FAMILIES
from cktrain.models.family import ModelConfig, TensorNames
from cktrain.safetensors_file import DTYPES, Rows, StoredTensor, read_header, to_finite, write_safetensors

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

HEAD = "lm_head.weight"
"""Of a model whose head is not its embedding."""


@dataclass(frozen=True)
class HFTensor:
    """A tensor as Hugging Face names and shapes it, and where it stands in a whole parameter."""

    name: str
    param: Param
    rows: slice
    transposed: bool

    def put(self, values: np.ndarray, start: int) -> None:
        """Store the tensor's rows from `start` on, as far as their elements stand in this rank's weights."""
        if self.transposed:
            self.param.put(self.param.data, values.T, self.rows.start, start)
        else:
            self.param.put(self.param.data, values, self.rows.start + start)

    @property
    def block_format(self) -> str:
        """The block format in which the parameter holds the tensor; empty: in none."""
        formats = self.param.spec.blocks
        if len(formats) < 2:
            return formats[0] if formats else ""
        starts = [sum(self.param.parts[:number]) for number in range(len(formats))]
        return formats[starts.index(self.rows.start)]

    def put_blocks(self, source: StoredTensor, kernels: Any) -> None:
        """Store what is this rank's of the tensor, in blocks. Raises ValueError for NaN or infinite weights."""
        for first, blocks in block_rows(source, self.block_format, self.transposed):
            values = np.empty((len(blocks), self.param.global_shape[1]), np.float32)
            kernels.dequantize(values, blocks, self.block_format)
            to_finite(
                values, values.dtype, f"{source.name} in {source.file}, in blocks of {self.block_format},"
            )
            self.param.put_blocks(blocks, self.rows.start + first)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape in a Hugging Face file."""
        shape = (self.rows.stop - self.rows.start, *self.param.global_shape[1:])
        return shape[::-1] if self.transposed else shape

    def view(self, array: np.ndarray) -> np.ndarray:
        """The tensor's place in an array of the whole parameter's shape (its weights or its gradient)."""
        return array[self.rows].T if self.transposed else array[self.rows]


def hf_tensors(config: ModelConfig, params: Iterable[Param]) -> list[HFTensor]:
    """The Hugging Face tensors of these parameters of a model, in the order given; adapters are none of its."""
    names = FAMILIES[config.family].tensors
    found: list[HFTensor] = []
    for param in params:
        if param.spec.adapter:
            continue
        name = param.name
        for fused, parts in names.split.items():
            if f".{fused}." in name:
                start = 0
                for part, rows in zip(parts, param.parts, strict=True):
                    part_name = name.replace(f".{fused}.", f".{part}.")
                    found.append(HFTensor(part_name, param, slice(start, start + rows), False))
                    start += rows
                break
        else:
            for ours, theirs in names.renamed.items():
                name = name.replace(ours, theirs)
            every = slice(0, param.global_shape[0])
            found.append(HFTensor(name, param, every, is_transposed(config, name)))
    return found


def is_transposed(config: ModelConfig, name: str) -> bool:
    """Whether a tensor, by Hugging Face's name, is (in, out) there and (out, in) here."""
    return re.fullmatch(FAMILIES[config.family].tensors.transposed, name) is not None


def load_weights(
    folder: str | Path,
    config: ModelConfig,
    params: ParamStore,
    whole: Iterable[str] | None = None,
    only: Sequence[Param] | None = None,
) -> None:
    """Read a folder's weights into the parameters: F64, F32, F16 or BF16, in one file or sharded.

    A rank that holds a part of the model reads that part; `whole` are the names of all the model's tensors, and `only`
    the parameters to read where others come from elsewhere.
    Raises ValueError, naming the tensor, the shapes and the file, for a missing, misshapen or unexpected
    tensor (before anything is changed), and for NaN or infinite weights.
    """
    names = FAMILIES[config.family].tensors
    wanted = hf_tensors(config, params.params if only is None else only)
    stored = _match(Path(folder), names, wanted, whole)
    dtype = params.numerics.master_dtype
    for tensor in wanted:
        source = stored[tensor.name]
        if tensor.block_format:
            tensor.put_blocks(source, params.numerics.kernels)
            continue
        for rows, values in source.pieces():
            tensor.put(to_finite(values, dtype, f"{source.name} in {source.file}"), rows.start)
    if HEAD in stored and HEAD not in {tensor.name for tensor in wanted}.union(whole or ()):
        _check_tied_head(stored[HEAD], stored.get(names.embedding), names.embedding, params)
    params.refresh()


def weight_files(folder: str | Path) -> list[str]:
    """The names of the files that hold a folder's weights. Raises ValueError when it has none."""
    return sorted({tensor.file.name for tensor in _stored_tensors(Path(folder))[0].values()})


def stored_tensors(folder: str | Path, config: ModelConfig) -> dict[str, StoredTensor]:
    """The tensors of a folder by Hugging Face's name, which each file may spell without its prefix."""
    return _named_tensors(Path(folder), FAMILIES[config.family].tensors)[0]


def stored_dtypes(folder: str | Path, config: ModelConfig) -> dict[str, str]:
    """The dtype of each tensor of a folder, as the format names it, by Hugging Face's name."""
    stored, _ = _named_tensors(Path(folder), FAMILIES[config.family].tensors)
    return {name: tensor.dtype for name, tensor in stored.items()}


def check_weights(folder: str | Path, config: ModelConfig, params: Iterable[Param]) -> list[StoredTensor]:
    """Read all weights without keeping them, with the checks of `load_weights`; returns what is stored."""
    wanted = hf_tensors(config, params)
    stored = _match(Path(folder), FAMILIES[config.family].tensors, wanted)
    for tensor in wanted:
        source = stored[tensor.name]
        for _, values in source.pieces():
            to_finite(values, np.dtype(np.float32), f"{source.name} in {source.file}")
    table = stored[FAMILIES[config.family].tensors.embedding]
    if HEAD in stored and HEAD not in {tensor.name for tensor in wanted} and not _same(stored[HEAD], table):
        raise _other_head(stored[HEAD], table)
    return list(stored.values())


def matching_tensors(folder: str | Path, config: ModelConfig, params: Iterable[Param]) -> list[StoredTensor]:
    """What is stored of these parameters, without reading it. Raises ValueError as `load_weights` for what does not fit."""
    wanted = hf_tensors(config, params)
    stored = _match(Path(folder), FAMILIES[config.family].tensors, wanted)
    return [stored[tensor.name] for tensor in wanted]


def save_weights(
    folder: Path, dtype: str, max_shard_bytes: int, config: ModelConfig, params: ParamStore
) -> None:
    """Write the parameters as `write_weights` does."""
    tensors = [(t.name, t.view(t.param.data)) for t in hf_tensors(config, reversed(params.params))]
    write_weights(folder, dtype, max_shard_bytes, tensors)


def write_weights(
    folder: Path, dtype: str, max_shard_bytes: int, tensors: Sequence[tuple[str, Rows]]
) -> None:
    """Write model.safetensors, or shards of `max_shard_bytes` and their index; `dtype` is F32, F16 or BF16."""
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    shards = _shards(tensors, itemsize, max_shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS_FILE, shards[0], dtype)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, dtype)
        weight_map.update((name, file) for name, _ in shard)
    total = sum(array.size for _, array in tensors)
    index = {
        "metadata": {"total_parameters": total, "total_size": total * itemsize},
        "weight_map": weight_map,
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shards(
    tensors: Sequence[tuple[str, Rows]], itemsize: int, max_bytes: int
) -> list[list[tuple[str, Rows]]]:
    """The tensors in order, in shards of up to `max_bytes`; a larger tensor has one of its own."""
    shards: list[list[tuple[str, Rows]]] = [[]]
    held = 0
    for name, array in tensors:
        size = array.size * itemsize
        if shards[-1] and held + size > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append((name, array))
        held += size
    return shards


def _named_tensors(folder: Path, names: TensorNames) -> tuple[dict[str, StoredTensor], Path]:
    """As `_stored_tensors`, under the names of the class with a head, and without what is not read."""
    stored, where = _stored_tensors(folder)
    stored = {
        _in_text(names, name): tensor
        for name, tensor in stored.items()
        if not re.fullmatch(names.left_out, name)
    }
    if not any(name.startswith(names.base) for name in stored):  # saved without the head's class
        stored = {name if name == HEAD else names.base + name: tensor for name, tensor in stored.items()}
    return {name: tensor for name, tensor in stored.items() if not re.fullmatch(names.buffers, name)}, where


def _in_text(names: TensorNames, name: str) -> str:
    """A tensor's name in a model of text alone."""
    for theirs, ours in names.text_bases.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _match(
    folder: Path, names: TensorNames, wanted: Sequence[HFTensor], whole: Iterable[str] | None = None
) -> dict[str, StoredTensor]:
    """The stored tensors by our name; ValueError unless they are exactly the wanted ones, shape by shape.

    With `whole`, the wanted ones and the others that it names.
    """
    stored, where = _named_tensors(folder, names)
    known = {tensor.name for tensor in wanted}.union(whole or ())
    problems = [f"{tensor.name} {tensor.shape} is missing" for tensor in wanted if tensor.name not in stored]
    problems += [
        f"{tensor.name} {tensor.shape} in {tensor.file.name} is unexpected"
        for name, tensor in stored.items()
        if name not in known and name != HEAD
    ]
    for tensor in wanted:
        have = stored.get(tensor.name)
        if have is not None and have.shape != tensor.shape:
            problems.append(
                f"{have.name} in {have.file.name} has shape {have.shape}, the model's has {tensor.shape}"
            )
        elif have is not None and have.dtype not in DTYPES:
            problems.append(
                f"{have.name} in {have.file.name} is {have.dtype}, only {', '.join(DTYPES)} are read"
            )
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"[hugging_face] {where}: {'; '.join(problems[:3])}{more}. "
            "The weights and config.json are not of one supported model: fetch the folder again."
        )
    return stored


def _check_tied_head(
    head: StoredTensor, table_stored: StoredTensor | None, embedding: str, params: ParamStore
) -> None:
    """A head that stands in the file although it is tied must be the embedding again."""
    table = next((param for param in params.params if param.name == embedding), None)
    if table is None:  # on another stage
        return
    if table.spec.blocks and table_stored is not None:
        same = _same(head, table_stored)
    else:
        same = head.shape == table.global_shape and all(
            np.array_equal(table.data[here], values[block].astype(table.data.dtype))
            for rows, values in head.pieces()
            for here, block in table.overlaps(values.shape, rows.start)
        )
    if not same:
        raise _other_head(head, table)


def _same(head: StoredTensor, table: StoredTensor) -> bool:
    pieces = zip(head.pieces(), table.pieces(), strict=False)
    return head.shape == table.shape and all(np.array_equal(a, b) for (_, a), (_, b) in pieces)


def _other_head(head: StoredTensor, table: StoredTensor | Param) -> ValueError:
    shape = table.shape if isinstance(table, StoredTensor) else table.global_shape
    return ValueError(
        f"[hugging_face] {head.file}: {HEAD} {head.shape} differs from {table.name} {shape}, and config.json ties them. "
        "Set tie_word_embeddings to false there."
    )


def _stored_tensors(folder: Path) -> tuple[dict[str, StoredTensor], Path]:
    """What the folder's weight files hold, and the file that says so; the folder may be a GGUF file."""
    if is_gguf(folder):
        from cktrain.hf.gguf_file.source import read_tensors

        return dict(read_tensors(folder)), folder
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file():
        if index.is_file():
            _say_what_is_read(single, index)
        return {tensor.name: tensor for tensor in read_header(single)}, single
    for path in (single, index):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"[hugging_face] {path} is a link to {os.readlink(path)}, which is not there. Fetch the model again."
            )
    if not index.is_file():
        other = next((name.name for name in sorted(folder.glob("pytorch_model*"))), None)
        hint = (
            f"{other} is not read, it can run code: save the model with safe_serialization"
            if other
            else "Fetch them"
        )
        raise ValueError(f"[hugging_face] {folder} has no {WEIGHTS_FILE} and no {INDEX_FILE}. {hint}.")
    return _indexed_tensors(index), index


class _Index(BaseModel):
    """model.safetensors.index.json: which file holds which tensor."""

    weight_map: dict[str, str]


def _read_index(index: Path) -> dict[str, str]:
    remedy = "It is no index of weights: fetch the file again."
    return read_json(index, _Index, area="hugging_face", remedy=remedy).weight_map


def _is_beside(index: Path, file: str) -> bool:
    """Whether an index names a file in its own folder that is there."""
    inside = Path(file).name == file and "\0" not in file and len(file) < 256
    return inside and (index.parent / file).is_file()


@functools.cache
def _say_what_is_read(single: Path, index: Path) -> None:
    """Once: of weights in one file and in the files of an index beside it the one file is read, as in transformers."""
    try:
        named = set(_read_index(index).values()) - {single.name}
    except ValueError:  # it is not needed
        return
    others = sorted(file for file in named if _is_beside(index, file))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warn(
            f"[hugging_face] {single} is read, as transformers does, and {others[0]}{more}, which {index.name} names, "
            "not. Delete what is not meant."
        )


def _indexed_tensors(index: Path) -> dict[str, StoredTensor]:
    weight_map = _read_index(index)
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        path = index.parent / file
        if not _is_beside(index, file):
            raise ValueError(
                f"[hugging_face] {index}: its file {shorten(file)} is not in the folder. Fetch it too."
            )
        for tensor in read_header(path):
            if weight_map.get(tensor.name) == file:
                found[tensor.name] = tensor
    for name, file in weight_map.items():
        if name not in found:
            raise ValueError(f"[hugging_face] {index}: {name} is not in {file}. Fetch the folder again.")
    return found
