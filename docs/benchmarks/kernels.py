"""Takes every figure of the kernels' page, one measurement after the other, and writes the page's tables.

    python docs/benchmarks/kernels.py PAGE.md [--figures build/kernels.json] [--only step ...] [--render]

Each measurement is a process of its own (`cktrain bench ... --json`, side_by_side.py), so nothing is left of the one
before. Its figures are kept in --figures; --only repeats those whose name contains a word, and --render writes the page
from what is kept. Everything in PAGE.md below the line MARK is replaced, what stands above it is written by hand.
About 15 minutes on two cores, which must have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = "<!-- What follows is written by docs/benchmarks/kernels.py. -->"
SHAPES = ("qkv", "out", "gate_up", "down", "head", "1024", "4096")
Figures = dict[str, Any]


def measurements() -> dict[str, list[str]]:
    """Name -> command line; a leading NAME=VALUE goes into the environment."""
    found: dict[str, list[str]] = {"peak": ["cktrain", "bench", "peak", "--json"]}
    for threads in ("2", "1"):
        for precision, isa in (("bf16", ""), ("fp32", ""), ("fp32", "avx2")):
            found[f"gemm {precision} {isa or 'best'} {threads}"] = [
                *([f"CKTRAIN_ISA={isa}"] if isa else []),
                *("cktrain", "bench", "gemm", "--json", "--precision", precision, "--threads", threads),
                *("--repetitions", "6" if precision == "bf16" else "3", "--shapes", ",".join(SHAPES)),
            ]
    for name, precision, isa, steps, *settings in (
        ("step bf16", "bf16", "", "7"),
        ("step fp32", "fp32", "", "5"),
        ("step fp32 avx2", "fp32", "avx2", "3"),
        ("step bf16 one thread", "bf16", "", "3", "launch.threads=1"),
        ("step fp32 one thread", "fp32", "", "3", "launch.threads=1"),
        ("step bf16 block", "bf16", "", "2", "memory.checkpointing=block"),
        ("step fp32 block", "fp32", "", "2", "memory.checkpointing=block"),
    ):
        command = ["cktrain", "bench", "step", str(HERE / "reference.yaml"), "--json", "--steps", steps]
        for setting in (f"precision={precision}", *settings):
            command += ["--set", setting]
        found[name] = [*([f"CKTRAIN_ISA={isa}"] if isa else []), *command]
    found["ops"] = ["cktrain", "bench", "ops", "--json", "norm", "swiglu", "adamw", "attention"]
    for case, precision, rounds, steps, *contenders in (
        ("reference", "bf16", "5", "1", "eager", "compile"),
        ("reference", "bf16", "5", "1", "ddp"),
        ("reference", "fp32", "3", "1", "eager", "compile"),
        ("reference", "fp32", "3", "1", "ddp"),
        ("small", "fp32", "9", "100", "eager", "compile"),
        ("odd", "fp32", "5", "3", "eager", "compile"),
    ):
        found[f"beside {case} {precision} {' '.join(contenders)}"] = [
            *(sys.executable, str(HERE / "side_by_side.py"), "--case", case, "--precision", precision),
            *("--rounds", rounds, "--steps", steps, "--contenders", "cktrain", *contenders, "--json"),
        ]
    return found


def measure(command: list[str]) -> Any:
    """The figures that a measurement gives as JSON."""
    environment = dict(os.environ)
    while "=" in command[0]:
        name, _, value = command[0].partition("=")
        environment[name] = value
        command = command[1:]
    if command[-1] == "--json" and command[0] == sys.executable:
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            subprocess.run([*command, file.name], env=environment, check=True, stdout=subprocess.DEVNULL)
            return json.load(file)
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.strip().splitlines()[-1])


# --------------------------------------------------------------------------------------------------- the tables


def table(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """In Markdown, with an empty line after it."""
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n\n"


def in_words(shares: list[float], goal: float) -> str:
    """A range of percentages, and how many reach the goal."""
    enough = sum(share >= goal for share in shares)
    return f"{min(shares):.1f}-{max(shares):.1f} %, {enough} of {len(shares)} rows at {goal:g} or more"


def gemm_reach(figures: Figures, key: str, goal: float, rival: str) -> tuple[str, str]:
    """What `bench gemm` found of cktrain, and whether it reaches the goal without falling below the rival."""
    rates = {(r["shape"], r["product"], r["library"]): r for r in figures[key]["rows"]}
    mine = {place[:2]: r for place, r in rates.items() if place[2] == "cktrain"}
    ratios = {place: r["gflops"] / rates[(*place, rival)]["gflops"] for place, r in mine.items()}
    shares = [100 * r["ratio"] for r in mine.values()]
    words = f"{in_words(shares, goal)}; {min(ratios.values()):.2f}-{max(ratios.values()):.2f}x {rival}"
    below = [" ".join(place) for place, ratio in ratios.items() if ratio < 1]
    if below:
        words += f", below it in {', '.join(below)}"
    missed = [
        f"{' '.join(place)} ({100 * r['ratio']:.1f})" for place, r in mine.items() if 100 * r["ratio"] < goal
    ]
    if not missed:
        return words, "but for the rival" if below else "yes"
    return words, f"but for {', '.join(missed)}" if len(missed) < 4 else "in part"


def step_share(report: Figures) -> tuple[float, float]:
    """Percent of the register loop's best run, and of its median between the steps."""
    return 100 * report["mfu"], 100 * report["tflops"] / report["sustained_tflops"]


def reached(*each: bool) -> str:
    """In a word."""
    return "yes" if all(each) else "in part" if any(each) else "no"


def reach(figures: Figures) -> str:
    """The goals, what was found, and whether that is enough."""
    rows: list[tuple[str, str, str, str]] = []
    for precision, goal, rival in (("bf16", 88, "PyTorch"), ("fp32", 90, "numpy")):
        for threads in ("1", "2"):
            found = gemm_reach(figures, f"gemm {precision} best {threads}", goal, rival)
            rows.append(
                (f"matmul {precision}, threads: {threads}", f"{goal} % of peak, not below {rival}", *found)
            )
    for threads in ("1", "2"):
        found = gemm_reach(figures, f"gemm fp32 avx2 {threads}", 90, "numpy")
        rows.append(
            (f"matmul fp32, AVX2 forced, threads: {threads}", "90 % of peak, not below numpy", *found)
        )
    ops = {(op["op"], op["shape"], op["precision"]): op for op in figures["ops"]}
    attention = next(
        op
        for place, op in ops.items()
        if place[0] == "attention_both" and "T=2048" in place[1] and place[2] == "bf16"
    )
    share, faster = 100 * attention["roofline"], attention["vs_torch"]
    rows.append(
        (
            "attention forward and backward, T=2048, head 64, bf16",
            "60 % of peak; 2x PyTorch",
            f"{share:.1f} %; {faster:.2f}x",
            reached(share >= 60, faster >= 2),
        )
    )
    for precision in ("bf16", "fp32"):
        for op in ("rms_norm", "layer_norm", "swiglu", "adamw"):
            parts = {
                place[0].removeprefix(op).strip("_"): 100 * r["gbs"] / r["stream"]
                for place, r in ops.items()
                if place[0].startswith(op) and place[2] == precision
            }
            words = ", ".join(f"{part} {share:.0f} %" for part, share in parts.items())
            goal = "85 % of the same mix of reads and writes"
            rows.append(
                (f"{op}, {precision}", goal, words, reached(*(share >= 85 for share in parts.values())))
            )
    for key, goal in (("step bf16", 80), ("step fp32", 85), ("step fp32 avx2", 80)):
        best, median = step_share(figures[key])
        words = f"{best:.1f} % of the loop's best, {median:.1f} % of its median between the steps"
        rows.append((f"reference {key}", f"{goal} % of peak", words, reached(best >= goal, median >= goal)))
    for key in ("step bf16", "step fp32"):
        off = 100 * (sum(op["s"] for op in figures[key]["ops"]) / figures[key]["step_s"] - 1)
        words = f"{off:+.1f} %"
        rows.append(
            (f"{key}: the ops' times against the step's", "within 3 %", words, reached(abs(off) <= 3))
        )
    rows += rivals_reach(figures)
    for precision in ("bf16", "fp32"):
        one, two = (figures[f"step {precision}{kind}"]["step_s"] for kind in (" one thread", ""))
        rows.append(
            (f"step {precision}, 1 to 2 threads", "1.9x", f"{one / two:.2f}x", reached(one / two >= 1.9))
        )
    for precision in ("bf16", "fp32"):
        for kind, goal in (("", 3.1), (" block", 2.6)):
            gigabytes = figures[f"step {precision}{kind}"]["peak_memory_bytes"] / 1e9
            words = f"{gigabytes:.2f} GB"
            rows.append(
                (f"memory of step {precision}{kind}", f"{goal} GB", words, reached(gigabytes <= goal))
            )
    return table(("what", "at least (memory: at most)", "found", "reached"), rows)


def rivals_reach(figures: Figures) -> list[tuple[str, str, str, str]]:
    """The steps beside PyTorch's."""
    faster: dict[tuple[str, str], dict[str, float]] = {}
    for key, results in figures.items():
        if key.startswith("beside"):
            (result,) = results
            rivals = {
                r["contender"]: r["cktrain_is_faster_by"]
                for r in result["rows"]
                if r["contender"] != "cktrain"
            }
            faster.setdefault((result["case"], result["precision"]), {}).update(rivals)
    rows = []
    for case, precision, eager, best in (
        ("reference", "bf16", 2.2, 1.4),
        ("reference", "fp32", 1.7, 1.25),
        ("small", "fp32", 2.0, 1.4),
        ("odd", "fp32", 2.0, 1.4),
    ):
        found = faster[case, precision]
        words = ", ".join(f"{ratio:.2f}x {rival}" for rival, ratio in found.items())
        enough = reached(found["eager"] >= eager, min(found.values()) >= best)
        rows.append(
            (f"{case}, {precision}, beside PyTorch", f"{eager}x eager; {best}x its best", words, enough)
        )
    return rows


def tables(figures: Figures) -> str:
    """Every figure, one table per measurement."""
    text = "## The machine\n" + machine(figures["peak"])
    for key in figures:
        if key.startswith("step") and "block" not in key:
            text += f"## {key.capitalize().replace('avx2', '(AVX2 forced)')}\n" + step(figures[key])
    for key in figures:
        if key.startswith("gemm"):
            _, precision, isa, threads = key.split()
            forced = "" if isa == "best" else f", {isa.upper()} forced"
            text += f"## Matmul, {precision}{forced}, threads: {threads}\n" + gemm(figures[key])
    text += "## Ops\n" + ops_table(figures["ops"]) + "## Whole steps beside PyTorch\n"
    for key in figures:
        if key.startswith("beside"):
            text += beside(key.removeprefix("beside "), figures[key][0])
    return text.rstrip() + "\n"


def machine(report: Figures) -> str:
    """The register loop and the memory."""
    flops = [(r["isa"], r["precision"], r["threads"], f"{r['gflops']:.0f} GFLOP/s") for r in report["flops"]]
    streams = [(r["mix"], r["stores"], r["threads"], f"{r['gbs']:.1f} GB/s") for r in report["bandwidth"]]
    return table(
        ("instruction set or mix", "precision or stores", "threads", report["cpu"]), [*flops, *streams]
    )


def step(report: Figures) -> str:
    """A step's figures and its ops."""
    best, median = step_share(report)
    text = (
        f"{1e3 * report['step_s']:,.1f} ms, {report['tokens_per_s']:,.0f} tokens/s, {best:.1f} % of the register "
        f"loop's best ({report['peak_tflops']:.3f} TFLOP/s),\n{median:.1f} % of its median between the steps "
        f"({report['sustained_tflops']:.3f}), {report['peak_memory_bytes'] / 1e9:.2f} GB.\n\n"
    )
    whole = sum(op["s"] for op in report["ops"])
    rows = [
        (
            op["name"],
            op["calls"],
            f"{1e3 * op['s']:.2f}",
            f"{100 * op['s'] / whole:.1f}",
            f"{op['gflops']:.0f}" if op["gflops"] else "",
            f"{op['gbs']:.1f}" if op["gbs"] else "",
            f"{100 * op['roofline']:.1f}" if op["roofline"] else "",
        )
        for op in report["ops"]
    ]
    return text + table(("op", "calls", "ms", "% of step", "GFLOP/s", "GB/s", "% of best"), rows)


def gemm(report: Figures) -> str:
    """A line per product, two columns per library."""
    libraries = list(dict.fromkeys(row["library"] for row in report["rows"]))
    found: dict[tuple[str, str], dict[str, Figures]] = {}
    for row in report["rows"]:
        found.setdefault((row["shape"], row["product"]), {})[row["library"]] = row
    heading = ["shape", "product"]
    for library in libraries:
        heading += [f"{library} GFLOP/s", "%"]
    rows = []
    for place, each in found.items():
        cells = [(f"{each[x]['gflops']:.1f}", f"{100 * each[x]['ratio']:.1f}") for x in libraries]
        rows.append((*place, *(cell for pair in cells for cell in pair)))
    return table(heading, rows)


def ops_table(results: list[Figures]) -> str:
    """As `cktrain bench ops` prints it."""
    from cktrain.bench.ops import OpResult
    from cktrain.bench.ops import ops_table as as_text

    lines = as_text([OpResult(**result) for result in results]).splitlines()
    return "".join(f"    {line.rstrip()}\n" for line in lines) + "\n"


def beside(name: str, result: Figures) -> str:
    """The contenders of one run."""
    rows = [
        (
            row["contender"],
            f"{1e3 * row['step_s']:,.2f} ({1e3 * row['spread'][0]:,.2f}-{1e3 * row['spread'][1]:,.2f})",
            f"{row['tokens_per_s']:,.0f}",
            f"{100 * row['of_peak']:.1f}",
            f"{row['cktrain_is_faster_by']:.2f}",
            f"{row['peak_rss_gb']:.2f}",
        )
        for row in result["rows"]
    ]
    heading = (
        "contender",
        "ms per step (min-max)",
        "tokens/s",
        "% of peak",
        "cktrain is faster by",
        "peak RSS, GB",
    )
    return f"{name.capitalize()}:\n\n" + table(heading, rows)


def main() -> None:
    """Measure, keep, write."""
    parser = argparse.ArgumentParser(description="The figures of the kernels' page.")
    parser.add_argument("page", type=Path, help="Markdown file with the line that begins the tables")
    parser.add_argument(
        "--figures", type=Path, default=Path("build/kernels.json"), help="where they are kept"
    )
    parser.add_argument("--only", nargs="+", help="words, one of which the measurement's name contains")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    options = parser.parse_args()
    by_hand, mark, _ = options.page.read_text().partition(MARK)
    if not mark:
        parser.error(f"{options.page} has no line {MARK}")
    kept = json.loads(options.figures.read_text()) if options.figures.exists() else {}
    wanted = {
        name: command
        for name, command in measurements().items()
        if not options.render and (not options.only or any(word in name for word in options.only))
    }
    for number, (name, command) in enumerate(wanted.items(), 1):
        print(f"{time.strftime('%H:%M:%S')} {number} of {len(wanted)}: {name}", flush=True)
        kept[name] = measure(command)
        options.figures.parent.mkdir(parents=True, exist_ok=True)
        options.figures.write_text(json.dumps(kept, indent=1))
    figures = {name: kept[name] for name in measurements() if name in kept}
    if missing := [name for name in measurements() if name not in kept]:
        parser.error(f"not measured yet: {', '.join(missing)}")
    options.page.write_text(f"{by_hand}{MARK}\n## Reach\n{reach(figures)}{tables(figures)}")


if __name__ == "__main__":
    main()
