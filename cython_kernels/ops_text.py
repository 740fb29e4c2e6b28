"""Writes what is made of the table of ops: its rows in docs/kernels.md, and the stub of a kernel set.

    python -m cktrain.cython_kernels.ops_text

in the source tree. A test compares both files with the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from cktrain.cython_kernels.op import REQUIRED, Array, Number, Op
from cktrain.cython_kernels.ops import OPS

BEGIN, END = "<!-- begin: made of cython_kernels/ops.py -->", "<!-- end -->"


def page_rows(ops: Mapping[str, Op]) -> str:
    """The table of docs/kernels.md."""
    lines = ["| theme | call | arrays | meaning | FLOPs |", "|---|---|---|---|---|"]
    theme = ""
    for op in ops.values():
        returns = f" -> {op.returns.__name__}" if op.returns else ""
        flops = "·".join(op.flops.split())
        call = f"`{op.name}({signature(op)}){returns}`"
        alike = [
            list(group)
            for _, group in groupby(op.arrays, lambda a: (a.dtype, a.packed, a.shape, a.transposed_by))
        ]
        arrays = "; ".join(_described(group) for group in alike)
        lines.append(
            f"| {op.theme if op.theme != theme else ''} | {call} | {arrays} | {op.meaning} | {flops} |"
        )
        theme = op.theme
    return "\n".join(lines)


def signature(op: Op) -> str:
    """Names and defaults, as Python writes them."""
    return ", ".join(a.name if a.default is REQUIRED else f"{a.name}={a.default}" for a in op.arguments)


def page(text: str, ops: Mapping[str, Op] = OPS) -> str:
    """The page with the rows in the place of those that stand there."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{page_rows(ops)}\n{END}{rest.split(END, 1)[1]}"


def stub(ops: Mapping[str, Op] = OPS) -> str:
    """signatures.pyi: a kernel set's ops with their types."""
    lines = [
        '"""The ops of a kernel set, for type checkers. Made of ops.py by ops_text.py; do not edit."""',
        "",
        "from typing import Any, TypeAlias",
        "",
        "import numpy as np",
        "",
        "Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]",
        "",
        "class Ops:",
    ]
    for op in ops.values():
        parameters = ["self", *(_typed(argument) for argument in op.arguments)]
        returns = op.returns.__name__ if op.returns else "None"
        line = f"    def {op.name}({', '.join(parameters)}) -> {returns}: ..."
        if len(line) > 110:
            joined = ",\n        ".join(parameters)
            line = f"    def {op.name}(\n        {joined},\n    ) -> {returns}: ..."
        lines.append(line)
    return "\n".join(lines) + "\n"


def _described(alike: list[Array]) -> str:
    array = alike[0]
    shape = " or ".join(f"({alternative.strip()})" for alternative in array.shape.split("|"))
    words = [", ".join(each.name for each in alike)]
    words += [array.dtype] * (array.dtype != "real") + ["packed"] * array.packed
    if array.transposed_by:
        other = ",".join(reversed(array.shape.split(",")))
        shape = f"{shape}, with {array.transposed_by} ({other})"
    return f"{' '.join(words)} {shape}"


def _typed(argument: Array | Number) -> str:
    if isinstance(argument, Number):
        name = argument.type.__name__
    else:
        name = "Array | None" if argument.optional or argument.default is None else "Array"
    default = "" if argument.default is REQUIRED else f" = {argument.default}"
    return f"{argument.name}: {name}{default}"


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "signatures.pyi").write_text(stub())
    kernels = folder.parent / "docs" / "kernels.md"
    kernels.write_text(page(kernels.read_text()))
