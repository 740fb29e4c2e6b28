"""What a family of models is to the rest: its config, its builder, its tensor-parallel styles, its Hugging Face names.

A file `cktrain/models/<family>.py` holds all of them and ends in one `FAMILY = Family(...)`. `cktrain/models/__init__.py`
finds these files; the YAML's `model:` block, `cktrain/hf/` and `build_model` read nothing else.

A config class has the keys that the family has, in Hugging Face's names. It is read before the process is bound to its
cores, so a family's file imports what loads numpy inside of its builder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cktrain.config_types import (
    LARGEST_ARRAY,
    MOST_LAYERS,
    FiniteNonNegative,
    FinitePositive,
    PathText,
    Positive,
    Section,
    Size,
)
from cktrain.rope_kinds import check_rope_scaling, kind_of

if TYPE_CHECKING:
    from cktrain.hf.config_keys import ConfigKeys
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


Quantize = Literal["none", "stored", "q8_0", "q4_0", "q4_1", "q5_0", "q4_k", "q6_k", "mxfp4", "nf4"]


class FromFolder(Section):
    """A model whose architecture is read from a Hugging Face folder (`cktrain.hf.folder.resolve_model`)."""

    from_pretrained: PathText
    """As `ModelConfig.from_pretrained`."""
    freeze: list[str] = Field(default=[])
    """As `ModelConfig.freeze`."""
    quantize: Quantize = "none"
    """As `ModelConfig.quantize`."""


class ModelConfig(Section):
    """The architecture, in Hugging Face's names: these keys and those of a family. Or a Hugging Face folder to start from:
    from_pretrained alone."""

    TIED: ClassVar[bool] = False
    """Whether the head is the embedding where tie_word_embeddings is not given."""

    from_pretrained: PathText | None = None
    """Hugging Face folder (config.json, safetensors, tokenizer), GGUF file or id of a Hugging Face Hub (ORG/NAME, perhaps
    @REVISION; docs/finetune.md) to start from; its config.json gives the other keys."""
    freeze: list[str] = Field(default=[])
    """Shell patterns over Hugging Face's names of tensors or modules (`model.embed_tokens`, `model.layers.[0-9].*`): what
    they name keeps the weights of from_pretrained, and costs no gradient and no optimizer state."""
    quantize: Quantize = "none"
    """Hold frozen matrices in blocks of few bits (docs/quantized.md); stored: as the files have them."""
    family: str
    """Which family the architecture is of; each has its own keys beside these."""
    hidden_size: Size
    """Width of the residual stream."""
    num_hidden_layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)]
    """Number of transformer blocks."""
    num_attention_heads: Size
    """Query heads."""
    head_dim: Size | None = None
    """Size of a head. Default: hidden_size / num_attention_heads."""
    intermediate_size: Size | None = None
    """Width inside the MLP."""
    vocab_size: Size
    """Number of token ids."""
    max_position_embeddings: Size | None = None
    """Longest sequence that the positions cover. Default: data.sequence_length."""
    tie_word_embeddings: bool | None = None
    """Use the embedding as the output head too. Default: false."""
    initializer_range: FiniteNonNegative = 0.02
    """Standard deviation of fresh weights; projections into the residual stream are divided by sqrt(2 x layers)."""

    @model_validator(mode="after")
    def _check_sizes(self) -> ModelConfig:
        if self.quantize != "none" and self.from_pretrained is None:
            raise ValueError(
                f"quantize {self.quantize} is for pretrained weights that stay as they are, and no from_pretrained is "
                "given. Give one, or leave quantize out"
            )
        if self.freeze and self.from_pretrained is None:
            raise ValueError(
                "freeze keeps pretrained weights as they are, and no from_pretrained is given. Give one, or leave freeze out"
            )
        heads, hidden = self.num_attention_heads, self.hidden_size
        if heads % self.kv_heads:
            raise ValueError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {self.kv_heads}. "
                f"Choose a divisor of {heads}"
            )
        if self.head_dim is None and hidden % heads:
            raise ValueError(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}. "
                "Change one of them or give head_dim"
            )
        for what, rows in (
            ("vocab_size", self.vocab_size),
            ("num_attention_heads x head_dim", heads * self.resolved_head_dim),
            ("intermediate_size", self.intermediate_size or 0),
        ):
            if rows * hidden > LARGEST_ARRAY:
                raise ValueError(
                    f"{what} {rows:,} x hidden_size {hidden:,} are more than 2^40 elements in one weight. Give less"
                )
        return self

    @property
    def resolved_head_dim(self) -> int:
        """Size of a head, given or derived."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads, given or derived."""
        return self.num_attention_heads

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding, given or by default."""
        return self.TIED if self.tie_word_embeddings is None else self.tie_word_embeddings

    def meaning(self, length: int) -> dict[str, Any]:
        """The keys that change what is computed, with the values that they have when they are not given.

        `length` is data.sequence_length. The other keys may change when a run goes on.
        """
        found = self.model_dump(mode="json", exclude={"from_pretrained", "initializer_range"})
        return found | {
            "head_dim": self.resolved_head_dim,
            "max_position_embeddings": self.max_position_embeddings or length,
            "tie_word_embeddings": self.tied,
        }


class RotaryConfig(ModelConfig):
    """What the families with rotary embedding, RMSNorm and a gated MLP share."""

    intermediate_size: Size
    """Width inside the MLP."""
    num_key_value_heads: Size | None = None
    """Key/value heads; a divisor of the query heads. Default: as many as query heads."""
    rms_norm_eps: FinitePositive = 1e-5
    """Added to the mean square in RMSNorm."""
    rope_theta: FinitePositive = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: dict[str, Any] | None = None
    """Rotary scaling as in config.json: rope_type `linear`, `llama3`, `yarn` or `longrope`, factor and so on."""

    @model_validator(mode="after")
    def _check_rotary(self) -> RotaryConfig:
        if self.resolved_head_dim % 2:
            raise ValueError(
                f"head_dim {self.resolved_head_dim} is odd: rotary embedding pairs its two halves"
            )
        if self.rope_scaling is not None:
            check_rope_scaling(self.rope_scaling)
        return self

    @property
    def kv_heads(self) -> int:
        """Key/value heads, given or derived."""
        return self.num_key_value_heads or self.num_attention_heads

    def meaning(self, length: int) -> dict[str, Any]:
        """As `ModelConfig.meaning`. Rotary positions have no weights, so their number may change."""
        found = super().meaning(length)
        del found["max_position_embeddings"]
        plain = kind_of(self.rope_scaling) == "default"
        return found | {
            "num_key_value_heads": self.kv_heads,
            "rope_scaling": None if plain else self.rope_scaling,
        }


LayerType = Literal["full_attention", "sliding_attention"]


class WindowedConfig(RotaryConfig):
    """What the families share of which some or all layers slide over a window."""

    sliding_window: Positive | None = None
    """A token attends to the last so many tokens, itself included. Default: to all."""
    layer_types: list[LayerType] | None = None
    """Which layers use the sliding window. Default: all of them when sliding_window is set."""

    @model_validator(mode="after")
    def _check_layer_types(self) -> WindowedConfig:
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} num_hidden_layers"
            )
        return self

    @property
    def windows(self) -> list[int]:
        """The sliding window of each layer; 0: none."""
        window = self.sliding_window or 0
        types = self.layer_types or ["sliding_attention"] * self.num_hidden_layers
        return [window if kind == "sliding_attention" else 0 for kind in types]

    def meaning(self, length: int) -> dict[str, Any]:
        """As `ModelConfig.meaning`."""
        slides = any(self.windows)
        return super().meaning(length) | {
            "sliding_window": self.sliding_window if slides else None,
            "layer_types": self.layer_types if slides and not all(self.windows) else None,
        }


@dataclass(frozen=True)
class TransformersClass:
    """A class of transformers that a family reads and writes."""

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of keys that a config.json may leave out, where they are not those of the family's config."""


@dataclass(frozen=True)
class TensorNames:
    """How Hugging Face names and shapes a family's tensors, where it differs from ours.

    All other names are the same. A tied head has no tensor of its own.
    """

    base: str = "model."
    """Prefix of all but the head, which a model that was saved without its head's class leaves out."""
    embedding: str = "model.embed_tokens.weight"
    """Of a tied head."""
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Last names of modules that are one matrix here and several there, one for each of the parameter's parts."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Pieces of names, ours and theirs."""
    transposed: str = ""
    """Regular expression of matrices that are (in, out) there and (out, in) here."""
    buffers: str = r".*\.rotary_emb\.inv_freq"
    """Regular expression of what older versions stored beside the weights; it is not read."""
    text_bases: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of the text part's tensors in a model that also sees, and ours (`cktrain/hf/text_part.py`)."""
    left_out: str = ""
    """Regular expression of what sees in such a model; it is not read."""


@dataclass(frozen=True)
class Family:
    """One family, for everybody outside of its file."""

    config: type[ModelConfig]
    build: Callable[[Any, Numerics, int, bool], Transformer]
    """(config, numerics, positions, checkpointing) to the model, its parameters without storage yet."""
    styles: Mapping[str, str]
    """How tensor ranks divide each module, by role (`parallel/tensor.py`, `parallel/roles.py`); each role is named."""
    model_types: Mapping[str, TransformersClass]
    """config.json's model_type to its class."""
    read_config: Callable[[ConfigKeys], dict[str, Any]]
    """config.json to the keys of `config`, but for those that `cktrain/hf/config_json.py` reads for all families."""
    write_config: Callable[[Any], dict[str, Any]]
    """The way back: model_type, and what is not written for all families. ValueError where no class has the architecture."""
    size_keys: Mapping[str, str] = field(default_factory=dict)
    """Sizes' names in config.json where they are other ones."""
    computes: frozenset[str] = frozenset()
    """Keys of config.json that change results, that most families refuse and this one computes."""
    tensors: TensorNames = TensorNames()

    @property
    def name(self) -> str:
        """The value of the key `family`."""
        return str(self.config.model_fields["family"].default)
