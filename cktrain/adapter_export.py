"""What a run of an adapter gives to others: PEFT's folder, or the base's own weights with the adapter in them."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Literal

from cktrain import cython_kernels
from cktrain.checkpoint_record import CheckpointError, read_checkpoint
from cktrain.frozen_base import open_base
from cktrain.hf.folder import save_folder
from cktrain.hf.gguf_file import is_gguf
from cktrain.hf.gguf_file.adapter_out import AdapterKind, export_gguf_adapter
from cktrain.hf.peft_folder import CONFIG_FILE, WEIGHTS_FILE, refuse_damaged
from cktrain.hf.peft_merge import merge_folder
from cktrain.hf.peft_targets import loras, saved_tensors
from cktrain.memory.param_store import ParamStore
from cktrain.nn.numerics import Numerics
from cktrain.safetensors_file import read_header, to_finite
from cktrain.saved_model import SavedModel
from cktrain.side_files import SideFiles
from cktrain.whole_output import refuse_filled, whole_folder

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What its --max-lora-rank may be."""


def export_adapter(saved: SavedModel, out: Path) -> int:
    """Write PEFT's folder of a run's checkpoint as `out`, with the tokenizer and template that it was trained with.

    Returns the adapter's weights. Raises ValueError where the run has no adapter, `out` is not empty or a number is NaN or
    infinite, OSError where writing fails.
    """
    _refuse_plain(saved)
    refuse_filled(out, "export")
    count = 0
    for tensor in read_header(saved.path / WEIGHTS_FILE):
        for _, values in tensor.pieces():
            count += to_finite(values, values.dtype, f"{tensor.name} in {tensor.file}").size
    with whole_folder(out, "export") as temporary:
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            shutil.copyfile(saved.path / name, temporary / name)
        for name, data in (SideFiles() if saved.side is None else saved.side).tokenizer_files().items():
            (temporary / name).write_bytes(data)
    return count


def export_gguf_adapter_of(saved: SavedModel, out: Path, kind: AdapterKind = "f32") -> int:
    """Write the adapter of a run's checkpoint as a GGUF file; returns its weights. Raises as `export_gguf_adapter`."""
    _refuse_plain(saved)
    assert saved.adapter is not None
    return export_gguf_adapter(out, saved.path, saved.adapter, saved.config, kind)


def for_vllm(saved: SavedModel, out: Path) -> str:
    """How vLLM serves an exported adapter, or why it does not, in a line."""
    _refuse_plain(saved)
    adapter, record = saved.adapter, read_checkpoint(saved.path).state.base
    assert adapter is not None and record is not None
    refused = [key for key in ("use_dora", "modules_to_save") if getattr(adapter, key)]
    ignored = [key for key in ("rank_pattern", "alpha_pattern") if getattr(adapter, key)]
    if refused or ignored:
        why = f"refuses {' and '.join(refused)}" if refused else f"ignores {' and '.join(ignored)}"
        return f"vLLM {why}: serve the merged model (--merge)"
    room = next((rank for rank in VLLM_RANKS if rank >= adapter.r), None)
    if room is None:
        return f"vLLM serves ranks up to {VLLM_RANKS[-1]}, this one is {adapter.r}: serve the merged model (--merge)"
    return (
        f"vLLM: vllm serve {shlex.quote(record.path)} --enable-lora --max-lora-rank {room} "
        f"--lora-modules {shlex.quote(f'{out.name}={out}')}"
    )


def export_merged(
    saved: SavedModel, out: Path, side: SideFiles, dtype: Literal["float32", "bfloat16"] | None = None
) -> str:
    """Write the base with the adapter in it as `out`, in the base's own dtype or a given one; what was done, in words.

    A base whose weights are a GGUF file's has the dtype bfloat16 by default: what is merged has no blocks.
    Raises ValueError where the run has no adapter, its base has changed, `out` is not empty or a merged weight is not
    finite, OSError where writing fails.
    """
    _refuse_plain(saved)
    assert saved.adapter is not None
    record = read_checkpoint(saved.path).state.base
    assert record is not None
    base = open_base(saved.path, record)
    if dtype is None and not is_gguf(base):
        count = merge_folder(base, saved.path, saved.adapter, saved.config, out, side)
        return f"{count:,} tensors merged into the weights of {base}, in their dtype"
    params, count = merged_params(saved)
    dtype = dtype or "bfloat16"
    save_folder(out, saved.config, params, side, dtype)
    return f"{count:,} tensors merged into the weights of {base}, written as {dtype}"


def exported_params(saved: SavedModel, merge: bool) -> ParamStore:
    """A model's weights in f32, with `merge` those of `merged_params`."""
    if merge:
        return merged_params(saved)[0]
    return saved.load(Numerics(cython_kernels.load(), "fp32"), positions=1)[1]


def merged_params(saved: SavedModel) -> tuple[ParamStore, int]:
    """The base's weights in f32 with the adapter in them, and how many tensors that are. Raises as `export_merged`."""
    _refuse_plain(saved)
    assert saved.adapter is not None
    model, params = saved.quantized("none").load(Numerics(cython_kernels.load(), "fp32"), positions=1)
    found = loras(model)
    for linear, lora in found:
        lora.merge_into(linear.weight.data)
    return params, sum(len(lora.b) for _, lora in found) + len(
        saved_tensors(saved.adapter, saved.config, model)
    )


def _refuse_plain(saved: SavedModel) -> None:
    if saved.adapter is None or not (saved.path / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"[export] {saved.path} is no checkpoint of an adapter. Leave --merge and --adapter out (merge= in Python)."
        )
    refuse_damaged(saved.path)
