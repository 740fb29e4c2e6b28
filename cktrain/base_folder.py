"""A run, a checkpoint or a GGUF file as a Hugging Face folder that another run starts from.

RUN/base-0123456789/                  by the digest of what it was made from: made once, and kept while that is the same
RUN/base-0123456789/made_from.json    what it was made from, and the SHA-256 of its files, by which a later start knows it
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cktrain import cython_kernels
from cktrain.adapter_export import export_merged
from cktrain.checkpoint_folder import step_folders
from cktrain.checkpoint_record import MARKER, read_checkpoint
from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.file_identity import changed_files, sha256_of_file, sha256_of_files, stamp_of_file
from cktrain.foreign_file import read_json
from cktrain.hf.config_json import read_model_config
from cktrain.hf.folder import save_folder
from cktrain.hf.gguf_file.import_gguf import import_gguf
from cktrain.long_work import together_for_long
from cktrain.models.family import FromFolder, ModelConfig
from cktrain.nn.numerics import Numerics
from cktrain.saved_model import SavedModel, find_saved_model

RECORD_FILE = "made_from.json"

Say = Callable[[str], None]


class _Record(BaseModel):
    source: str
    files: dict[str, str]
    stamps: dict[str, list[int]]


def is_run(path: str | Path) -> bool:
    """Whether a path is that of a run, of its checkpoints or of one of them."""
    path = Path(path)
    return path.is_dir() and bool(
        (path / MARKER).is_file() or (path / "checkpoints").is_dir() or step_folders(path)
    )


def base_folder(saved: SavedModel, out: Path) -> Path:
    """Where in `out` the folder of a saved model stands, or will. Raises ValueError for a damaged source."""
    of_a_file = saved.hugging_face
    digest = sha256_of_file(saved.path) if of_a_file else read_checkpoint(saved.path).digest
    return out / f"base-{digest[:10]}"


def make_base(saved: SavedModel, folder: Path, name: str | Path, say: Say) -> None:
    """Make the folder of `base_folder` unless it stands; a run of an adapter is merged. `name` is what users call it.

    Raises ValueError for a source that cannot be used, and for a folder that is not as it was made; OSError where writing
    fails; nothing is left then.
    """
    if folder.is_dir():
        _refuse_changed(folder)
        say(f"model: {folder}, made of {name} before")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    dtype = import_gguf(saved.path, folder) if saved.hugging_face else _export(saved, folder)
    read_model_config(folder)
    _record(folder, name)
    say(f"model: {name} -> {folder}, {dtype}")


def with_base(config: Config, group: Group, say: Say) -> Config:
    """The configuration that starts from a Hugging Face folder where it names a run. Collective; rank 0 makes the folder.

    Raises ValueError on all ranks for a run that cannot be used, and OSError's text where writing fails.
    """
    source = _unread(config.model)
    if source is None:
        return config

    def work() -> str:
        if not is_run(source):
            return source
        saved = find_saved_model(source)
        folder = base_folder(saved, Path(config.run.dir))
        if group.rank == 0:
            make_base(saved, folder, source, say)
        return str(folder)

    folder = together_for_long(group, work)
    model = config.model.model_copy(update={"from_pretrained": folder})
    return config.model_copy(update={"model": model})


def planned_base(config: Config) -> ModelConfig | FromFolder:
    """The model that a plan takes where a run is named: the folder, if it was made before, else the architecture alone."""
    model, source = config.model, _unread(config.model)
    if source is None or not is_run(source):
        return model
    saved = find_saved_model(source)
    folder = base_folder(saved, Path(config.run.dir))
    if folder.is_dir():
        return model.model_copy(update={"from_pretrained": str(folder)})
    return saved.config.model_copy(
        update={"from_pretrained": None, "freeze": model.freeze, "quantize": "none"}
    )


def _unread(model: ModelConfig | FromFolder) -> str | None:
    """What model.from_pretrained names, where the architecture is to be read there."""
    return model.from_pretrained if isinstance(model, FromFolder) else None


def _export(saved: SavedModel, folder: Path) -> str:
    side = saved.side_files(None, False)
    if saved.adapter is not None:
        return export_merged(saved, folder, side)
    _, params = saved.quantized("none").load(Numerics(cython_kernels.load(), "fp32"), positions=1)
    save_folder(folder, saved.config, params, side)
    return "float32"


def _record(folder: Path, source: str | Path) -> None:
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    found: dict[str, Any] = {
        "source": str(source),
        "stamps": {name: stamp_of_file(folder / name) for name in names},
        "files": sha256_of_files(folder, names),
    }
    (folder / RECORD_FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _refuse_changed(folder: Path) -> None:
    """ValueError for a folder that is not as it was made; one without a record, of an older cktrain, is taken."""
    file, remedy = folder / RECORD_FILE, f"Move {folder} away, and it is made again."
    if not file.is_file():
        return
    record = read_json(file, _Record, area="model", remedy=remedy)
    if changed := changed_files(folder, record.files, record.stamps):
        raise ValueError(
            f"[model] {folder} is not as it was made of {record.source}: {'; '.join(changed)}. {remedy}"
        )
