"""When a job must stop by itself: its scheduler ends it at a time that it tells beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping


def stop_time(environ: Mapping[str, str], margin_s: float) -> float | None:
    """Seconds since the epoch at which the run is to save and stop; None where nobody ends it.

    SLURM_JOB_END_TIME is what Slurm expects as the job's end; `margin_s` seconds before it.

    Raises:
        ValueError: the variable is no finite number.
    """
    told = environ.get("SLURM_JOB_END_TIME")
    if not told:
        return None
    try:
        seconds = float(told)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"[launch] SLURM_JOB_END_TIME={told[:80]!r} is not a number of seconds. Unset it.")
    return seconds - margin_s
