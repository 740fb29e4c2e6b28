"""The keys of a mixture of data sets, `data.mixture` and `data.stages`, and what of them cannot be.

data:
  mixture: [{path: data/web, weight: 0.8}, {path: data/code, weight: 0.2}]

data:
  mixture: [{path: data/web}, {path: data/code}, {path: data/replay}]
  stages:
    - {until_tokens: 2_000_000, weights: {web: 0.8, code: 0.2}}
    - {weights: {web: 0.2, code: 0.7, replay: 0.1}}
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cktrain.config_types import FinitePositive, PathText, Positive, Section


class MixturePart(Section):
    """A data set of a mixture."""

    path: PathText
    """As data.path."""
    weight: FinitePositive | None = None
    """Its share of the sequences, and so of the tokens, over the sum of all weights. Given unless data.stages are."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """What it is called in data.stages, in messages and in the metrics. Default: the last part of its path."""

    @property
    def called(self) -> str:
        """`name`, or what stands for it."""
        return self.name or Path(self.path).name or self.path


class MixtureStage(Section):
    """A part of a run with weights of its own."""

    weights: Annotated[dict[str, FinitePositive], Field(min_length=1)]
    """By the name of each part of data.mixture its weight; parts that are not named are not read in this stage."""
    until_tokens: Positive | None = None
    """Tokens of the run's sequences, from its first, with which the stage ends, up to a whole sequence; of the last none."""


def check_mixture(parts: list[MixturePart], stages: list[MixtureStage] | None) -> None:
    """Raises ValueError for a mixture whose parts or stages contradict each other."""
    if not parts:
        raise ValueError("mixture has no part. Give [{path, weight}, ...], or path for one")
    paths: dict[str, str] = {}
    names: dict[str, str] = {}
    for part in parts:
        if os.path.normpath(part.path) in paths:
            raise ValueError(f"mixture has {part.path} twice. Give it one weight")
        paths[os.path.normpath(part.path)] = part.path
        if part.called in names:
            raise ValueError(
                f"mixture calls both {names[part.called]} and {part.path} {part.called}. Give one of them another name"
            )
        names[part.called] = part.path
    if stages is None:
        if missing := [part.path for part in parts if part.weight is None]:
            raise ValueError(f"mixture says no weight of {missing[0]}. Give one, or weights by stages")
        return
    if weighed := [part for part in parts if part.weight is not None]:
        raise ValueError(
            f"mixture gives {weighed[0].path} the weight {weighed[0].weight:g}, and stages say weights, too. Leave it out"
        )
    if not stages:
        raise ValueError("stages are none. Give [{until_tokens, weights}, ..., {weights}], or leave it out")
    ends = [stage.until_tokens for stage in stages]
    if ends[-1] is not None:
        raise ValueError(
            f"stages end with until_tokens {ends[-1]:,}, and nothing says what follows. Leave it out of the last stage"
        )
    if None in ends[:-1]:
        raise ValueError(
            f"stage {ends.index(None) + 1} of {len(ends)} has no end, and others follow. Give it until_tokens"
        )
    for before, after in itertools.pairwise(end for end in ends if end is not None):
        if after <= before:
            raise ValueError(
                f"until_tokens {after:,} follows {before:,}: both count from the run's beginning. Put them in order"
            )
    read = {name for stage in stages for name in stage.weights}
    if unknown := sorted(read - names.keys()):
        raise ValueError(
            f"stages name {unknown[0]!r}, which is no part of the mixture. It has {', '.join(names)}"
        )
    if idle := [name for name in names if name not in read]:
        raise ValueError(f"no stage reads {idle[0]} of the mixture. Give it a weight, or leave it out")
