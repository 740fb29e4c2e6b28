"""The table of ops against all that it speaks of: reference, doors, C list, stub, docs/kernels.md, cases, the build.

Names, order and defaults are compared as text and signatures. Types, shapes, strides and which arrays are written are
compared by calls: arrays made from the row are taken, and one that differs in any of these is refused.
"""

import dataclasses
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES
from ml_dtypes import bfloat16

from cktrain import cython_kernels
from cktrain.cython_kernels.op import REQUIRED, Array, Number, Op, dimensions
from cktrain.cython_kernels.ops import OPS
from cktrain.cython_kernels.ops_text import page, signature, stub

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "cython_kernels"
PLAIN = {"reduce": {"reduce_n"}, "peak": {"peak_f32", "peak_bf16", "stream"}}
"""Modules with kernels that are no ops."""


# ----------------------------------------------------------------------------------- names, order, defaults, files


def c_list() -> dict[str, str]:
    """Name -> "[2]" for the kernels of each storage type, "" for the others, of csrc/kernels.h."""
    text = (KERNELS / "csrc" / "kernels.h").read_text().replace("\\\n", "")
    found = {}
    for group, storages in (("REAL", "[2]"), ("F32", "")):
        line = re.search(rf"#define CK_{group}_OPS\(X\)(.*)", text)
        assert line is not None
        found |= dict.fromkeys(re.findall(r"X\((\w+)\)", line[1]), storages)
    return found


def headers_of(theme: str) -> list[Path]:
    """Where the kernels of a theme stand."""
    name = {"linear": "gemm"}.get(theme, theme)
    return [path for wanted in (f"ops_{name}.h", f"{name}*.h") for path in (KERNELS / "csrc").glob(wanted)]


def complaints(ops: dict[str, Op]) -> Iterator[str]:
    """What in the tree differs from a table of ops."""
    if (ROOT / "docs/kernels.md").read_text() != page((ROOT / "docs/kernels.md").read_text(), ops):
        yield "docs/kernels.md is another: run python -m cktrain.cython_kernels.ops_text"
    if (KERNELS / "signatures.pyi").read_text() != stub(ops):
        yield "signatures.pyi is another: run python -m cktrain.cython_kernels.ops_text"
    in_c = c_list()
    called: dict[str, set[str]] = {}
    for op in ops.values():
        called.setdefault(op.theme, set()).update(op.in_c)
        for place in ("cktrain.cython_kernels", "cktrain.cython_kernels.reference"):
            function = getattr(importlib.import_module(f"{place}.{op.theme}"), op.name, None)
            if function is None:
                yield f"{place}.{op.theme} has no {op.name}"
                continue
            parameters = inspect.signature(function).parameters.values()
            written = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
            if ", ".join(written) != signature(op):
                yield f"{place}.{op.name} has the arguments {written}"
            if not function.__doc__:
                yield f"{place}.{op.name} has no docstring"
        text = "".join(path.read_text() for path in headers_of(op.theme))
        for name in op.in_c:
            defined = f"FN({name})" if in_c.get(name) else name
            if name not in in_c or f"static void {defined}(const void *args" not in text:
                yield f"{name} is not in csrc/kernels.h, or not in a header of {op.theme}"
        door = re.search(
            rf"^def {op.name}\(.*?(?=^\S|\Z)", (KERNELS / f"{op.theme}.pyx").read_text(), re.M | re.S
        )
        runs = set(re.findall(r"rt\.table\.(\w+)", door[0] if door else ""))
        if runs and runs != set(op.in_c):  # a door that leaves the call to a helper names no kernel
            yield f"the door {op.name} runs {sorted(runs)}"
    for theme, names in {**called, **PLAIN}.items():
        text = (KERNELS / f"{theme}.pyx").read_text()
        declared = dict(re.findall(r"^        ck_kernel (\w+)((?:\[2\])?)$", text, re.MULTILINE))
        if declared.keys() != names or set(re.findall(r"rt\.table\.(\w+)", text)) != names:
            yield f"{theme}.pyx declares {sorted(declared)}"
        if any(in_c.get(name) != storages for name, storages in declared.items()):
            yield f"{theme}.pyx declares kernels otherwise than csrc/kernels.h"
    known = set().union(*called.values(), *PLAIN.values())
    for name in in_c.keys() - known:
        if not name.startswith("vector_"):
            yield f"csrc/kernels.h has {name}, of no op"
    tested = {op for case in CASES.values() for op in case.ops}
    if tested != ops.keys():
        yield f"cases and ops differ in {sorted(tested ^ ops.keys())}"
    themes = re.search(r"^THEMES = \[(.*?)\]", (ROOT / "setup.py").read_text(), re.MULTILINE | re.DOTALL)
    assert themes is not None
    if set(re.findall(r'"(\w+)"', themes[1])) != called.keys() | PLAIN.keys():
        yield f"setup.py builds {themes[1]}"


def test_the_tree_is_what_the_table_says() -> None:
    assert list(complaints(OPS)) == []


def with_row(name: str, **changes: Any) -> dict[str, Op]:
    return {**OPS, name: dataclasses.replace(OPS[name], **changes)}


GELU = OPS["gelu_backward"].arguments
PLANTED = {
    "an op less": {name: op for name, op in OPS.items() if name != "add"},
    "an op more": {**OPS, "twice": dataclasses.replace(OPS["add"], name="twice")},
    "another theme": with_row("zero", theme="optimizer"),
    "arguments in another order": with_row("gelu_backward", arguments=(GELU[0], GELU[2], GELU[1], GELU[3])),
    "another name": with_row("add", arguments=(*OPS["add"].arguments[:2], Array("c", "read", "N,C"))),
    "another default": with_row("gelu_backward", arguments=(*GELU[:3], Number("tanh", bool, False))),
    "another kernel of the theme": with_row("linear_backward_weight", kernels=("gemm",)),
    "a kernel less": with_row("linear_forward", kernels=("gemm",)),
    "a kernel that is not there": with_row("zero", kernels=("nought",)),
    "another type": with_row("zero", arguments=(Array("x", "write", "...", "bf16", packed=True),)),
    "another meaning": with_row("zero", meaning="x = 1"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_found(name: str) -> None:
    assert list(complaints(PLANTED[name]))


# --------------------------------------------------------------------------------- types, shapes, strides, writing

SIZES = {
    "N": 3,
    "C": 8,
    "I": 32,
    "W": 34,
    "O": 7,
    "B": 2,
    "S": 3,
    "T": 5,
    "H": 4,
    "K": 2,
    "D": 6,
    "V": 9,
    "P": 11,
    "M": 4,
    "n": 10,
    "G": 1,
}
NUMBERS = {"step": 1, "format": "q8_0"}
DTYPES: dict[str, Any] = {"f32": np.float32, "i32": np.int32, "u8": np.uint8, "bf16": bfloat16}
ISAS = ["reference", cython_kernels.best()]


def shape_of(array: Array, alternative: int) -> list[int]:
    if array.shape == "...":
        return [3, 4]
    return [factor * SIZES[letter] // divisor for factor, letter, divisor in terms_of(array, alternative)]


def terms_of(array: Array, alternative: int) -> tuple[tuple[int, str, int], ...]:
    """The dimensions of the shape's first or second way, where it has two."""
    alternatives = array.shape.split("|")
    return dimensions(alternatives[min(alternative, len(alternatives) - 1)].strip())


def arguments_of(op: Op, real: Any, wide: bool, alternative: int) -> dict[str, Any]:
    """Arrays and numbers as the row says; `wide`: fp32 where fp32 may stand beside bf16."""
    found: dict[str, Any] = {}
    for argument in op.arguments:
        if isinstance(argument, Number):
            default = (
                (0.5 if argument.type is float else 0) if argument.default is REQUIRED else argument.default
            )
            found[argument.name] = NUMBERS.get(argument.name, default)
            continue
        dtype = DTYPES.get(argument.dtype, np.float32 if wide and argument.dtype != "real" else real)
        found[argument.name] = np.zeros(shape_of(argument, alternative), dtype)
    return found


CALLS = [
    pytest.param(
        isa, op, real, wide, alternative, id=f"{isa}-{op.name}-{np.dtype(real).name}-{wide}-{alternative}"
    )
    for isa in ISAS
    for op in OPS.values()
    for real in (np.float32, bfloat16)
    for wide in (False, True)
    for alternative in range(1 + max(array.shape.count("|") for array in op.arrays))
]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The best set in force again after each test."""
    yield
    cython_kernels.load(cython_kernels.best())


@pytest.mark.parametrize(("isa", "op", "real", "wide", "alternative"), CALLS)
def test_arrays_as_the_row_says_are_taken_and_others_refused(
    isa: str, op: Op, real: Any, wide: bool, alternative: int
) -> None:
    call = getattr(cython_kernels.load(isa), op.name)
    given = arguments_of(op, real, wide, alternative)
    names = [argument.name for argument in op.arguments]
    shared = Counter(letter for array in op.arrays for _, letter, _ in terms_of(array, alternative))

    def refused(name: str, array: Any) -> bool:
        with np.errstate(all="ignore"):
            try:
                call(*({**given, name: array}[each] for each in names))
            except ValueError as error:
                assert "[kernels." in str(error) or "read-only" in str(error)
                return True
        return False

    for array in op.arrays:
        value = given[array.name]
        assert not refused(array.name, value)
        other = np.int64 if array.dtype == "i32" else np.int32
        assert refused(array.name, value.astype(other)), f"{array.name} of {other}"
        if array.dtype in ("f32", "bf16"):
            swapped = bfloat16 if array.dtype == "f32" else np.float32
            assert refused(array.name, value.astype(swapped)), f"{array.name} of another float type"
        elif array.dtype == "real" and sum(a.dtype == "real" for a in op.arrays) > 1:
            swapped = bfloat16 if value.dtype == np.float32 else np.float32
            assert refused(array.name, value.astype(swapped)), (
                f"{array.name} of another float type than the rest"
            )
        for axis in range(value.ndim):
            extent = list(value.shape)
            extent[axis] += 1
            if (array.shape == "..." and len(op.arrays) > 1) or (
                array.shape != "..." and shared[terms_of(array, alternative)[axis][1]] > 1
            ):
                assert refused(array.name, np.zeros(extent, value.dtype)), f"{array.name} of shape {extent}"
        fixed = value.copy()
        fixed.flags.writeable = False
        assert refused(array.name, fixed) == (array.access != "read"), f"{array.name} is read-only"
        if value.ndim > 1 and isa != "reference":
            wider = np.zeros((*value.shape[:-1], value.shape[-1] + 3), value.dtype)[..., : value.shape[-1]]
            assert refused(array.name, wider) == array.packed, f"{array.name} is strided"
