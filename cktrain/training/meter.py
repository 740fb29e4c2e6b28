"""What is measured between two log lines: time, tokens, waiting, and of the last step its loss and norm."""

from __future__ import annotations

import time

from cktrain.training.metrics import StepMetrics, proportional_set_size
from cktrain.training.observer import StepResult


class Meter:
    """Adds up steps until they are logged."""

    def __init__(self, flops_per_token: float, peak_flops: float | None, tokens_per_step: int) -> None:
        """`flops_per_token` is the whole model's, `peak_flops` what all ranks can compute per second, if measured.

        `tokens_per_step` are those of the global batch, with a label or without: all of them are computed.
        """
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._tokens_per_step = tokens_per_step
        self.reset()

    def reset(self) -> None:
        """Begin anew, now."""
        self._began = time.perf_counter()
        self._steps = 0
        self._comm_seconds = 0.0
        self._data_seconds = 0.0

    def add(self, result: StepResult, data_seconds: float) -> None:
        """A step that was done, and how long this rank waited for its data."""
        self._steps += 1
        self._comm_seconds += result.comm_seconds
        self._data_seconds += data_seconds

    @property
    def seconds_per_step(self) -> float:
        """Since the last reset."""
        return (time.perf_counter() - self._began) / self._steps

    @property
    def tokens_per_second(self) -> float:
        """Since the last reset."""
        return self._steps * self._tokens_per_step / (time.perf_counter() - self._began)

    def record(
        self,
        step: int,
        result: StepResult,
        tokens_seen: int,
        epoch: float | None = None,
        mixture: dict[str, float] | None = None,
    ) -> StepMetrics:
        """The figures of the steps since the last reset; `tokens_seen`, `epoch` and shares of the whole run."""
        tps = self.tokens_per_second
        flops = tps * self._flops_per_token
        return StepMetrics(
            step=step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            tokens=tokens_seen,
            tps=tps,
            tflops=flops / 1e12,
            mfu=None if self._peak_flops is None else flops / self._peak_flops,
            memory_bytes=proportional_set_size(),
            comm_ms=1e3 * self._comm_seconds / self._steps,
            data_ms=1e3 * self._data_seconds / self._steps,
            epoch=epoch,
            mixture=mixture,
            measures=result.measures,
        )
