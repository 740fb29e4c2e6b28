"""Numbers in, numbers out: every op's forward and backward, for the instruction set of this CPU.

`load()` returns a kernel set, an object whose attributes are the ops of docs/kernels.md. The compiled ops
live in one Cython module per theme; which C they run is a table of function pointers, one table per
instruction set, of which one is in force in the process: `load` puts it there. Sets of different instruction
sets therefore share it, and the last one loaded (or activated) wins; the reference stands apart, in numpy.

Threads: the pool starts with one. Whoever starts the process says how many (`set_num_threads`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from cktrain.cython_kernels.onednn import Library

ISAS = ("generic", "avx2", "avx512", "avx512bf16")
"""Compiled instruction sets, plainest first; a later one is preferred."""

ONEDNN = "onednn"
"""The set of "avx512bf16" with bf16 products by oneDNN: preferred where the CPU has AMX (docs/onednn.md)."""

ONEDNN_REMEDY = "pip install 'cktrain[onednn]', or set CKTRAIN_LIBDNNL to a libdnnl.so.3 built for OpenMP"

OPS = {
    "linear": ("linear_forward", "linear_backward_input", "linear_backward_weight", "matmul"),
    "embedding": ("embedding_forward", "embedding_backward"),
    "norm": ("rms_norm_forward", "rms_norm_backward", "layer_norm_forward", "layer_norm_backward"),
    "rope": ("rope_forward", "rope_backward"),
    "attention": ("attention_forward", "attention_backward"),
    "activation": ("swiglu_forward", "swiglu_backward", "gelu_forward", "gelu_backward", "add"),
    "cross_entropy": ("cross_entropy_forward", "cross_entropy_backward"),
    "optimizer": ("adamw_step", "sgd_step", "sum_of_squares"),
    "cast": ("cast", "zero"),
}
"""The ops of each compiled module."""


class KernelSet:
    """The ops as attributes, and `isa`, `set_num_threads(n)`, `num_threads()`.

    `label` is the isa, with the library and its version where one computes; `why` says why this set was chosen.
    """

    linear_forward: Callable[..., None]
    linear_backward_input: Callable[..., None]
    linear_backward_weight: Callable[..., None]
    matmul: Callable[..., None]
    embedding_forward: Callable[..., None]
    embedding_backward: Callable[..., None]
    rms_norm_forward: Callable[..., None]
    rms_norm_backward: Callable[..., None]
    layer_norm_forward: Callable[..., None]
    layer_norm_backward: Callable[..., None]
    rope_forward: Callable[..., None]
    rope_backward: Callable[..., None]
    attention_forward: Callable[..., None]
    attention_backward: Callable[..., None]
    swiglu_forward: Callable[..., None]
    swiglu_backward: Callable[..., None]
    gelu_forward: Callable[..., None]
    gelu_backward: Callable[..., None]
    add: Callable[..., None]
    cross_entropy_forward: Callable[..., None]
    cross_entropy_backward: Callable[..., None]
    adamw_step: Callable[..., None]
    sgd_step: Callable[..., None]
    sum_of_squares: Callable[..., float]
    cast: Callable[..., None]
    zero: Callable[..., None]
    set_num_threads: Callable[[int], None]
    num_threads: Callable[[], int]
    reduction: Any
    """The capsule of reduce.pyx, for `Group.use_reduction`."""

    def __init__(
        self, isa: str, ops: dict[str, Callable[..., Any]], table: Any, label: str = "", why: str = ""
    ) -> None:
        self.isa = isa
        self.label = label or isa
        self.why = why
        self._table = table
        self.__dict__.update(ops)

    def activate(self) -> None:
        """Put this set's kernels in force again, after another compiled set was loaded."""
        from cktrain.cython_kernels import _runtime

        _runtime.activate(self._table)

    def __repr__(self) -> str:
        return f"KernelSet({self.isa!r})"


def available() -> list[str]:
    """The reference, then the compiled sets that this CPU runs, best last. `load` also takes "onednn"."""
    try:
        from cktrain.cython_kernels import _runtime
    except ImportError:  # not built: the reference needs numpy alone
        return ["reference"]
    return ["reference"] + [isa for isa in ISAS if isa in _runtime.built() and _runtime.cpu_supports(isa)]


def best() -> str:
    """The name that `load()` takes when neither it nor CKTRAIN_ISA is told."""
    return choose().name


class Choice(NamedTuple):
    """A name that `load` knows, what was found of AMX, and whether it is here without being used."""

    name: str
    why: str
    amx_idle: bool = False


def choose() -> Choice:
    """The best set for this CPU."""
    from cktrain.cython_kernels import _runtime

    name = available()[-1]
    if name != ISAS[-1]:
        return Choice(name, "")
    if not _runtime.cpu_supports("amx"):
        return Choice(name, "no AMX here")
    try:
        library = find_onednn()
    except ValueError as error:
        return Choice(name, f"AMX is not used: {error}", amx_idle=True)
    if not library.amx:
        why = f"AMX is not used: {library}, which asks the system and ONEDNN_MAX_CPU_ISA"
        return Choice(name, why, amx_idle=True)
    return Choice(ONEDNN, "AMX is here, and used")


def find_onednn(named: str | None = None) -> Library:
    """The libdnnl of that path, or of CKTRAIN_LIBDNNL, or one that is installed. ValueError says what is in the way."""
    from cktrain.cython_kernels import onednn

    # Its OpenMP reads this when it is loaded: its threads shall not spin on the cores that the pool's need next.
    policy = "OMP_WAIT_POLICY"
    told = policy in os.environ
    os.environ.setdefault(policy, "passive")
    try:
        return onednn.find(named or os.environ.get("CKTRAIN_LIBDNNL"))
    finally:
        if not told:
            del os.environ[policy]


def build_info() -> dict[str, Any]:
    """The compiler, the instruction sets that were `built`, and those `left_out`: unknown to the compiler."""
    from cktrain.cython_kernels import _runtime

    return {"compiler": _runtime.compiler(), "built": _runtime.built(), "left_out": _runtime.left_out()}


def load(isa: str | None = None) -> KernelSet:
    """The kernel set of `isa`; when that is None, of CKTRAIN_ISA; when that is unset, the best for this CPU.

    Raises ValueError, naming the legal values, for a name that is unknown or that this CPU cannot run, and for
    "onednn" where no libdnnl fits.
    """
    source, name = ("isa", isa) if isa is not None else ("CKTRAIN_ISA", os.environ.get("CKTRAIN_ISA"))
    name, why = (name, f"{source} says so") if name else choose()[:2]
    legal = available()
    if name not in legal and (name != ONEDNN or ISAS[-1] not in legal):
        reason = (
            "this CPU or this build does not have it" if name in (*ISAS, ONEDNN) else "there is no such set"
        )
        raise ValueError(f"[kernels.load] {source} is {name!r}: {reason}. Use one of {', '.join(legal)}.")
    if name == "reference":  # the package has the attributes of a set
        reference: Any = importlib.import_module("cktrain.cython_kernels.reference")
        return reference

    from cktrain.cython_kernels import _runtime

    label, compiled = name, name
    if name == ONEDNN:
        compiled = ISAS[-1]
        try:
            library = find_onednn()
        except ValueError as error:
            raise ValueError(f"[kernels.load] {source} is {name!r}: {error}. {ONEDNN_REMEDY}.") from None
        label, why = f"{name} ({library})", f"{why}; {library.path}"
    table = importlib.import_module(f"cktrain.cython_kernels._isa_{compiled}").table
    if name == ONEDNN:
        table = importlib.import_module("cktrain.cython_kernels._onednn").table(table)
    _runtime.activate(table)
    ops: dict[str, Callable[..., Any]] = {}
    for theme, names in OPS.items():
        module = importlib.import_module(f"cktrain.cython_kernels.{theme}")
        ops |= {op: getattr(module, op) for op in names}
    ops |= {"set_num_threads": _runtime.set_num_threads, "num_threads": _runtime.num_threads}
    ops["reduction"] = importlib.import_module("cktrain.cython_kernels.reduce").capsule
    return KernelSet(name, ops, table, label, why)
