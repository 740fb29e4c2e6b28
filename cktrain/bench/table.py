"""Tables of benchmark results for people."""

from __future__ import annotations

from cktrain.bench.step import StepReport


def step_table(report: StepReport) -> str:
    """The step's figures and one row per op."""
    from rich.console import Console  # here, since 3 MB of a step's memory would be its modules
    from rich.table import Table

    table = Table(
        title=f"{report.step_s * 1e3:.1f} ms per step, {report.tokens_per_s:,.0f} tokens/s, "
        f"{report.tflops:.3f} TFLOP/s\n"
        f"{100 * report.mfu:.1f}% of the register loop's best, {report.peak_tflops:.3f} TFLOP/s; "
        f"{100 * report.tflops / report.sustained_tflops:.1f}% of its median between the steps, "
        f"{report.sustained_tflops:.3f}\n"
        f"{report.isa}, {report.precision}, {report.threads} threads, {report.peak_memory_bytes / 2**30:.2f} GiB",
    )
    for heading in ("op", "calls", "ms", "% of step", "GFLOP/s", "GB/s", "% of peak"):
        table.add_column(heading, justify="left" if heading == "op" else "right")
    whole = sum(row["s"] for row in report.ops)
    for row in report.ops:
        roofline = "" if row["roofline"] is None else f"{100 * row['roofline']:.1f}"
        table.add_row(
            row["name"],
            str(row["calls"]),
            f"{row['s'] * 1e3:.2f}",
            f"{100 * row['s'] / whole:.1f}",
            f"{row['gflops']:.1f}" if row["gflops"] else "",
            f"{row['gbs']:.1f}" if row["gbs"] else "",
            roofline,
        )
    console = Console(width=110)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
