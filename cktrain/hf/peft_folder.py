"""PEFT's folder: an adapter as `PeftModel.from_pretrained` reads and writes it.

    adapter_config.json         rank, alpha, targets …, in PEFT's keys
    adapter_model.safetensors   base_model.model.MODULE.lora_A.weight (r, in), …lora_B.weight (out, r), f32; with DoRA
                                …lora_magnitude_vector (out);
                                of what is trained whole beside it MODULE's own names and shapes

Each checkpoint of an adapter is such a folder, beside what resume needs. The metadata of its tensors' file name the base by
the SHA-256 of its files, so that it is not put beside another one; a folder that PEFT wrote does not say that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cktrain.checkpoint_record import MARKER, CheckpointError, FrozenBase, damaged_file, read_checkpoint
from cktrain.durable import sync
from cktrain.file_identity import sha256_of_set
from cktrain.foreign_file import checked, read_json, shorten
from cktrain.hf.hub import ADAPTER, hub_id, local_path
from cktrain.hf.peft_config import AdapterConfig
from cktrain.hf.peft_targets import ends_in, linear_modules, loras, saved_tensors
from cktrain.hf.tensors import HEAD, HFTensor
from cktrain.memory.param_store import ParamStore
from cktrain.models import FAMILIES
from cktrain.models.family import ModelConfig
from cktrain.models.transformer import Transformer
from cktrain.nn.adapters.dora import DoRA
from cktrain.parallel.blocks import read_label
from cktrain.safetensors_file import (
    DTYPES,
    StoredTensor,
    read_header,
    read_metadata,
    to_finite,
    write_safetensors,
)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
BASE_KEY = "base_sha256"

_OURS = ("r", "lora_alpha", "lora_dropout", "exclude_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
         "modules_to_save", "ensure_weight_tying")  # fmt: skip
_SAID = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
         "target_modules", "fan_in_fan_out", "megatron_config", "megatron_core", "init_lora_weights", "loftq_config",
         "qalora_group_size")  # fmt: skip
"""Keys that change nothing in what a loaded adapter computes here, or are read on their own."""


@dataclass(frozen=True)
class PeftAdapter:
    """The adapter of a whole model, whatever part of it stands on this rank."""

    tensors: Sequence[HFTensor]
    """By PEFT's names."""
    config: Mapping[str, Any]
    """Of adapter_config.json."""
    base: FrozenBase | None = field(default=None)

    def write(self, folder: Path, rank_files: Sequence[Path]) -> None:
        """Write PEFT's files into a checkpoint, from what all ranks wrote there.

        Raises OSError, and ValueError where a number is NaN or infinite.
        """
        wanted = {tensor.param.name: tensor.param for tensor in self.tensors}
        whole: dict[str, np.ndarray] = {}
        for file in rank_files:
            for stored in read_header(file):
                label, block = read_label(stored.name, stored.shape)
                kind, _, name = label.partition(".")
                if kind != "param" or name not in wanted:
                    continue
                if name not in whole:
                    whole[name] = np.full(wanted[name].global_shape, np.nan, np.float32)
                columns = (
                    () if block.columns is None else (slice(block.column, block.column + block.columns),)
                )
                for rows, values in stored.pieces():
                    whole[name][(slice(block.row + rows.start, block.row + rows.stop), *columns)] = values
        self.write_arrays(folder, whole)

    def write_arrays(self, folder: Path, whole: Mapping[str, np.ndarray]) -> None:
        """Write PEFT's files, from whole parameters by our names. Raises as `write`."""
        arrays = [(tensor.name, tensor.view(whole[tensor.param.name])) for tensor in self.tensors]
        metadata = {} if self.base is None else {BASE_KEY: sha256_of_set(self.base.files)}
        write_safetensors(folder / WEIGHTS_FILE, arrays, "F32", metadata=metadata)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        sync(folder / CONFIG_FILE)


def peft_adapter(
    adapter: AdapterConfig, config: ModelConfig, model: Transformer, base: FrozenBase | None
) -> PeftAdapter:
    """What PEFT's folder says of a model's adapters; of a whole model, before ranks divide it."""
    tensors: list[HFTensor] = []
    names: list[str] = []
    for _, lora in loras(model):
        for rows in lora.b:
            name = rows.target.name
            names.append(name)
            every = slice(0, rows.weight.shape[0])
            tensors.append(HFTensor(f"{PREFIX}{name}.lora_A.weight", lora.a, rows.columns, False))
            tensors.append(HFTensor(f"{PREFIX}{name}.lora_B.weight", rows.weight, every, False))
            if isinstance(lora, DoRA):
                magnitude = lora.m[lora.b.index(rows)].weight
                tensors.append(HFTensor(f"{PREFIX}{name}.lora_magnitude_vector", magnitude, every, False))
    saved = saved_tensors(adapter, config, model)
    tensors += [replace(tensor, name=f"{PREFIX}{tensor.name}") for tensor in saved]
    if config.tied and adapter.ensure_weight_tying:  # PEFT has the one weight under both names
        table = FAMILIES[config.family].tensors.embedding
        tensors += [replace(tensor, name=f"{PREFIX}{HEAD}") for tensor in saved if tensor.name == table]
    whole_modules = list(dict.fromkeys(tensor.name.rpartition(".")[0] for tensor in saved))
    modules = linear_modules(config, model)
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    plain = [name for name in modules if any(ends_in(name, end) for end in ends)] == names
    whole = adapter.lora_alpha.is_integer()
    base_path = (config.from_pretrained or "") if base is None else base.path
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub_id(base_path) or base_path,
        "inference_mode": True,
        "r": adapter.r,
        "lora_alpha": int(adapter.lora_alpha) if whole else adapter.lora_alpha,
        "lora_dropout": adapter.lora_dropout,
        "target_modules": ends if plain else names,
        "bias": "none",
        "fan_in_fan_out": any(modules[name] for name in names),
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
        "rank_pattern": adapter.rank_pattern,
        "alpha_pattern": adapter.alpha_pattern,
        "modules_to_save": whole_modules or None,
        "ensure_weight_tying": adapter.ensure_weight_tying,
    }
    return PeftAdapter(tensors, values, base)


def find_adapter(path: str | Path) -> Path:
    """PEFT's folder at `path`: the folder itself, or the newest whole checkpoint of a run. ValueError: there is none.

    An id of a Hugging Face Hub is looked up (`cktrain/hf/hub.py`).
    """
    from cktrain.checkpoint_folder import find_candidates

    path = local_path(path, ADAPTER)
    if (path / CONFIG_FILE).is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path  # RUN/best has them itself
    if folder.is_dir():
        for candidate in find_candidates(folder).found:
            if (candidate.path / CONFIG_FILE).is_file():
                return candidate.path
    raise ValueError(
        f"[adapter] {path} holds no {CONFIG_FILE}, and is no run of an adapter. Give a folder that PEFT or "
        "`cktrain export --adapter` wrote, or a run."
    )


def read_adapter_config(folder: Path) -> AdapterConfig:
    """What adapter_config.json says, as the keys of `adapter:`.

    Raises ValueError for what is not computed here, and for a file that is damaged.
    """
    file = folder / CONFIG_FILE
    values = read_json(file, dict[str, Any], area="adapter", remedy="Fetch the folder again.")
    if values.get("peft_type") != "LORA":
        raise ValueError(
            f"[adapter] {file}: peft_type {shorten(values.get('peft_type'))} is not read, only LORA is. "
            "Merge the adapter with PEFT, and give the merged model."
        )
    for key, value in values.items():
        plain = value in (None, False, 0, "none") or value == {} or value == []
        if not plain and key not in _OURS and key not in _SAID:
            raise ValueError(
                f"[adapter] {file}: {key} is {shorten(value)}, which is not computed here. Merge the adapter with PEFT, or "
                "train one without it."
            )
    start = values.get("init_lora_weights", True)
    if start not in (True, False, "gaussian", None):
        raise ValueError(
            f"[adapter] {file}: init_lora_weights {shorten(start)} changes the base's weights too. Convert it with PEFT."
        )
    found = {key: values[key] for key in _OURS if values.get(key) is not None}
    found = {"r": 8, "lora_alpha": 8, **found}  # PEFT's own defaults
    if values.get("target_modules") is None:
        raise ValueError(f"[adapter] {file}: target_modules is missing. Name the modules that it adapts.")
    found["target_modules"] = values["target_modules"]
    return checked(
        found, AdapterConfig, name=str(file), area="adapter", remedy="Correct it, or fetch the folder again."
    )


def resolve_adapter(adapter: AdapterConfig | None) -> AdapterConfig | None:
    """The block with all of its keys, those of from_pretrained among them. ValueError where a given key says otherwise.

    A folder that is gone gives no keys: a run that goes on has them written out.
    """
    if adapter is None or adapter.from_pretrained is None:
        return adapter
    if not Path(adapter.from_pretrained).exists() and "target_modules" in adapter.model_fields_set:
        return adapter
    folder = find_adapter(adapter.from_pretrained)
    found = read_adapter_config(folder)
    for key in sorted(adapter.model_fields_set - {"from_pretrained"}):
        if getattr(adapter, key) != getattr(found, key):
            raise ValueError(
                f"[adapter] adapter.{key} is {shorten(getattr(adapter, key))} and {shorten(getattr(found, key))} in "
                f"{folder / CONFIG_FILE}, which gives it. Remove the key."
            )
    return found.model_copy(update={"from_pretrained": adapter.from_pretrained})


def load_adapter(folder: Path, adapter: PeftAdapter, params: ParamStore) -> None:
    """Read an adapter's weights into what of them stands on this rank.

    Raises ValueError for another base, a tensor that is missing, misshapen or too much, and NaN or infinite numbers, before
    anything is changed.
    """
    file = _weights_of(folder)
    stored = {tensor.name: tensor for tensor in read_header(file)}
    _refuse_other_base(file, adapter)
    _check(file, stored, adapter.tensors)
    here = set(params.params)
    dtype = params.numerics.master_dtype
    found = []
    for tensor in adapter.tensors:
        if tensor.param in here:
            for rows, values in stored[tensor.name].pieces():
                found.append((tensor, rows, to_finite(values, dtype, f"{tensor.name} in {file}")))
    for tensor, rows, values in found:
        tensor.put(values, rows.start)
    params.refresh()


def says_its_base(folder: Path) -> bool:
    """Whether an adapter's folder names the base that it was trained beside. ValueError for damaged weights."""
    file = _weights_of(folder)
    read_header(file)
    return BASE_KEY in read_metadata(file)


def refuse_damaged(folder: Path) -> None:
    """CheckpointError where a run's checkpoint has other bytes in PEFT's files than were saved; others have no digests."""
    if not (folder / MARKER).is_file():
        return
    checkpoint = read_checkpoint(folder)
    if damage := damaged_file(checkpoint, checkpoint.files.keys() & {WEIGHTS_FILE, CONFIG_FILE}):
        raise CheckpointError(
            f"[checkpoint] {folder}: {damage}. Take another checkpoint, or a copy of this one."
        )


def _weights_of(folder: Path) -> Path:
    file = folder / WEIGHTS_FILE
    if file.exists():
        refuse_damaged(folder)
        return file
    older = folder / "adapter_model.bin"
    if older.exists():
        raise ValueError(
            f"[adapter] {older} is pickled, as older versions of PEFT wrote it, and {WEIGHTS_FILE} is read. Load the "
            "adapter with PEFT and save it again (save_pretrained)."
        )
    raise ValueError(
        f"[adapter] {folder} has {CONFIG_FILE} and no {WEIGHTS_FILE}. Fetch or copy the folder again."
    )


def _refuse_other_base(file: Path, adapter: PeftAdapter) -> None:
    trained_beside = read_metadata(file).get(BASE_KEY)
    if trained_beside is None or adapter.base is None:
        return
    have = sha256_of_set(adapter.base.files)
    if have != trained_beside:
        raise ValueError(
            f"[adapter] {file.parent} was trained beside another base (SHA-256 {trained_beside[:12]}…) than "
            f"{adapter.base.path} ({have[:12]}…). Give the base that it was trained with."
        )


def _check(file: Path, stored: Mapping[str, StoredTensor], wanted: Sequence[HFTensor]) -> None:
    names = {tensor.name for tensor in wanted}
    problems = [f"{tensor.name} is missing" for tensor in wanted if tensor.name not in stored]
    problems += [f"{name} is of no target" for name in stored if name not in names]
    for tensor in wanted:
        have = stored.get(tensor.name)
        if have is not None and have.shape != tensor.shape:
            problems.append(f"{tensor.name} has shape {have.shape}, beside this model it has {tensor.shape}")
        elif have is not None and have.dtype not in DTYPES:
            problems.append(f"{tensor.name} is {have.dtype}, only {', '.join(DTYPES)} are read")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"[adapter] {file}: {'; '.join(problems[:3])}{more}. It is an adapter of another model or of other targets."
        )
