"""`model.quantize`: frozen matrices in blocks of few bits, encoded while a folder is read, or as a GGUF file has them.

    q8_0, q4_0, q4_1, q5_0, mxfp4     encoded by the package gguf, bit for bit as llama.cpp would
    q4_k, q6_k                        by encoders of our own (`k_quants.py`); q5_0 and q8_0 where 256 divides no row
    nf4                               QLoRA's (Dettmers et al. 2023): 64 values share their largest magnitude
    stored                            as the file stores each matrix: a GGUF file's blocks, K-quants too, and bf16 and fp16

A matrix that a GGUF file stores in the wanted format keeps its bytes; others are decoded and encoded again. With fewer than
8 bits the embedding and the head are q8_0, as in llama.cpp's files, where they are rarely below 6. Norms, biases and
tables of positions keep their numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np

from cktrain.cython_kernels.block_formats import BLOCK_FORMATS
from cktrain.cython_kernels.reference.quantized import NORMAL_FLOAT
from cktrain.hf.k_quants import K_BYTES, encode_k
from cktrain.memory.param import Param
from cktrain.models.transformer import Transformer
from cktrain.nn.embedding import Embedding
from cktrain.nn.linear import Linear
from cktrain.nn.module import Module
from cktrain.nn.quantized import Quantized
from cktrain.safetensors_file import StoredTensor, to_finite

log = logging.getLogger(__name__)

TABLES = "q8_0"
"""The format of embedding and head where the others have fewer bits."""
SMALLER = {"q4_k": "q5_0", "q6_k": "q8_0"}
"""What llama.cpp takes where a row is no whole number of a format's blocks of 256."""
_ROWS_AT_ONCE = 1 << 20
"""Values that are encoded at a time."""


def tag_quantized(
    wanted: str, stored: Mapping[str, StoredTensor], parts: Mapping[Param, list[str]], model: Module
) -> None:
    """Give frozen matrices the blocks that `model.quantize` asks for; before the parameters have memory.

    `stored` are the tensors of the folder or file and `parts` the names of each frozen parameter's. Raises ValueError for
    rows that are no whole number of blocks, for what has no blocks in the file, and where no matrix is frozen.
    """
    chosen: dict[Param, tuple[str, ...]] = {}
    for module in model.modules():
        if not isinstance(module, Embedding | Linear) or module.weight not in parts:
            continue
        if isinstance(model, Transformer) and model.embedding and module is model.embedding.positions:
            continue
        weight = module.weight
        if weight not in chosen:
            is_table = isinstance(module, Embedding) or (
                isinstance(model, Transformer) and model.head is not None and module is model.head.output
            )
            tensors = [stored[name] for name in parts[weight] if name in stored]
            if wanted != "stored":
                few = BLOCK_FORMATS[wanted].bits < 8
                kinds = [TABLES if is_table and few else wanted]
            else:
                kinds = _stored_kinds(tensors, module.num.compute_dtype)
            chosen[weight] = _fitting(wanted, weight, kinds)
        if chosen[weight]:
            if not weight.spec.blocks:
                weight.tag(blocks=chosen[weight])
            module.format = Quantized(weight)  # a tied head's too
    if not any(chosen.values()):
        raise ValueError(
            f"[model] model.quantize {wanted}: "
            + (
                "no matrix is frozen, and what is trained has no blocks. Give an adapter, or leave quantize out."
                if not chosen
                else "no file has a matrix in fewer bits than are computed with. Give a format, as q8_0."
            )
        )


def _stored_kinds(tensors: list[StoredTensor], compute: np.dtype) -> list[str]:
    """The formats in which a file has the parts of a matrix; none where they are numbers, no narrower than `compute`."""
    kinds = [(tensor.block_type or tensor.dtype).lower() for tensor in tensors]
    if not any(tensor.block_type for tensor in tensors) and (
        set(kinds) - {"bf16", "f16"} or compute.itemsize <= 2
    ):
        return []
    for tensor, kind in zip(tensors, kinds, strict=True):
        if kind not in BLOCK_FORMATS:
            raise ValueError(
                f"[model] model.quantize stored: {tensor.name} is {kind.upper()} in {tensor.file.name}, which is not "
                "multiplied as it is. Give a format to encode it in, as q8_0."
            )
    return kinds


def _fitting(wanted: str, weight: Param, kinds: list[str]) -> tuple[str, ...]:
    """The formats of a matrix's parts, once where they are the same. ValueError where its rows are no whole blocks."""
    if len(set(kinds)) == 1:
        kinds = kinds[:1]
    for number, kind in enumerate(kinds):
        width = weight.global_shape[
            1
        ]  # not a tensor rank's share, so that every layout holds the same numbers
        if width % (values := BLOCK_FORMATS[kind].values):
            smaller = SMALLER.get(kind, "") if wanted != "stored" else ""
            if smaller and width % BLOCK_FORMATS[smaller].values == 0:
                kinds[number] = smaller
                log.info(
                    "model.quantize %s: %s is %s, its rows of %s values are no whole number of blocks of %s",
                    wanted,
                    weight.name,
                    smaller,
                    f"{width:,}",
                    values,
                )
                continue
            raise ValueError(
                f"[model] model.quantize {wanted}: {weight.name} has rows of {width:,} values, no whole number of "
                f"blocks of {values} ({kind}). Give another format, or leave quantize out."
            )
    return tuple(kinds)


def block_rows(source: StoredTensor, format: str, transposed: bool) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows (n, W) uint8) of a tensor in the blocks of a format, in order. ValueError for NaN or infinities."""
    if source.block_type.lower() == format:
        for rows, blocks in source.block_pieces():
            yield rows.start, blocks
        return
    if transposed:
        whole = np.concatenate([values for _, values in source.pieces()]).T
        step = max(1, _ROWS_AT_ONCE // whole.shape[1])
        pieces = ((start, whole[start : start + step]) for start in range(0, len(whole), step))
    else:
        pieces = ((rows.start, values) for rows, values in source.pieces())
    for start, values in pieces:
        if source.dtype.lower() == format:
            yield start, np.ascontiguousarray(values).view(np.uint8)
            continue
        finite = to_finite(values, np.dtype(np.float32), f"{source.name} in {source.file}")
        yield start, encode(np.ascontiguousarray(finite), format)


def fill_blocks(param: Param) -> None:
    """Random numbers of about the size of weights, for measurements; the same 64 rows again and again."""
    for part in param.blocks:
        values = np.random.default_rng(0).standard_normal((64, param.shape[1]), np.float32)
        part.data[...] = np.resize(encode(values * np.float32(0.02), part.format.name), part.data.shape)


def encode(values: np.ndarray, format: str) -> np.ndarray:
    """(n, W) uint8: the blocks of (n, I) fp32 that are finite. ValueError where the package gguf is missing."""
    if format == "nf4":
        return _nf4(values)
    if format in K_BYTES:
        return encode_k(values, format)
    from cktrain.hf.gguf_file.reader import block_types

    gguf = block_types()
    with np.errstate(all="ignore"):
        blocks: np.ndarray = gguf.quants.quantize(values, gguf.GGMLQuantizationType[format.upper()])
    return blocks


_BETWEEN = (NORMAL_FLOAT[:-1] + NORMAL_FLOAT[1:]) / 2


def _nf4(values: np.ndarray) -> np.ndarray:
    """The nearest code of each value over the largest magnitude, the lower one of two; as bitsandbytes does."""
    groups = values.reshape(-1, 64)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(1), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.searchsorted(_BETWEEN, groups * inverse).astype(np.uint8).reshape(-1, 2, 2, 16)
    packed = codes[:, :, 0] | codes[:, :, 1] << np.uint8(4)
    blocks = np.concatenate([largest.view(np.uint8), packed.reshape(len(groups), 32)], axis=1)
    return blocks.reshape(len(values), -1)
