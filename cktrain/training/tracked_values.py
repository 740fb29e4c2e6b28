"""What the trackers are told, by torchtitan's names, so that its dashboards fit: a training step and a validation."""

from __future__ import annotations

from cktrain.training.metrics import StepMetrics
from cktrain.training.validation import ValidationResult


def training_values(record: StepMetrics, seconds_per_step: float) -> dict[str, float]:
    """A logged step; what was not measured is left out."""
    values: dict[str, float | None] = {
        "loss_metrics/global_avg_loss": record.loss,
        "grad_norm": record.grad_norm,
        "lr": record.lr,
        "n_tokens_seen": record.tokens,
        "throughput(tps)": record.tps,
        "tflops": record.tflops,
        "mfu(%)": None if record.mfu is None else 100 * record.mfu,
        "time_metrics/end_to_end(s)": seconds_per_step,
        "time_metrics/data_loading(s)": record.data_ms / 1e3,
        "time_metrics/communication(s)": record.comm_ms / 1e3,
        "memory/process(GiB)": None if record.memory_bytes is None else record.memory_bytes / 2**30,
        "epoch": record.epoch,
        **{f"mixture/{name}": share for name, share in (record.mixture or {}).items()},
        **record.measures,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def validation_values(result: ValidationResult) -> dict[str, float]:
    """A validation."""
    values = {"validation_metrics/loss": result.loss}
    values |= {f"validation_metrics/loss/{name}": loss for name, loss in result.parts.items()}
    if result.bits_per_byte is not None:
        values["validation_metrics/bits_per_byte"] = result.bits_per_byte
    return values | {f"validation_metrics/{name}": value for name, value in result.measures.items()}
