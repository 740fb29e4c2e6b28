"""An adapter merged into the weights that it was trained beside, W + s · B · A (DoRA: m / n of it), in a copy of its folder.

The files are copied, and the tensors that are adapted, or were trained whole beside the adapter, written over in place.
Their dtype, their names, their division into files and every other byte stay as they are. Sums are in f32 and rounded once,
to the dtype of the file.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from cktrain.hf.peft_config import AdapterConfig
from cktrain.hf.peft_folder import PREFIX
from cktrain.hf.peft_folder import WEIGHTS_FILE as ADAPTER_FILE
from cktrain.hf.tensors import (
    HEAD,
    INDEX_FILE,
    WEIGHTS_FILE,
    is_transposed,
    stored_tensors,
    weight_files,
)
from cktrain.models.family import ModelConfig
from cktrain.safetensors_file import DTYPES, StoredTensor, read_header, to_finite
from cktrain.side_files import SideFiles
from cktrain.whole_output import refuse_filled, whole_folder


def merge_folder(
    base: Path, adapter_folder: Path, adapter: AdapterConfig, config: ModelConfig, out: Path, side: SideFiles
) -> int:
    """Write `out`: the base's weight files with the adapter in them, and `side` beside them. Returns the merged tensors.

    Raises ValueError where `out` is not empty, or a merged weight is NaN or infinite in its dtype; OSError where writing
    fails. `out` is then as it was.
    """
    refuse_filled(out, "export")
    trained = {tensor.name: tensor for tensor in read_header(adapter_folder / ADAPTER_FILE)}
    stored = stored_tensors(base, config)
    modules = [
        name[len(PREFIX) : -len(".lora_A.weight")] for name in trained if name.endswith(".lora_A.weight")
    ]
    whole = {name[len(PREFIX) :]: tensor for name, tensor in trained.items() if ".lora_" not in name}
    if config.tied and HEAD not in stored:  # PEFT's folder has the one weight twice
        whole.pop(HEAD, None)
    with whole_folder(out, "export") as temporary:
        side.write(temporary)
        files = weight_files(base)
        for name in files:
            shutil.copyfile(base / name, temporary / name)
        if files != [WEIGHTS_FILE]:
            shutil.copyfile(base / INDEX_FILE, temporary / INDEX_FILE)
        for module in modules:
            weight, scale = f"{module}.weight", adapter.scale_of(module)
            _add(stored[weight], temporary, trained, module, scale, is_transposed(config, weight))
        for name, tensor in whole.items():
            _replace(stored[name], temporary, tensor)
    return len(modules) + len(whole)


def _add(
    weight: StoredTensor,
    folder: Path,
    low_rank: Mapping[str, StoredTensor],
    module: str,
    scale: float,
    transposed: bool,
) -> None:
    """Add s · B · A to a tensor of the copied file, some rows at a time; `transposed`: it is (in, out), a Conv1D's.

    With magnitudes (DoRA) each output's weights get the length that its magnitude says.
    """
    a, b = (_whole(low_rank[f"{PREFIX}{module}.lora_{half}.weight"]) for half in "AB")
    left, right = (a.T, b.T) if transposed else (b, a)
    wide = np.float64 if np.dtype(DTYPES[weight.dtype]).itemsize == 8 else np.float32

    def summed() -> Iterator[tuple[slice, np.ndarray]]:
        return (
            (rows, values.astype(wide) + scale * (left[rows] @ right)) for rows, values in weight.pieces()
        )

    magnitude = low_rank.get(f"{PREFIX}{module}.lora_magnitude_vector")
    if magnitude is None:
        _write(weight, folder, summed())
        return
    squares: np.ndarray = np.zeros(len(b), wide)
    for rows, values in summed():
        if transposed:
            squares += np.einsum("io,io->o", values, values)
        else:
            squares[rows] = np.einsum("oi,oi->o", values, values)
    gain = _whole(magnitude) / np.sqrt(np.where(squares > 0, squares, 1))
    pieces = ((rows, values * (gain if transposed else gain[rows, None])) for rows, values in summed())
    _write(weight, folder, pieces)


def _replace(weight: StoredTensor, folder: Path, trained: StoredTensor) -> None:
    """Write what was trained over a tensor of the copied file."""
    _write(weight, folder, trained.pieces())


def _write(weight: StoredTensor, folder: Path, pieces: Iterable[tuple[slice, np.ndarray]]) -> None:
    """Write rows over those of a tensor of the copied file, in its dtype."""
    dtype = np.dtype(DTYPES[weight.dtype])
    row_bytes = math.prod(weight.shape[1:]) * dtype.itemsize
    with open(folder / weight.file.name, "r+b") as stream:
        for rows, values in pieces:
            merged = to_finite(values, dtype, f"{weight.name} with the adapter")
            stream.seek(weight.start + rows.start * row_bytes)
            stream.write(np.ascontiguousarray(merged).view(np.uint8).data)


def _whole(tensor: StoredTensor) -> np.ndarray:
    pieces = [np.asarray(values, dtype=np.float32) for _, values in tensor.pieces()]
    return np.concatenate(pieces)
