"""A run's folder as a script or a notebook sees it: its losses, its model, its weights for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cktrain.loaded_model import Model, open_model
from cktrain.report import METRICS_FILE, Curve, draw_losses, plot_losses, read_curve

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

    def export(self, folder: str | Path, dtype: Literal["float32", "bfloat16"] = "float32") -> Path:
        """Write the model as a Hugging Face folder; returns it.

        Raises ValueError where the folder is not empty or there is no whole checkpoint, and OSError where writing fails.
        """
        model = open_model(self.path)
        model.save(folder, dtype)
        return Path(folder)
