"""An adapter merged into the weights that it was trained beside: W + s · B · A, in a copy of the base's folder.

The files are copied, and the tensors that are adapted written over in place: their dtype, their names, their division into
files and every other byte stay as they are. Sums are in f32 and rounded once, to the dtype of the file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cktrain.durable import sync
from cktrain.hf.peft_config import AdapterConfig
from cktrain.hf.peft_folder import PREFIX
from cktrain.hf.peft_folder import WEIGHTS_FILE as ADAPTER_FILE
from cktrain.hf.tensors import INDEX_FILE, is_transposed, stored_tensors, weight_files
from cktrain.models.family import ModelConfig
from cktrain.safetensors_file import DTYPES, StoredTensor, read_header, to_finite
from cktrain.side_files import SideFiles


def merge_folder(
    base: Path, adapter_folder: Path, adapter: AdapterConfig, config: ModelConfig, out: Path, side: SideFiles
) -> int:
    """Write `out`: the base's weight files with the adapter in them, and `side` beside them. Returns the merged matrices.

    Raises ValueError where `out` is not empty, or a merged weight is NaN or infinite in its dtype; OSError where writing
    fails. `out` is then as it was.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"[export] {out} exists and is not an empty folder. Choose another or delete it.")
    low_rank = {tensor.name: tensor for tensor in read_header(adapter_folder / ADAPTER_FILE)}
    stored = stored_tensors(base, config)
    modules = [
        name[len(PREFIX) : -len(".lora_A.weight")] for name in low_rank if name.endswith(".lora_A.weight")
    ]
    temporary = out.with_name(f".{out.name}.tmp{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        side.write(temporary)
        for name in weight_files(base):
            shutil.copyfile(base / name, temporary / name)
        if (base / INDEX_FILE).is_file():
            shutil.copyfile(base / INDEX_FILE, temporary / INDEX_FILE)
        for module in modules:
            weight, scale = f"{module}.weight", adapter.scale_of(module)
            _add(stored[weight], temporary, low_rank, module, scale, is_transposed(config, weight))
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        os.rename(temporary, out)
        sync(out.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return len(modules)


def _add(
    weight: StoredTensor,
    folder: Path,
    low_rank: Mapping[str, StoredTensor],
    module: str,
    scale: float,
    transposed: bool,
) -> None:
    """Add s · B · A to a tensor of the copied file, some rows at a time; `transposed`: it is (in, out), a Conv1D's."""
    a, b = (_whole(low_rank[f"{PREFIX}{module}.lora_{half}.weight"]) for half in "AB")
    left, right = (a.T, b.T) if transposed else (b, a)
    file = folder / weight.file.name
    dtype = np.dtype(DTYPES[weight.dtype])
    with open(file, "r+b") as stream:
        for rows, values in weight.pieces():
            wide: np.ndarray = values.astype(np.float64 if dtype.itemsize == 8 else np.float32)
            wide = wide + scale * (left[rows] @ right)
            merged = to_finite(wide, dtype, f"{weight.name} with the adapter")
            stream.seek(weight.start + rows.start * weight.shape[1] * dtype.itemsize)
            stream.write(np.ascontiguousarray(merged).view(np.uint8).data)


def _whole(tensor: StoredTensor) -> np.ndarray:
    pieces = [np.asarray(values, dtype=np.float32) for _, values in tensor.pieces()]
    return np.concatenate(pieces)
