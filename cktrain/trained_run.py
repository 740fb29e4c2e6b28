"""A run's folder as a script or a notebook sees it: its losses, its model, its weights for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cktrain.adapter_export import export_adapter, export_merged
from cktrain.loaded_model import Model, open_model
from cktrain.report import METRICS_FILE, Curve, draw_losses, plot_losses, read_curve
from cktrain.saved_model import find_saved_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TrainedRun:
    """What `cktrain.train` returns; `TrainedRun(folder)` is one that was trained before."""

    def __init__(self, path: str | Path, done: bool = True) -> None:
        self.path = Path(path)
        """The run's folder (docs/runs.md)."""
        self.done = done
        """False where a signal or the clock stopped it after a checkpoint: the same call goes on."""

    def __repr__(self) -> str:
        return f"<cktrain run {self.path}{'' if self.done else ', stopped'}>"

    def losses(self) -> Curve:
        """What was logged: `training` and `validation`, lists of (step, nats per token).

        Raises ValueError where the run has no metrics.jsonl.
        """
        return read_curve(self.path / METRICS_FILE)

    def plot(self, file: str | Path | None = None) -> Figure:
        """The loss curve as a matplotlib figure, which a notebook shows; also into `file`, whose suffix says how.

        Raises ValueError where the run has no metrics.jsonl, or the file cannot be written.
        """
        curve = self.losses()
        if file is not None:
            plot_losses(curve, self.path.resolve().name, Path(file))
        return draw_losses(curve, self.path.resolve().name)

    def load(self, dtype: str | None = None) -> Model:
        """The model of the newest whole checkpoint, as `cktrain.load`."""
        from cktrain.api import load

        return load(self.path, dtype=dtype)

    def save_adapter(self, folder: str | Path) -> Path:
        """Write the adapter of the newest whole checkpoint as PEFT's folder; returns it.

        Raises ValueError where the run has no adapter or the folder is not empty, and OSError where writing fails.
        """
        export_adapter(find_saved_model(self.path), Path(folder))
        return Path(folder)

    def export(
        self, folder: str | Path, dtype: Literal["float32", "bfloat16"] | None = None, *, merge: bool = False
    ) -> Path:
        """Write the model as a Hugging Face folder; returns it.

        Args:
            folder: to make.
            dtype: of the weights; None: float32, or with `merge` as the base's files have them.
            merge: put the run's adapter into its base's weights.

        Raises:
            ValueError: the folder is not empty, there is no whole checkpoint, or it has an adapter and `merge` is not given.
            OSError: writing fails.
        """
        saved = find_saved_model(self.path)
        if merge:
            export_merged(saved, Path(folder), saved.side_files(None, False), dtype)
        elif saved.adapter is not None:
            raise ValueError(
                f"[export] {self.path} trained an adapter. Give merge=True for the base with the adapter in it, or call "
                "save_adapter."
            )
        else:
            open_model(self.path).save(folder, dtype or "float32")
        return Path(folder)
