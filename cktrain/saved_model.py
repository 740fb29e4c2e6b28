"""Opens a model that was saved: a run's folder, one of its checkpoints, a Hugging Face folder, or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from cktrain.best_effort import warn
from cktrain.checkpoint import MARKER, load_checkpoint
from cktrain.checkpoint_folder import find_candidates, step_folders
from cktrain.checkpoint_record import FrozenBase, read_checkpoint
from cktrain.config_file import load_config
from cktrain.data.same_tokenizer import (
    other_tokenizer_error,
    tokenizer_differences,
    where_of,
    with_other_tokenizer,
)
from cktrain.data.tokenizer import Tokenizer
from cktrain.file_identity import sha256_of_files
from cktrain.frozen_base import open_base
from cktrain.hf.config_json import read_model_config
from cktrain.hf.folder import resolve_model
from cktrain.hf.freeze import hold_as_stored
from cktrain.hf.gguf_file import is_gguf
from cktrain.hf.hub import local_path
from cktrain.hf.no_model import what_to_give
from cktrain.hf.peft_config import AdapterConfig
from cktrain.hf.peft_folder import (
    find_adapter,
    load_adapter,
    peft_adapter,
    read_adapter_config,
    says_its_base,
)
from cktrain.hf.tensors import hf_tensors, load_weights, weight_files
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.models.family import ModelConfig, Quantize
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics
from cktrain.run_files import read_prepared
from cktrain.side_files import (
    CONFIG_FILE,
    FOLDER,
    GENERATION_FILE,
    Encoding,
    SideFiles,
    read_record,
    read_side_files,
)


@dataclass(frozen=True)
class SavedModel:
    """Where a model's files are, and its architecture with max_position_embeddings resolved."""

    path: Path
    """The checkpoint, the Hugging Face folder, or the GGUF file."""
    config: ModelConfig
    side: SideFiles | None
    """Tokenizer and so on; None for a checkpoint of before they were kept in it."""
    hugging_face: bool
    adapter: AdapterConfig | None = None
    """What was trained beside its base."""
    adapter_folder: Path | None = None
    """PEFT's folder that gives the adapter's weights; None: the checkpoint has them."""

    def quantized(self, quantize: str) -> SavedModel:
        """This model with its frozen matrices held so when it is loaded; "none": as its files have them.

        Raises ValueError for an unknown format, and for a checkpoint of weights that were trained.
        """
        if quantize not in get_args(Quantize):
            raise ValueError(
                f"[load] quantize={quantize!r} is unknown. Give one of {', '.join(get_args(Quantize))}."
            )
        if quantize != "none" and not self.hugging_face and self.adapter is None:
            raise ValueError(
                f"[load] {self.path} holds weights that were trained, and quantize={quantize!r} is for those of a folder or "
                "a GGUF file, and for an adapter's base. Export it first."
            )
        return replace(self, config=self.config.model_copy(update={"quantize": quantize}))

    def with_adapter(self, path: str | Path) -> SavedModel:
        """This model with PEFT's folder, or a run of an adapter, beside it. ValueError where that cannot be."""
        if not self.hugging_face:
            raise ValueError(
                f"[adapter] {self.path} is a checkpoint, and an adapter stands beside a Hugging Face folder. Export it "
                "first."
            )
        folder = find_adapter(path)
        return replace(self, adapter=read_adapter_config(folder), adapter_folder=folder)

    def load(self, numerics: Numerics, positions: int, train: bool = False) -> tuple[Transformer, ParamStore]:
        """The model with its weights, for up to `positions` tokens; with `train` they have gradients.

        Raises ValueError for bad files.
        """
        config = self.config.model_copy(update={"freeze": []})  # of the run that saved it
        model = build_model(config, numerics, positions, adapter=self.adapter)
        if config.quantize != "none" and (self.hugging_face or self.adapter is not None):
            if train:
                raise ValueError(
                    f"[load] {self.path} is held in blocks (quantize {config.quantize}), which have no gradients. Load it "
                    'with quantize="none".'
                )
            if self.adapter is None:  # beside one all is frozen but what was trained
                for param in model.params():
                    param.tag(trainable=False)
            hold_as_stored(self._base_path(), config, model)
        if train:
            for param in model.params():
                param.tag(trainable=True)
        params = ParamStore(model.params(), numerics, train=train)
        if self.hugging_face:
            load_weights(self.path, self.config, params)
            if self.adapter is not None and self.adapter_folder is not None:
                base = None
                if says_its_base(self.adapter_folder):
                    files = sha256_of_files(self.path, weight_files(self.path))
                    base = FrozenBase(path=str(self.path), files=files, tensors={})
                load_adapter(
                    self.adapter_folder, peft_adapter(self.adapter, self.config, model, base), params
                )
        else:
            base = load_checkpoint(self.path, params, None).base
            if base is not None:
                names = [tensor.name for tensor in hf_tensors(self.config, params.params)]
                frozen = [param for param in params.params if param.name in base.tensors]
                load_weights(open_base(self.path, base), self.config, params, names, frozen)
        return model, params

    def _base_path(self) -> Path:
        """The folder or GGUF file with the weights that were not trained. Raises CheckpointError as `open_base`."""
        if self.hugging_face:
            return self.path
        base = read_checkpoint(self.path).state.base
        assert base is not None, "an adapter has a base"
        return open_base(self.path, base)

    def side_files(self, tokenizer: str | None, any_tokenizer: bool) -> SideFiles:
        """The model's own files, or with the tokenizer that a path names, or with none.

        Raises ValueError when that is another one than the model's, unless `any_tokenizer`, and when nothing is known of
        what the model had.
        """
        if tokenizer == "none":
            kept = {} if self.side is None else self.side.files
            return SideFiles({name: kept[name] for name in (GENERATION_FILE, CONFIG_FILE) if name in kept})
        if tokenizer is not None:
            return self._with_tokenizer(Path(tokenizer), any_tokenizer)
        if self.side is None:
            raise ValueError(
                f"[saved_model] {self.path} was written before checkpoints kept their tokenizer. "
                "Give its folder with --tokenizer, the data's or that of the pretrained model."
            )
        return self.side

    def _with_tokenizer(self, path: Path, any_tokenizer: bool) -> SideFiles:
        other = read_prepared(path)
        if self.side is None:
            if other.encoding is None:
                return replace(other, encoding=Encoding(eos_id=Tokenizer.of(other).eos_id))
            return other
        if not self.side.has_tokenizer:
            return replace(other, files={**self.side.files, **other.tokenizer_files()})
        found = tokenizer_differences(other, self.side)
        if not found:
            return replace(self.side, files={**self.side.files, **other.tokenizer_files()})
        if not any_tokenizer:
            raise other_tokenizer_error(
                where_of(other),
                f"the tokenizer of {self.path}",
                found,
                "Leave --tokenizer out, or give --any-tokenizer as well to use this one all the same.",
            )
        return with_other_tokenizer(self.side, other)[0]


def find_saved_model(path: str | Path) -> SavedModel:
    """What `path` holds: the newest complete checkpoint of a run, a checkpoint, a Hugging Face folder, or a GGUF file.

    An id of a Hugging Face Hub is looked up (`cktrain/hf/hub.py`).
    Newer ones that are not complete are named in a warning. Raises ValueError when it is none of these.
    """
    path = local_path(path)
    if (path / MARKER).is_file():
        return _from_checkpoint(path)
    folder = path / "checkpoints"
    if folder.is_dir() or (path.is_dir() and step_folders(path)):
        candidates = find_candidates(folder if folder.is_dir() else path)
        if not candidates.found:
            why = f" ({'; '.join(candidates.passed_over[:3])})" if candidates.passed_over else ""
            raise ValueError(
                f"[saved_model] {path} has no complete checkpoint{why}. Train until one is written."
            )
        newest = candidates.found[0].path
        for text in candidates.passed_over:
            warn(f"[saved_model] passed over {text}; taken instead: {newest}")
        return _from_checkpoint(newest)
    if (path / CONFIG_FILE).is_file() or is_gguf(path):
        return SavedModel(path, read_model_config(path), read_side_files(path), True)
    raise ValueError(
        f"[saved_model] {path} is no run (checkpoints/), no checkpoint ({MARKER}), no Hugging Face folder "
        f"({CONFIG_FILE}) and no GGUF file. {what_to_give(path) or 'Give the path of one.'}"
    )


def refuse_model_folder(run_dir: Path) -> None:
    """ValueError where a new run's folder is a model's: with a run in it, its name would mean the run's model."""
    if (run_dir / CONFIG_FILE).is_file() and not (run_dir / "checkpoints").exists():
        raise ValueError(
            f"[run] {run_dir} is a model's folder ({CONFIG_FILE}), which a run in it would take the place of. Give the run "
            "a folder of its own."
        )


def _from_checkpoint(path: Path) -> SavedModel:
    config = load_config(path / "config.yaml")
    model, _ = resolve_model(config.model)
    if model.max_position_embeddings is None:
        model = model.model_copy(update={"max_position_embeddings": config.data.sequence_length})
    side = read_record(path / FOLDER)
    if side is None and f'"{FOLDER}/' in (path / MARKER).read_text(encoding="utf-8"):
        raise ValueError(
            f"[saved_model] {path}: {FOLDER} is missing, which {MARKER} lists. Copy the checkpoint again, with its folders."
        )
    return SavedModel(path, model, side, False, config.adapter)
