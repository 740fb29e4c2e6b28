"""Carries out one case on both sides and compares what each left: losses, weights and moments, exports, bytes."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from case_table import BASE, PLANS, STEPS, UNEVEN_WORDS, WORDS, Blocks, Case, merged
from findings import Finding, compare_bytes, compare_files, compare_metrics, compare_tensors, compare_text
from sides import MADE, ROOT, CommandFailed, Side
from stored import digests, newest_checkpoint, read_metrics, read_tensors

Sides = tuple[Side, Side]

TEXTS = ("argparse", "heapq", "textwrap", "tarfile", "typing")
"""Modules of Python's library whose paragraphs are the documents."""
PROBE = Path(__file__).with_name("arena_probe.py")


# ------------------------------------------------------------------------------------------------------ the data


def prepare_data(sides: Sides) -> Iterator[Finding]:
    """Both sides make the shards, which are compared; both then read those of old."""
    folder = MADE / "work" / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    paragraphs = []
    for name in TEXTS:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        paragraphs += Path(spec.origin).read_text(encoding="utf-8").split("\n\n")
    lines = [json.dumps({"text": text}) + "\n" for text in paragraphs if text.strip()]
    (folder / "paragraphs.jsonl").write_text("".join(lines))
    draw = random.Random(7)
    ids = [0]
    while len(ids) < 5000:  # each id mostly follows from the one before
        follows = (ids[-1] * 3 + 1) % UNEVEN_WORDS
        ids.append(follows if draw.random() < 0.8 else draw.randrange(UNEVEN_WORDS))
    np.array(ids, np.uint16).tofile(folder / f"{UNEVEN_WORDS}.bin")
    for side in sides:
        side.cktrain("data", "prepare", "../data/paragraphs.jsonl", "prepared", "--vocab-size", str(WORDS))
    made = [digests(side.work / "prepared") for side in sides]
    shutil.move(sides[0].work / "prepared", folder / "prepared")
    yield compare_files("data prepare", "shards", *made)


def kernel_sets(side: Side) -> list[str]:
    """The kernel sets of this machine, as a side knows them; oneDNN's where it is the default."""
    code = (
        "import json; from cktrain import cython_kernels as k; "
        "print(json.dumps([*k.available(), *({k.best()} - {*k.available()})]))"
    )
    return json.loads(side.run([sys.executable, "-c", code]))


# ---------------------------------------------------------------------------------------------- losses and weights


def compare_case(sides: Sides, case: Case, best: str) -> list[Finding]:
    """Losses and checkpoint of one case; a run that fails is a finding too."""
    try:
        return list(_compare_case(sides, case, best))
    except (CommandFailed, OSError, ValueError) as error:
        return [Finding(case.name, "run", "failed", str(error))]


def _compare_case(sides: Sides, case: Case, best: str) -> Iterator[Finding]:
    run = f"runs/{_file_name(case.name)}"
    for side in sides:
        train(side, case, run, case.isa or best)
    yield from _compare_runs(sides, case.name, run, STEPS)
    if case.resumed:
        middle = f"{run}/checkpoints/step-{STEPS // 2:08d}"
        second = f"{run} resumed"
        for side in sides:
            train(side, case, second, case.isa or best, {"checkpoint": {"resume": middle}})
        yield from _compare_runs(sides, f"{case.name}, from the middle", second, STEPS - STEPS // 2)
    if not case.exported:
        for side in sides:
            shutil.rmtree(side.work / run)


def _compare_runs(sides: Sides, name: str, run: str, steps: int) -> Iterator[Finding]:
    old, new = (read_metrics(side.work / run / "metrics.jsonl") for side in sides)
    yield compare_metrics(name, old, new, steps)
    saved = (read_tensors(newest_checkpoint(side.work / run)) for side in sides)
    yield compare_tensors(name, "weights, moments", *saved)


def train(side: Side, case: Case, run: str, isa: str, over: Blocks | None = None) -> None:
    """One run into the folder `run`. Raises CommandFailed."""
    if case.example:
        config = str(side.root / "examples" / case.example)
        blocks = merged(case.blocks, {"run": {"dir": run}})
        overrides = [word for key in flattened(blocks) for word in ("--set", key)]
    else:
        config, overrides = f"{_file_name(run)}.json", []
        blocks = merged(merged(BASE, case.blocks), merged({"run": {"dir": run}}, over or {}))
        (side.work / config).write_text(json.dumps(blocks))
    shutil.rmtree(side.work / run, ignore_errors=True)
    words = ["train", config, *overrides]
    if case.ranks == 1:
        side.cktrain(*words, isa=isa)
    elif case.launcher == "mpirun":
        options = ["--oversubscribe", "--mca", "pml", "ob1", "--mca", "btl", "self,sm"]
        program = [sys.executable, "-m", "cktrain.launch.cli"]
        side.run(["mpirun", *options, "-n", str(case.ranks), *program, *words], isa)
    else:
        side.cktrain("launch", "-n", str(case.ranks), *words, isa=isa)


def flattened(blocks: Blocks, prefix: str = "") -> Iterator[str]:
    """Blocks as --set takes them: block.key=value."""
    for key, value in blocks.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


# ----------------------------------------------------------------------------------------------------------- exports


def compare_exports(sides: Sides, case: Case, best: str) -> list[Finding]:
    """The exported folders of a case that has run, and what the model then writes."""
    try:
        return list(_compare_exports(sides, case, best))
    except (CommandFailed, OSError, ValueError) as error:
        return [Finding(case.name, "exports", "failed", str(error))]


def _compare_exports(sides: Sides, case: Case, best: str) -> Iterator[Finding]:
    name = _file_name(case.name)
    run = f"runs/{name}"
    for dtype in ("float32", "bfloat16"):
        out = f"exports/{name}-{dtype}"
        for side in sides:
            side.cktrain("export", run, out, "--dtype", dtype)
        folders = [side.work / out for side in sides]
        finding = compare_files(case.name, f"export {dtype}", *(digests(folder) for folder in folders))
        if finding.is_worse:  # which tensor it is
            tensors = compare_tensors(case.name, finding.what, *(read_tensors(folder) for folder in folders))
            finding = tensors if tensors.is_worse else finding
        yield finding
    folder = f"exports/{name}-bfloat16"
    said = [side.cktrain("import", folder) for side in sides]
    yield compare_text(case.name, "import", *said)
    for what, model in (("text of the run", run), ("text of the bf16 folder", folder)):
        words = ["generate", model, "--prompt", "def ", "--max-tokens", "20", "--seed", "5", "--threads", "2"]
        yield compare_text(case.name, what, *(side.cktrain(*words, isa=best) for side in sides))


# ------------------------------------------------------------------------------------------------------------- bytes


def compare_plan(sides: Sides, name: str) -> list[Finding]:
    """The arenas and workspaces of each stage of a planned run."""
    file, over, ranks = PLANS[name]
    plans = []
    try:
        for side in sides:
            words = ["plan", str(ROOT / file), *(w for key in flattened(over) for w in ("--set", key))]
            words += ["--ranks", str(ranks), "--threads", "2", "--memory", "1T", "--memory-only", "--json"]
            plans.append(json.loads(side.cktrain(*words))["memory"])
    except (CommandFailed, ValueError, KeyError) as error:
        return [Finding(name, "planned bytes", "failed", str(error))]
    if len(plans[0]) != len(plans[1]):
        return [Finding(name, "planned bytes", "different", f"{len(plans[0])} stages, now {len(plans[1])}")]
    found = []
    for stage, (old, new) in enumerate(zip(*plans, strict=True)):
        what = f"planned bytes, stage {stage}" if len(plans[0]) > 1 else "planned bytes"
        found.append(compare_bytes(name, what, _arenas(old), _arenas(new)))
    return found


def _arenas(memory: dict[str, Any]) -> dict[str, int]:
    """Without Python's own, which differs from one process to the next."""
    return {kind: size for kind, size in memory.items() if kind not in ("process", "total")}


def compare_real_arenas(sides: Sides, case: Case, best: str) -> list[Finding]:
    """The arenas that a run of one rank really has, at most, by name."""
    what = "arenas of the run"
    try:
        found = []
        for side in sides:
            run = f"runs/{_file_name(case.name)}_probe"
            config, seen = f"{_file_name(run)}.json", f"{_file_name(run)}_arenas.json"
            blocks = merged(merged(BASE, case.blocks), {"run": {"dir": run}})
            (side.work / config).write_text(json.dumps(blocks))
            side.run([sys.executable, str(PROBE), seen, "train", config], case.isa or best)
            found.append(json.loads((side.work / seen).read_text()))
    except (CommandFailed, OSError, ValueError) as error:
        return [Finding(case.name, what, "failed", str(error))]
    return [compare_bytes(case.name, what, *found)]
