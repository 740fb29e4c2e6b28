"""A plan as text for people."""

from __future__ import annotations

from dataclasses import fields

from cktrain.plan.memory import RankMemory
from cktrain.plan.plan import Plan, gib
from cktrain.plan.step import StepPrediction

LABELS = {
    "weights": "weights (fp32 masters)",
    "bf16_copy": "bf16 copy of them",
    "gradients": "gradients",
    "optimizer": "optimizer's state",
    "activations": "activations",
    "workspaces": "workspaces",
    "comm_buffers": "communication buffers",
    "process": "the process itself",
}


def plan_text(plan: Plan, source: str = "") -> str:
    """Some lines; `source` says where rates come from."""
    mesh, machine = plan.mesh, plan.machine
    lines = [
        f"{plan.parameters:,} parameters in {plan.precision}; {mesh}; ranks: {mesh.world}, "
        f"per node: {machine.ranks_per_node}, threads of each: {machine.threads}; "
        f"micro-batches per step: {plan.micro_batches}",
    ]
    if mesh.pipeline > 1:
        lines.append(f"layers per stage: {' + '.join(str(count) for count in plan.layers)}")
    lines += ["", _heading("memory per rank", len(plan.memory), "GiB")]
    for kind in fields(RankMemory):
        values = [getattr(rank, kind.name) for rank in plan.memory]
        if any(values):
            lines.append(_row(LABELS[kind.name], [f"{value / 2**30:.3f}" for value in values]))
    lines.append(_row("total", [f"{rank.total / 2**30:.3f}" for rank in plan.memory]))
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines.append(f"fullest node: {gib(plan.node_bytes)} of {gib(machine.node_bytes)}: {verdict}")
    lines.append(f"generation keeps {plan.key_value_bytes:,} bytes of keys and values per token")
    if mesh.world > 1:
        lines += ["", _heading("sent per rank and step", len(plan.wire), "MB")]
        for name in ("gradients", "weights", "tensor", "pipeline", "replicas", "total"):
            values = [getattr(wire, name) for wire in plan.wire]
            if any(values):
                lines.append(_row(name, [f"{value / 1e6:,.1f}" for value in values]))
    if plan.step is not None and plan.tokens_per_second is not None and plan.flops_per_second is not None:
        step = plan.step
        lines += [
            "",
            f"step {1e3 * step.step:,.1f} ms = schedule {1e3 * step.schedule:,.1f} (tensor messages "
            f"{1e3 * step.tensor:,.1f}) + gradients {1e3 * step.gradients:,.1f} + update {1e3 * step.update:,.1f} "
            f"+ weights {1e3 * step.weights:,.1f}",
            *_reference(step),
            f"{plan.tokens_per_second:,.0f} tokens/s, {plan.flops_per_second / 1e12:.3f} TFLOP/s",
        ]
        if mesh.pipeline > 1:
            lines.append(
                f"pipeline bubble {100 * step.bubble:.1f} % (balanced stages: {100 * plan.balanced_bubble:.1f} %)"
            )
        if plan.serial is not None and plan.ceiling is not None:
            lines.append(
                f"serial part {100 * plan.serial:.2f} % of one thread's time: at most {plan.ceiling:,.0f} times faster "
                "by more threads (Amdahl)"
            )
    if source:
        lines += ["", source]
    if plan.disturbance:
        lines.append(plan.disturbance)
    return "\n".join(lines)


def _reference(step: StepPrediction) -> list[str]:
    if not step.reference:
        return []
    when = (
        "beside each step, in its time"
        if step.beside
        else "once, of the sequences of each step before the first"
    )
    return [f"reference {1e3 * step.reference:,.1f} ms {when}"]


def _heading(what: str, columns: int, unit: str) -> str:
    names = [""] if columns == 1 else [f"stage {number}" for number in range(columns)]
    return _row(f"{what}, {unit}", names)


def _row(label: str, values: list[str]) -> str:
    return f"{label:<32}" + "".join(f"{value:>12}" for value in values)
