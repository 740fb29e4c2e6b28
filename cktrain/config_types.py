"""The types of the configuration: a strict block of keys, and the few kinds of numbers and texts that its fields have.

No number is NaN or infinite, here or in fp32, in which the kernels take it, and no integer is beyond what an array's
index or a file's position holds.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from cktrain.user_path import user_path

LARGEST = 2**53
"""Of all integers: JSON's readers and fp64 hold them exactly up to here."""
LARGEST_SIZE = 2**31 - 1
"""Of a model's or batch's dimensions, which the kernels count in 32 bits."""
LARGEST_FP32 = 3.4e38
SMALLEST_FP32 = 1.2e-38
YEAR_S = 31_622_400
LARGEST_ARRAY = 2**40
MOST_LAYERS = 100_000
MOST_CPUS = 8192
AUTO: Final = "auto"


def _held(value: int) -> int:
    if value > LARGEST:
        raise ValueError(f"{value:.3e} is more than 2^53, the largest that is counted. Give less")
    return value


def _sized(value: int) -> int:
    if value > LARGEST_SIZE:
        raise ValueError(f"{value:,} is more than 2^31 - 1, the largest size of a dimension. Give less")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is no finite number. Give one")
    if abs(value) > LARGEST_FP32:
        raise ValueError(f"{value:g} is infinite in fp32. Give at most {LARGEST_FP32:g}")
    return value


def _not_lost(value: float) -> float:
    if value < SMALLEST_FP32:
        raise ValueError(f"{value:g} is 0 in fp32. Give at least {SMALLEST_FP32:g}")
    return value


_UNITS = {"d": 86_400.0, "h": 3600.0, "min": 60.0, "s": 1.0}
_DURATION = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


def duration_seconds(text: str) -> float:
    """Seconds of `8h`, `15min`, `1h30min`, `90s`, `2d`. Raises ValueError for another text, no time, and above a year."""
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        raise ValueError(
            f"{text!r} is no duration. Give a number and its unit, as 90s, 15min, 8h, 2d or 1h30min"
        )
    seconds = sum(float(found[unit] or 0) * size for unit, size in _UNITS.items())
    if not 0 < seconds <= YEAR_S:
        raise ValueError(f"{text!r} are {seconds:,.0f} seconds. Give more than none, and at most a year")
    return seconds


def _duration(text: str) -> str:
    duration_seconds(text)
    return text


def _interval(value: Any) -> int | str:
    if isinstance(value, str):
        return _duration(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no interval. Give a number of steps, or a duration as 15min")
    return _held(value)


def _size_or_auto(value: Any) -> int | str:
    if value == AUTO:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no size. Give a number of 1 or more, or {AUTO}")
    return _sized(value)


Positive = Annotated[int, Field(gt=0), AfterValidator(_held)]
NonNegative = Annotated[int, Field(ge=0), AfterValidator(_held)]
Size = Annotated[int, Field(gt=0), AfterValidator(_sized)]
"""Of a dimension of an array."""
SizeOrAuto = Annotated[int | Literal["auto"], PlainValidator(_size_or_auto)]
"""A size, or `auto`: chosen when the run begins."""
FiniteNonNegative = Annotated[float, Field(ge=0), AfterValidator(_finite)]
FinitePositive = Annotated[float, Field(gt=0), AfterValidator(_finite), AfterValidator(_not_lost)]
"""Also in fp32."""
Degree = Annotated[int, Field(ge=-1, le=LARGEST_SIZE)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""The share of the old in a running mean."""
Seconds = Annotated[float, Field(gt=0, le=YEAR_S)]
"""A deadline, up to a year."""
Duration = Annotated[str, AfterValidator(_duration)]
"""A time with its units, as 8h or 1h30min (`duration_seconds`)."""
Interval = Annotated[int | str, PlainValidator(_interval)]
"""A number of steps, or a duration."""
PathText = Annotated[str, AfterValidator(user_path)]
"""A path, with `~` expanded."""


class Section(BaseModel):
    """A block of the configuration: strict types, no unknown keys, never changed after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
