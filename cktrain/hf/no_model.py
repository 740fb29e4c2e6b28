"""What stands where a model was expected, and what to give instead."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

_ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def what_to_give(path: Path) -> str | None:
    """One sentence or two on a path that holds no model and is known to be something else; None for anything else."""
    return _of_a_folder(path) if path.is_dir() else _of_a_file(path) if path.is_file() else None


def _of_a_folder(folder: Path) -> str | None:
    if (folder / "adapter_config.json").exists():
        return (
            f"It is an adapter (LoRA), not a model: give the model that it was trained beside{_named_base(folder)}, and "
            f"--adapter {folder} where a command has it; `cktrain finetune` goes on from it with "
            f"--set adapter.from_pretrained={folder}."
        )
    snapshots = folder / "snapshots"
    if snapshots.is_dir():
        return f"The folder is one of the hub's cache: give one of those in {snapshots}."
    if (folder / "dataset.json").is_file():
        return "It holds prepared data: that is DATA, or data.path. Give a model."
    if files := sorted(folder.glob("*.gguf")):
        return f"It holds GGUF files: give one of them, as {files[0]}."
    if (folder / "finetune.yaml").is_file():
        return (
            "A run was prepared in it, and has no checkpoint yet: cktrain train "
            f"{shlex.quote(str(folder / 'finetune.yaml'))}."
        )
    for what, sign in (("runs", "checkpoints"), ("models", "config.json")):
        if found := sorted(path.parent for path in folder.glob(f"*/{sign}")):
            return f"It holds {what}: give one of them, as {found[0]}."
    return None


def _of_a_file(file: Path) -> str | None:
    if file.suffix == ".safetensors":
        return f"It holds weights alone: give its folder, {file.parent}, which says what they are."
    if file.suffix in _PICKLES:
        return (
            "It is PyTorch's file of weights, which is not read: save the model with save_pretrained of transformers, and "
            "give that folder."
        )
    if file.name == "Modelfile":
        return "It is a Modelfile of Ollama: give the GGUF file that its FROM names."
    if file.suffix in _ROWS:
        return "It looks like rows or text, which are DATA. Give a model, before them."
    return None


def _named_base(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" ({base})" if isinstance(base, str) and base else ""
