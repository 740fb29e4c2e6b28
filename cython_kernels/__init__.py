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

from cktrain.cython_kernels.ops import OPS

if TYPE_CHECKING:
    from cktrain.cython_kernels.onednn import Library
    from cktrain.cython_kernels.signatures import Ops
else:
    Ops = object

AVX512BF16, AMX, NEONBF16 = "avx512bf16", "amx", "neonbf16"
ISAS = ("generic", "neon", NEONBF16, "avx2", "avx512", AVX512BF16, AMX)
"""Compiled instruction sets of AArch64 and x86-64, plainest first; a later one is preferred."""

BF16_ISAS = (NEONBF16, AVX512BF16, AMX)
"""Those that multiply bf16; the others compute with bf16 in fp32."""

EMULATED = "amx_emulated"
"""AMX in plain C, for tests: never chosen, runs on any CPU."""

ONEDNN = "onednn"
"""The set of "avx512bf16" with bf16 products by oneDNN, to compare with: never chosen (docs/onednn.md)."""

ONEDNN_REMEDY = "pip install 'cktrain[onednn]', or set CKTRAIN_LIBDNNL to a libdnnl.so.3 built for OpenMP"


class KernelSet(Ops):
    """The ops as attributes, and `isa`, `set_num_threads(n)`, `num_threads()`.

    `label` is the isa, with the library and its version where one computes; `why` says why this set was chosen.
    """

    set_num_threads: Callable[[int], None]
    num_threads: Callable[[], int]
    reduction: Any
    """The capsule of reduce.pyx, for `Group.use_reduction`; the reference has none."""
    recording: Any
    """The class that records the calls of a step (_recording.pxi); the reference has none."""

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
        if self._table is None:  # the reference
            return
        from cktrain.cython_kernels import _runtime

        _runtime.activate(self._table)

    def __repr__(self) -> str:
        return f"KernelSet({self.isa!r})"


def available() -> list[str]:
    """The reference, then the compiled sets that this CPU runs, best last. `load` also takes "amx_emulated" and "onednn"."""
    try:
        from cktrain.cython_kernels import _runtime
    except ImportError:  # not built: the reference needs numpy alone
        return ["reference"]
    usable = [isa for isa in ISAS if isa in _runtime.built() and _runtime.cpu_supports(isa)]
    if AMX in usable and _runtime.ask_for_tiles():
        usable.remove(AMX)
    return ["reference", *usable]


def best() -> str:
    """The name that `load()` takes when neither it nor CKTRAIN_ISA is told."""
    return choose().name


class Choice(NamedTuple):
    """A name that `load` knows, what was found of AMX, and what would let it be used where it is here and is not."""

    name: str
    why: str
    remedy: str = ""


def choose() -> Choice:
    """The best set for this CPU."""
    from cktrain.cython_kernels import _runtime

    name = available()[-1]
    if name == AMX:
        return Choice(name, "AMX is here, and used")
    if not _runtime.cpu_supports(AMX):
        return Choice(name, "no AMX here" if name == AVX512BF16 else "")
    if AMX not in _runtime.built():
        return Choice(
            name, f"AMX is not used: {_runtime.compiler()} does not know it", "Install gcc 11 or newer"
        )
    refusal = _runtime.ask_for_tiles()
    return Choice(
        name,
        f"AMX is not used: this kernel or virtual machine does not permit it ({refusal})",
        "Linux 5.16 or newer permits it, where a hypervisor hands it on",
    )


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
    if name not in legal and name != EMULATED and (name != ONEDNN or AVX512BF16 not in legal):
        reason = "this CPU or this build does not have it"
        if name == AMX and len(legal) > 1 and choose().remedy:
            reason = choose().why
        elif name not in (*ISAS, ONEDNN):
            reason = "there is no such set"
        raise ValueError(f"[kernels.load] {source} is {name!r}: {reason}. Use one of {', '.join(legal)}.")
    if name == "reference":
        ops = _ops_of("cktrain.cython_kernels.reference")
        threads = importlib.import_module("cktrain.cython_kernels.reference.threads")
        ops |= {"set_num_threads": threads.set_num_threads, "num_threads": threads.num_threads}
        return KernelSet(name, ops, None, name, why)

    from cktrain.cython_kernels import _runtime

    label, compiled = name, name
    if name == ONEDNN:
        compiled = AVX512BF16
        try:
            library = find_onednn()
        except ValueError as error:
            raise ValueError(f"[kernels.load] {source} is {name!r}: {error}. {ONEDNN_REMEDY}.") from None
        label, why = f"{name} ({library})", f"{why}; {library.path}"
    table = importlib.import_module(f"cktrain.cython_kernels._isa_{compiled}").table
    if name == ONEDNN:
        table = importlib.import_module("cktrain.cython_kernels._onednn").table(table)
    _runtime.activate(table)
    ops = _ops_of("cktrain.cython_kernels")
    ops |= {"set_num_threads": _runtime.set_num_threads, "num_threads": _runtime.num_threads}
    ops["recording"] = _runtime.Recording
    ops["reduction"] = importlib.import_module("cktrain.cython_kernels.reduce").capsule
    return KernelSet(name, ops, table, label, why)


def _ops_of(package: str) -> dict[str, Callable[..., Any]]:
    """Every op of the table, from the module of its theme in a package."""
    return {
        op.name: getattr(importlib.import_module(f"{package}.{op.theme}"), op.name) for op in OPS.values()
    }
