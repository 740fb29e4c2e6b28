"""A run's folder as a script or a notebook sees it: its losses, its model, its weights for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cktrain.adapter_export import export_adapter, export_merged, exported_params
from cktrain.hf.gguf_file.export import export_gguf
from cktrain.loaded_model import Model, open_model
from cktrain.report import METRICS_FILE, Curve, draw_losses, plot_losses, read_curve
from cktrain.saved_model import find_saved_model
from cktrain.whole_output import refuse_existing

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

        Raises ValueError where the run has no metrics.jsonl, matplotlib is missing (extra `plots`), or the file cannot be
        written.
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
        self,
        folder: str | Path,
        dtype: Literal["float32", "bfloat16"] | None = None,
        *,
        merge: bool = False,
        gguf: Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k", "mxfp4"] | None = None,
    ) -> Path:
        """Write the model as a Hugging Face folder, or as a GGUF file for llama.cpp; returns it.

        Args:
            folder: to make; with `gguf` the file.
            dtype: of the weights; None: float32, or with `merge` as the base's files have them.
            merge: put the run's adapter into its base's weights.
            gguf: the type of the matrices of a GGUF file, instead of `dtype`.

        Raises:
            ValueError: the folder is not empty or the file exists, there is no whole checkpoint, `dtype` and `gguf` are both
                given, or the run has an adapter and `merge` is not given.
            OSError: writing fails.
        """
        saved, out = find_saved_model(self.path), Path(folder)
        if saved.adapter is not None and not merge:
            raise ValueError(
                f"[export] {self.path} trained an adapter. Give merge=True for the base with the adapter in it, or call "
                "save_adapter."
            )
        if gguf is not None:
            if dtype is not None:
                raise ValueError(
                    f"[export] gguf={gguf!r} names the type of the weights too. Leave dtype out."
                )
            refuse_existing(out, "gguf")  # before the model is read
            export_gguf(out, saved.config, exported_params(saved, merge), saved.side_files(None, False), gguf)
        elif merge:
            export_merged(saved, out, saved.side_files(None, False), dtype)
        else:
            open_model(self.path).save(out, dtype or "float32")
        return out
