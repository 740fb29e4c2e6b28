"""Opens a model that was saved: a run's folder, one of its checkpoints, or a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cktrain.checkpoint import MARKER, complete_checkpoints, load_checkpoint
from cktrain.config import Config, ModelConfig
from cktrain.config_file import load_config
from cktrain.data.tokenizer import TOKENIZER_FILE
from cktrain.models.build import build_model
from cktrain.models.hf_config import CONFIG_FILE
from cktrain.models.hugging_face import load_weights, read_model_config, resolve_model
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics
from cktrain.nn.params import FlatParams


@dataclass(frozen=True)
class SavedModel:
    """Where a model's files are, and its architecture with max_position_embeddings resolved."""

    path: Path
    """The checkpoint or the Hugging Face folder."""
    config: ModelConfig
    tokenizer: Path | None
    """Folder with the tokenizer that the model was trained with, where that is known."""
    hugging_face: bool

    def load(self, numerics: Numerics, positions: int) -> tuple[Transformer, FlatParams]:
        """The model with its weights, for up to `positions` tokens. Raises ValueError for bad files."""
        model = build_model(self.config, numerics, positions)
        params = FlatParams(model.params(), numerics, train=False)
        if self.hugging_face:
            load_weights(self.path, params)
        else:
            load_checkpoint(self.path, params, None)
        return model, params


def find_saved_model(path: str | Path) -> SavedModel:
    """What `path` holds: the newest complete checkpoint of a run, a checkpoint, or a Hugging Face folder.

    Raises ValueError when it is none of them.
    """
    path = Path(path)
    if (path / MARKER).is_file():
        return _from_checkpoint(path)
    if (path / "checkpoints").is_dir():
        found = complete_checkpoints(path / "checkpoints")
        if not found:
            raise ValueError(f"[saved_model] {path} has no complete checkpoint. Train until one is written.")
        return _from_checkpoint(found[-1])
    if (path / CONFIG_FILE).is_file():
        has_tokenizer = (path / TOKENIZER_FILE).is_file()
        return SavedModel(path, read_model_config(path), path if has_tokenizer else None, True)
    raise ValueError(
        f"[saved_model] {path} is no run (checkpoints/), no checkpoint ({MARKER}) and no Hugging Face folder "
        f"({CONFIG_FILE}). Give the path of one."
    )


def _from_checkpoint(path: Path) -> SavedModel:
    config = load_config(path / "config.yaml")
    model, folder = resolve_model(config.model)
    if model.max_position_embeddings is None:
        model = model.model_copy(update={"max_position_embeddings": config.data.sequence_length})
    return SavedModel(path, model, _tokenizer_of(config, folder), False)


def _tokenizer_of(config: Config, pretrained: Path | None) -> Path | None:
    """The data folder, whose tokens the model learned; with raw tokens that of the pretrained weights."""
    for folder in (Path(config.data.path), pretrained):
        if folder is not None and (folder / TOKENIZER_FILE).is_file():
            return folder
    return None
