"""Times data-parallel steps of cktrain against one rank with all cores, and against PyTorch's compiled DDP over gloo.

    python docs/benchmarks/data_parallel.py [--case reference] [--precision fp32 bf16] [--rounds 5] [--steps 2]

Contenders, all with the same global batch, the same model and random tokens, on the same cores in the same run:

    1 rank        cktrain, one rank with a thread per core
    n ranks       cktrain, as many ranks as cores with one thread each, `parallel: {data: n, zero: 1}`, shared memory
    ddp           torch.compile under DistributedDataParallel over gloo, as many one-threaded processes as cores

They take turns (contenders.py). The figure is the median over rounds of the slowest rank's time; ratios are medians
of ratios by round.
"""

from __future__ import annotations

import argparse
import os
import statistics

from contenders import CASES, Contender, take_turns

KINDS = {"1 rank": "cktrain", "n ranks": "cktrain", "ddp": "compile"}


def compare(case: str, precision: str, rounds: int, steps: int, names: list[str]) -> str:
    """A Markdown table of one comparison."""
    cores = len(os.sched_getaffinity(0))
    contenders = [
        Contender(name, KINDS[name], 1 if name == "1 rank" else cores, case, precision, max(2, steps))
        for name in names
    ]
    take_turns(contenders, rounds, steps)
    shape = CASES[case]
    tokens = shape.micro_batch * shape.accumulation * shape.sequence
    lines = [
        f"{case}, {precision}, {cores} cores, {tokens:,} tokens per step; {rounds} rounds of {steps} steps",
        "",
        "| contender | ms per step (min-max) | waited ms | tokens/s | tokens/s over that of 1 rank | over ddp |",
        "|---|---|---|---|---|---|",
    ]
    by_name = {contender.name: contender for contender in contenders}
    for contender in contenders:
        seconds = statistics.median(contender.times)
        ratios = []
        for rival in ("1 rank", "ddp"):
            theirs = by_name[rival].times if rival in by_name else []
            pairs = [t / mine for t, mine in zip(theirs, contender.times, strict=False)]
            ratios.append(f"{statistics.median(pairs):.3f}" if pairs else "-")
        low, high = 1e3 * min(contender.times), 1e3 * max(contender.times)
        lines.append(
            f"| {contender.name} | {1e3 * seconds:,.1f} ({low:,.1f}-{high:,.1f}) "
            f"| {1e3 * statistics.median(contender.waited):,.1f} | {tokens / seconds:,.0f} | {' | '.join(ratios)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description="Data-parallel steps of cktrain and PyTorch, side by side.")
    parser.add_argument("--case", choices=CASES, default="reference")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--contenders", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    options = parser.parse_args()
    for precision in options.precision:
        print(compare(options.case, precision, options.rounds, options.steps, options.contenders), flush=True)


if __name__ == "__main__":
    main()
