"""The precision of a run: as asked, as it was before, or for `auto` what every rank's CPU computes natively.

All ranks decide alike, for the slowest of them; the choice is kept in the checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cktrain import cython_kernels
from cktrain.comm.group import Group

log = logging.getLogger("cktrain")

NATIVE_BF16 = (*cython_kernels.BF16_ISAS, cython_kernels.ONEDNN)


def agree_on_precision(wanted: str, isa: str, before: str, group: Group) -> str:
    """One precision for all ranks of `group` (collective); `isa` is this rank's kernel set, `before` as below.

    Raises ValueError, on all ranks, for a precision that a rank's kernels don't have.
    """
    isas = [name.decode() for name in group.all_gather_bytes(isa.encode())]
    return choose_precision(wanted, isas, before)


def choose_precision(wanted: str, isas: Sequence[str], before: str = "") -> str:
    """The precision for ranks with these kernel sets; `before` is that of the checkpoint, if any.

    `auto` is bf16 only where every rank has bf16 arithmetic; asked for elsewhere, bf16 works and is warned about.
    """
    if wanted == "auto":
        wanted = before or ("bf16" if all(isa in NATIVE_BF16 for isa in isas) else "fp32")
    if wanted == "fp64" and set(isas) != {"reference"}:
        compiled = next(isa for isa in isas if isa != "reference")
        raise ValueError(
            f"precision: fp64 needs the reference kernels, and {compiled} was chosen. Set CKTRAIN_ISA=reference."
        )
    emulated = sorted({isa for isa in isas if isa not in NATIVE_BF16})
    if wanted == "bf16" and emulated:
        log.warning(
            "warning: %s has no bf16 arithmetic: every product is computed in fp32 after widening, so bf16 saves "
            "memory and is slower than fp32. precision: auto chooses fp32 here.",
            ", ".join(emulated),
        )
    return wanted
