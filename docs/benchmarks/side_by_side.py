"""Times whole training steps of cktrain and of PyTorch on this machine, side by side in one run.

    python docs/benchmarks/side_by_side.py [--case reference|small|odd] [--precision fp32 bf16] [--rounds 3] [--steps 2]

Contenders (contenders.py): cktrain; PyTorch eager; torch.compile; "ddp", torch.compile under DistributedDataParallel with
as many one-threaded processes as cores, over gloo. In each round each one is asked in turn for a few steps; the figure
is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from contenders import CASES, Contender, take_turns

KINDS = {"cktrain": "cktrain", "eager": "eager", "compile": "compile", "ddp": "compile"}


def compare(case_name: str, precision: str, rounds: int, steps: int, names: list[str]) -> dict[str, Any]:
    """The median step of each contender, cktrain's share of the measured peak before and after, and the ratios."""
    from cktrain import cython_kernels
    from cktrain.bench.peak import measure_flops

    case, cores = CASES[case_name], len(os.sched_getaffinity(0))
    kernels = cython_kernels.load()
    kernels.set_num_threads(cores)
    peaks = [measure_flops(kernels, precision)]
    contenders = [
        Contender(name, KINDS[name], cores if name == "ddp" else 1, case_name, precision, max(2, steps))
        for name in names
    ]
    take_turns(contenders, rounds, steps)
    peaks.append(measure_flops(kernels, precision))
    tokens = case.micro_batch * case.accumulation * case.sequence
    matrices = (
        case.layers
        * case.hidden
        * ((2 * case.heads + 2 * case.kv_heads) * case.hidden // case.heads + 3 * case.intermediate)
        + case.vocabulary * case.hidden
    )
    flops = tokens * (6 * matrices + 6 * case.layers * case.hidden * case.sequence)
    rows = []
    mine = statistics.median(contenders[0].times)
    for contender in contenders:
        seconds = statistics.median(contender.times)
        rows.append(
            {
                "contender": contender.name,
                "step_s": seconds,
                "spread": [min(contender.times), max(contender.times)],
                "tokens_per_s": tokens / seconds,
                "of_peak": flops / seconds / max(peaks),
                "cktrain_is_faster_by": seconds / mine,
                "peak_rss_gb": contender.peak_rss / 1e9,
            }
        )
    return {
        "case": case_name,
        "precision": precision,
        "isa": kernels.isa,
        "cores": cores,
        "peaks": peaks,
        "rounds": rounds,
        "steps": steps,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """A Markdown table of one comparison."""
    peaks = " and ".join(f"{p / 1e9:,.0f}" for p in result["peaks"])
    lines = [
        f"{result['case']}, {result['precision']}, {result['isa']}, {result['cores']} cores; measured peak {peaks} "
        f"GFLOP/s before and after; median of {result['rounds']} rounds of {result['steps']} steps",
        "",
        "| contender | ms per step (min-max) | tokens/s | % of peak | cktrain is faster by | peak RSS GB |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = (1e3 * x for x in row["spread"])
        lines.append(
            f"| {row['contender']} | {1e3 * row['step_s']:,.2f} ({low:,.2f}-{high:,.2f}) | {row['tokens_per_s']:,.0f} "
            f"| {100 * row['of_peak']:.1f} | {row['cktrain_is_faster_by']:.2f} | {row['peak_rss_gb']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description="Whole training steps of cktrain and PyTorch, side by side.")
    parser.add_argument("--case", choices=CASES, default="reference")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--contenders", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    names = ["cktrain", *(name for name in options.contenders if name != "cktrain")]
    results = [compare(options.case, p, options.rounds, options.steps, names) for p in options.precision]
    for result in results:
        print(table(result))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
