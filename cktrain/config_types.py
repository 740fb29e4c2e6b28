"""The types of the configuration: a strict block of keys, and the few kinds of numbers and texts that its fields have.

No number is NaN or infinite, here or in fp32, in which the kernels take it, and no integer is beyond what an array's
index or a file's position holds.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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


Positive = Annotated[int, Field(gt=0), AfterValidator(_held)]
NonNegative = Annotated[int, Field(ge=0), AfterValidator(_held)]
Size = Annotated[int, Field(gt=0), AfterValidator(_sized)]
"""Of a dimension of an array."""
FiniteNonNegative = Annotated[float, Field(ge=0), AfterValidator(_finite)]
FinitePositive = Annotated[float, Field(gt=0), AfterValidator(_finite), AfterValidator(_not_lost)]
"""Also in fp32."""
Degree = Annotated[int, Field(ge=-1, le=LARGEST_SIZE)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""The share of the old in a running mean."""
Seconds = Annotated[float, Field(gt=0, le=YEAR_S)]
"""A deadline, up to a year."""
PathText = Annotated[str, AfterValidator(user_path)]
"""A path, with `~` expanded."""


class Section(BaseModel):
    """A block of the configuration: strict types, no unknown keys, never changed after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
