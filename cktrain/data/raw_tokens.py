"""Files of ids without a header of ours: how the ids lie in them, and what is no such file.

A raw file says nothing about itself, so it is looked at: a few headers of other programs are known, and the ids of some
blocks show when they are of another width or byte order than they are read with.

    nanoGPT      ids alone, uint16; what its meta.pkl says is not read: unpickling a file runs what is in it
    llm.c        256 int32: 20240520 (uint16 ids) or 20240801 (uint32), a version, the number of ids; then the ids
    OLMo-core    NAME.npy holds ids alone, of any width, in spite of its name
    numpy        NAME.npy with numpy's header, which says the type, then the ids
    Megatron     NAME.bin holds ids alone, of the type that NAME.idx says (`megatron.py`)
"""

from __future__ import annotations

import io
import logging
import struct
import tokenize
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cktrain.data.sniff import HEAD_BYTES, Kind, binary_kind, shown, table_form
from cktrain.data.token_file import TokenFile

log = logging.getLogger("cktrain")

UINT16: np.dtype[Any] = np.dtype("<u2")
UINT32: np.dtype[Any] = np.dtype("<u4")

_LLM_C = {20240520: UINT16, 20240801: UINT32}
_LLM_C_HEADER = 256 * 4
_NUMPY = b"\x93NUMPY"
_BLOCKS, _BLOCK = 16, 4096  # ids that are looked at
_FEW = 32  # ids that show no pattern
_WRONG_SHARE = 0.01  # of ids beyond the vocabulary: more are another file, fewer are told where they are met


@dataclass(frozen=True)
class _Layout:
    dtype: np.dtype[Any]
    offset: int
    count: int
    told: bool = False
    """Whether the file itself says the type, of whatever width and byte order."""


def open_raw(
    path: Path, size: int, vocab_size: int | None, dtype: npt.DTypeLike | None, default: np.dtype[Any] | None
) -> TokenFile:
    """The ids of a raw file of `size` bytes, of `dtype` where that is given, or as a known header says, or of `default`.

    Raises ValueError when the file is something else, or its ids are of another type or of another vocabulary.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    asked = None if dtype is None else np.dtype(dtype)
    layout = _llm_c(path, size, head, asked) or _numpy(path, size, head, asked)
    if layout is None:
        _refuse_other_kinds(path, head)
        item: np.dtype[Any] | None = default if asked is None else asked
        if item is None:
            raise ValueError(
                f"[data.shards] {path}: a raw file does not say its dtype. Name uint16 or uint32."
            )
        if item not in (UINT16, UINT32):
            raise ValueError(f"[data.shards] {path}: ids of dtype {item} are not read. Use uint16 or uint32.")
        if size % item.itemsize:
            raise ValueError(
                f"[data.shards] {path}: {size:,} bytes is not a multiple of {item.itemsize}, the size of one "
                f"{item.name} id. Name the dtype that the file was written with, or copy the file again."
            )
        layout = _Layout(item, 0, size // item.itemsize)
    tokens = TokenFile(path, layout.dtype, layout.offset, layout.count)
    look_at_ids(path, tokens, vocab_size, layout.told)
    return tokens


def _llm_c(path: Path, size: int, head: bytes, asked: np.dtype[Any] | None) -> _Layout | None:
    if len(head) < _LLM_C_HEADER:
        return None
    magic, version, count = struct.unpack_from("<iii", head)
    dtype = _LLM_C.get(magic)
    if dtype is None or any(head[12:_LLM_C_HEADER]):
        return None
    held = (size - _LLM_C_HEADER) / dtype.itemsize
    if version not in (1, 7) or held != count:
        raise ValueError(
            f"[data.shards] {path}: its header is llm.c's, of version {version} and {count:,} ids, and it holds "
            f"{held:,.10g} of them. Copy the file again."
        )
    if asked is not None and asked != dtype:
        raise ValueError(
            f"[data.shards] {path}: its header is llm.c's for {dtype.name} ids, and data.dtype says {asked.name}. "
            "Leave data.dtype out."
        )
    return _Layout(dtype, _LLM_C_HEADER, count)


def _numpy(path: Path, size: int, head: bytes, asked: np.dtype[Any] | None) -> _Layout | None:
    """An array that numpy.save has written: its header is a literal, which is parsed, and no code."""
    if not head.startswith(_NUMPY):
        return None
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    except (ValueError, SyntaxError, TypeError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(
            f"[data.shards] {path}: damaged header of a numpy array ({' '.join(str(error).split())}). Copy the file again."
        ) from None
    if dtype.kind not in "iu":
        what = "Python objects, which only unpickling reads" if dtype.hasobject else dtype.name
        raise ValueError(
            f"[data.shards] {path}: a numpy array of {what}, and ids are integers. Save them as uint16 or uint32."
        )
    if len(shape) != 1:
        axes = " x ".join(f"{axis:,}" for axis in shape)
        raise ValueError(
            f"[data.shards] {path}: a numpy array of {axes or 'no axis'}, and ids are one stream. Save it as "
            "array.reshape(-1)."
        )
    held = (size - file.tell()) / dtype.itemsize
    if held != shape[0]:
        raise ValueError(
            f"[data.shards] {path}: its header says {shape[0]:,} ids of {dtype.name}, and it holds {held:,.10g} of them. "
            "Copy the file again."
        )
    if held == 0:
        raise ValueError(f"[data.shards] {path}: empty, it holds 0 ids. Give more data.")
    if asked is not None and asked != dtype:
        raise ValueError(
            f"[data.shards] {path}: its header is numpy's for {dtype.name} ids, and data.dtype says {asked.name}. Leave "
            "data.dtype out."
        )
    return _Layout(dtype, file.tell(), shape[0], told=True)


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    arrow = path.suffix == ".arrow" and table_form(head) == "arrow"  # whose mark may be two ids elsewhere
    kind = None if head[:1] in (b"\xff", b"\0") and not arrow else binary_kind(head, only_sure=True)
    if head.startswith(b"\x1f\x8b\x08"):
        try:  # two ids may begin so, but hardly a whole stream
            if zlib.decompressobj(31).decompress(head, 64):
                kind = Kind("a gzip file", "Unpack it: gunzip {path}")
        except zlib.error:
            pass
    if kind is None and len(head) >= 64 and _is_text(head):
        kind = Kind("text", "Make ids of it: cktrain data prepare {path} FOLDER, and give the folder.")
    if kind is not None:
        raise ValueError(
            f"[data.shards] {shown(path)}: {kind.what}, not ids. "
            + kind.remedy.replace("{path!r}", repr(str(path))).replace("{path}", str(path))
        )


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(char.isprintable() or char in "\n\r\t\f\ufeff" for char in text)


def _rewrite(path: Path, name: str) -> str:
    return (
        f"Write it again: python3 -c \"import numpy; numpy.fromfile('{path}', '{name}').astype('uint32')"
        ".tofile('ids.bin')\", with data.dtype: uint32."
    )


def look_at_ids(path: Path, tokens: TokenFile, vocab_size: int | None, told: bool) -> None:
    """Raise ValueError when the ids of some blocks are of another vocabulary or, unless their type was `told`, of another
    width or byte order."""
    starts = sorted({int(at) // 4 * 4 for at in np.linspace(0, max(0, len(tokens) - _BLOCK), _BLOCKS)})
    blocks = [tokens[start : start + _BLOCK] for start in starts]
    ids = np.concatenate(blocks)
    if len(ids) >= _BLOCK and (ids == ids[0]).all():
        log.warning(
            "[data.shards] warning: %s: all %s ids that were looked at are %d. Was it written to its end?",
            path,
            f"{len(ids):,}",
            ids[0],
        )
    wider = None if told else _wider(np.concatenate([block[: len(block) // 4 * 4] for block in blocks]))
    if wider is not None:
        remedy = "Set data.dtype: uint32." if wider == "int32" else _rewrite(path, wider)
        raise ValueError(
            f"[data.shards] {path}: its ids look like {wider} and are read as {tokens.dtype.name}: every second one "
            f"would be 0 or nearly. {remedy}"
        )
    if vocab_size is None:
        return
    beyond = (ids < 0) | (ids >= vocab_size)
    if np.count_nonzero(beyond) <= max(1, _WRONG_SHARE * len(ids)):
        return
    place = next(
        (start, block)
        for start, block in zip(starts, blocks, strict=True)
        if ((block < 0) | (block >= vocab_size)).any()
    )
    first = int(np.argmax((place[1] < 0) | (place[1] >= vocab_size)))
    remedy = "Use the tokenizer of this model, a larger model.vocab_size, or the right data.dtype."
    if told:
        remedy = "Use the tokenizer of this model, or a larger model.vocab_size."
    elif (ids.byteswap() < vocab_size).all():
        remedy = f"They look big-endian. {_rewrite(path, '>u' + str(tokens.dtype.itemsize))}"
    elif tokens.dtype == UINT32 and (ids.view(UINT16) < vocab_size).all():
        remedy = "They look like uint16: set data.dtype: uint16."
    raise ValueError(
        f"[data.shards] {path}: token id {place[1][first]} at position {place[0] + first:,} is beyond the model's "
        f"vocabulary of {vocab_size:,}, and so are {np.count_nonzero(beyond) / len(ids):.0%} of those looked at. {remedy}"
    )


def _wider(ids: npt.NDArray[Any]) -> str | None:
    """int32 or int64 where the upper halves of such numbers are seen in ids of 2 or 4 bytes: zero, nearly, or all ones."""
    if len(ids) < _FEW:
        return None
    ones = np.iinfo(ids.dtype).max
    halves = [ids[place::4] for place in range(4)]
    above = [np.where(half == ones, 0, half) for half in halves]
    low = np.maximum(halves[0], halves[2])
    if not low.any():
        return None
    if ids.dtype == UINT32:
        return None if above[1].any() or above[3].any() else "int64"
    if not (above[2].any() or above[3].any()) and above[1].max() < 16 and halves[0].any():
        return "int64"
    highest = max(above[1].max(), above[3].max())
    return "int32" if highest == 0 or (highest < 16 and low.max() >= 4096) else None
