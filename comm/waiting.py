"""Whom a rank waits for, and who says that there are others: variables of an interactive step or an older job may be all."""

from __future__ import annotations

from collections.abc import Mapping

from cktrain.comm.environment import ALONE, ProcessEnvironment
from cktrain.comm.errors import RendezvousError, TransportUnavailableError


def who_is_waited_for(process: ProcessEnvironment, environ: Mapping[str, str], timeout_s: float) -> str:
    """Said before the wait: who says that there are others, and what to do where nobody starts them."""
    others = "the others" if process.size is None else f"{process.size - 1} other{'s' * (process.size > 2)}"
    line = (
        f"rank 0 of {process.size or '?'} by {process.variables}: waiting up to {timeout_s:g} s for {others}"
    )
    if process.note:
        line += f"; not followed: {process.note}"
    if process.source == "slurm" and any(name.startswith("SLURM_PTY_") for name in environ):
        line += (
            f"\nwarning: this step is interactive (srun --pty), and its shell hands these variables on. If nobody starts "
            f"the others, stop this and set {ALONE}, or use: cktrain launch -n {process.size}"
        )
    return line


def told_by_whom(
    error: RendezvousError | TransportUnavailableError, process: ProcessEnvironment
) -> RendezvousError | TransportUnavailableError:
    """The same error with the source of what this rank believes to be; `cktrain launch` is none to doubt."""
    if process.source in ("cktrain", "none"):
        return error
    if isinstance(error, TransportUnavailableError):
        remedy = f"{error.remedy}; if nobody started other ranks ({process.variables} say so), set {ALONE}"
        return TransportUnavailableError(error.where, error.transport, error.reasons, remedy)
    return RendezvousError(
        error.where,
        f"{error.problem} (rank {process.rank} of {process.size or '?'} by {process.variables})",
        f"{error.remedy}; if nobody started other ranks, set {ALONE}",
    )
