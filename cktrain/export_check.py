"""Whether an export is the model that was trained: the validation loss of both, over the same held-out sequences."""

from __future__ import annotations

from pathlib import Path

from cktrain import cython_kernels
from cktrain.checkpoint_record import CheckpointError
from cktrain.config import Config
from cktrain.config_file import load_config
from cktrain.hf.config_json import read_model_config
from cktrain.nn.numerics import Numerics
from cktrain.report import measure
from cktrain.saved_model import SavedModel
from cktrain.training_data import Sources, open_validation

TOKENS = 20_000
"""About how many tokens are enough: a whole validation split may take as long as the training did between two of them."""


def losses_in_words(saved: SavedModel, out: str | Path) -> str:
    """The line that compares a checkpoint with what was exported of it to `out`; "" where its run validated nothing.

    Both are computed in fp32. Raises ValueError for an export that cannot be read.
    """
    if saved.hugging_face:
        return ""
    config = load_config(saved.path / "config.yaml")
    config = config.model_copy(update={"model": saved.config})
    if not config.data.validation.wanted:
        return ""
    try:
        sources = open_validation(config)
    except ValueError as error:
        return f"validation loss: not computed, since the run's data cannot be read ({error})"
    written = SavedModel(Path(out), read_model_config(out), side=None, hugging_face=True)
    length, most = config.data.sequence_length, written.config.max_position_embeddings or 0
    if length > most:  # of a sliding window, which GGUF has as the length of the context
        return f"validation loss: not computed, since {out} has {most:,} positions and the run's sequences {length:,} tokens"
    steps = config.batch.resolved_global_batch_size * config.data.sequence_length
    batches = max(1, TOKENS // steps)
    try:
        trained, tokens = _loss(saved, config, sources, batches)
        exported, _ = _loss(written, config, sources, batches)
    except CheckpointError as error:  # of another file than those that the export is made of
        return f"validation loss: not computed, because {error}"
    except MemoryError as error:
        return f"validation loss: not computed, for want of memory ({error})"
    what = "validation loss" if config.objective.name == "next_token" else "cross-entropy of held-out answers"
    return f"{what}: {trained:.4f} as trained, {exported:.4f} as exported, of {tokens:,} held-out tokens"


def _loss(saved: SavedModel, config: Config, sources: Sources, batches: int) -> tuple[float, int]:
    model, _ = saved.load(Numerics(cython_kernels.load(), "fp32"), config.data.sequence_length)
    found = measure(model, config, sources, batches)
    return found.loss, found.tokens
