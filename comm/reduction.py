"""Element-wise reduction over ranks, in plain numpy.

The order is canonical: element i of the result is ((x0[i] op x1[i]) op x2[i]) op ..., ranks ascending,
whatever the length, the offset in the array, or the way the bytes travelled. So all ranks hold the same bits,
two runs hold the same bits, and every transport gives the same bits.

bf16 is accumulated in fp32 and rounded once, to nearest even, at the end. `mean` is the sum divided by the
number of ranks (for bf16 in fp32, before rounding) and is not for integers. Integer sums wrap around as
numpy's do. `max` and `min` give NaN where any rank holds NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float64), np.dtype(np.int32), np.dtype(np.int64))
OPS = ("sum", "mean", "max", "min")

# Elements reduced at a time: the accumulator (at most 256 KiB) stays in the L2 cache while each rank's
# contribution streams past it.
_BLOCK = 32768

_COMBINE = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}


def reduce_in_rank_order(out: np.ndarray, contributions: Sequence[np.ndarray], op: str) -> None:
    """Write the reduction of `contributions` to `out`.

    Args:
        out: (n,), a dtype of `DTYPES`; may be the memory of one of the contributions, not overlap otherwise.
        contributions: one or more arrays (n,) of out's dtype, one per rank, ranks ascending.
        op: one of `OPS`.
    """
    if len(contributions) == 1:  # a world of one
        out[:] = contributions[0]
        return
    dtype = np.dtype(np.float32) if out.dtype == BFLOAT16 else out.dtype
    combine = _COMBINE[op]
    accumulator = np.empty(min(out.size, _BLOCK), dtype)
    # Overflow and NaN are the trainer's to find (it checks the reduced norm); a warning per call helps
    # nobody.
    with np.errstate(all="ignore"):
        for begin in range(0, out.size, _BLOCK):
            end = min(begin + _BLOCK, out.size)
            acc = accumulator[: end - begin]
            combine(contributions[0][begin:end], contributions[1][begin:end], out=acc, dtype=dtype)
            for x in contributions[2:]:
                combine(acc, x[begin:end], out=acc, dtype=dtype)
            if op == "mean":
                np.divide(acc, len(contributions), out=acc)
            out[begin:end] = acc
