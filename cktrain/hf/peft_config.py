"""The `adapter:` block of a run, in PEFT's names."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cktrain.config_types import FinitePositive, PathText, Section, Size

ADAPTER_DEFAULTS: dict[str, Any] = {"lr": 2.0e-4, "weight_decay": 0.0, "betas": [0.9, 0.999]}
"""Of the optimizer, where a run has an adapter and does not give them."""

ALL_LINEAR = "all-linear"

Dropout = Annotated[float, Field(ge=0, lt=1)]


class AdapterConfig(Section):
    """What is trained beside pretrained weights that stay as they are (docs/adapters.md); keys and meanings are PEFT's.
    Left out: all weights are trained."""

    from_pretrained: PathText | None = None
    """PEFT's folder, or a run or checkpoint of an adapter, to start from; it gives the other keys."""
    peft_type: Literal["lora"] = "lora"
    """The kind: y = x Wᵀ + scale · (x Aᵀ) Bᵀ (LoRA, Hu et al. 2021)."""
    r: Size = 16
    """Rank: rows of A, columns of B."""
    lora_alpha: FinitePositive = 32.0
    """The product's scale is lora_alpha / r."""
    lora_dropout: Dropout = 0.0
    """The share of x that is left out of the low-rank products while they are trained."""
    target_modules: str | list[str] = ALL_LINEAR
    """Hugging Face's names of the linears, or how they end (q_proj); a regular expression of the whole name; or all-linear:
    all but the head."""
    exclude_modules: str | list[str] = Field(default=[])
    """Names, or a regular expression, of what is left out of target_modules."""
    use_rslora: bool = False
    """The scale is lora_alpha / √r (rank-stabilised LoRA, Kalajdzievski 2023)."""
    use_dora: bool = False
    """The rows of W + scale · B A are normed and multiplied by a magnitude that is trained too (DoRA, Liu et al. 2024)."""
    rank_pattern: dict[str, Size] = Field(default={})
    """Other ranks: the end of a module's name, or a regular expression of it, and its r."""
    alpha_pattern: dict[str, FinitePositive] = Field(default={})
    """Other alphas, likewise."""
    modules_to_save: list[str] = Field(default=[])
    """How the names of further modules end (embed_tokens, lm_head, norm), which are trained whole beside the adapter, from
    the weights of model.from_pretrained on."""
    ensure_weight_tying: bool = False
    """Needed where modules_to_save names an embedding that is the head too: both are trained as the one weight that they
    are."""

    @model_validator(mode="after")
    def _check_patterns(self) -> AdapterConfig:
        if not self.target_modules:
            raise ValueError(f"target_modules names nothing. Give names, or {ALL_LINEAR}")
        texts = [text for text in (self.target_modules, self.exclude_modules) if isinstance(text, str)]
        for text in [*texts, *self.rank_pattern, *self.alpha_pattern]:
            try:
                re.compile(text)
            except re.error as error:
                raise ValueError(f"{text!r} is no regular expression: {error}") from None
        return self

    def rank_of(self, module: str) -> int:
        """r of a module, by Hugging Face's name."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale_of(self, module: str) -> float:
        """The factor of a module's product."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return float(alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def meaning(self) -> dict[str, Any]:
        """The keys that say what the adapter's numbers mean, which stay as they are when a run goes on."""
        return self.model_dump(mode="json", exclude={"from_pretrained", "lora_dropout"})


def fits_pattern(pattern: str, module: str) -> bool:
    """Whether a key of `rank_pattern` names a module: PEFT's rule."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _by_pattern(patterns: dict[str, Any], module: str, otherwise: Any) -> Any:
    return next((value for key, value in patterns.items() if fits_pattern(key, module)), otherwise)
