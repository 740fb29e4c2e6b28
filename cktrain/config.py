"""The typed configuration of a run: one frozen section per block of the YAML file.

Every field's description is its documentation; `docs/configuration.md` is generated from them. Unknown keys and
wrong types are errors (`config_file.py` adds the file, the line and the closest known key). Sizes that must divide
are checked here, where both numbers are known.

Every number is one of few types: no number is NaN or infinite, here or in fp32, in which the kernels take it, and no
integer is beyond what an array's index or a file's position holds.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cktrain.rope_scaling import check_rope_scaling
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


class RunConfig(Section):
    """What to run and where its files go."""

    dir: PathText
    """Folder of the run: resolved config, metrics, logs and checkpoints. Made when missing."""
    seed: NonNegative = 1234
    """Seed of the initial weights and of the order of the data."""
    steps: Positive
    """Optimizer steps in the whole run."""
    deterministic: bool = False
    """Add the micro-batches' gradients along one fixed order, whatever the number of data ranks."""


_LLAMA_ONLY = {
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "attention_bias",
    "qkv_bias",
    "mlp_bias",
    "qk_norm",
    "sliding_window",
    "layer_types",
}


class ModelConfig(Section):
    """The architecture, in Hugging Face's names; or a Hugging Face folder to start from."""

    from_pretrained: PathText | None = None
    """Hugging Face folder (config.json, safetensors, tokenizer) to start from; its config.json gives the other keys."""
    family: Literal["llama", "gpt2"] = "llama"
    """`llama` also covers Mistral, Qwen2 (qkv_bias) and Qwen3 (qk_norm)."""
    hidden_size: Size | None = None
    """Width of the residual stream."""
    num_hidden_layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)] | None = None
    """Number of transformer blocks."""
    num_attention_heads: Size | None = None
    """Query heads."""
    num_key_value_heads: Size | None = None
    """Key/value heads; a divisor of the query heads. Default: as many as query heads."""
    head_dim: Size | None = None
    """Size of a head. Default: hidden_size / num_attention_heads."""
    intermediate_size: Size | None = None
    """Width inside the MLP. GPT-2's default: 4 x hidden_size."""
    vocab_size: Size | None = None
    """Number of token ids."""
    max_position_embeddings: Size | None = None
    """Longest sequence that the positions cover. Default: data.sequence_length."""
    tie_word_embeddings: bool | None = None
    """Use the embedding as the output head too. Default: false for llama, true for gpt2."""
    rms_norm_eps: FinitePositive = 1e-5
    """Added to the mean square in RMSNorm."""
    layer_norm_epsilon: FinitePositive = 1e-5
    """Added to the variance in LayerNorm (gpt2)."""
    rope_theta: FinitePositive = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: dict[str, Any] | None = None
    """Rotary scaling as in config.json: rope_type `linear` or `llama3`, factor and so on."""
    attention_bias: bool = False
    """Biases on the query, key, value and output projections (llama)."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections only (Qwen2)."""
    mlp_bias: bool = False
    """Biases in the MLP (llama)."""
    qk_norm: bool = False
    """RMSNorm on each query and key head (Qwen3)."""
    sliding_window: Positive | None = None
    """A token attends to the last so many tokens, itself included. Default: to all."""
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    """Which layers use the sliding window. Default: all of them when sliding_window is set."""
    activation_function: Literal["gelu_new", "gelu"] = "gelu_new"
    """GELU's form in gpt2: gelu_new is the tanh form, gelu the erf form."""
    initializer_range: FiniteNonNegative = 0.02
    """Standard deviation of fresh weights; projections into the residual stream are divided by sqrt(2 x layers)."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.from_pretrained is not None and self.hidden_size is None:
            extra = sorted(self.model_fields_set - {"from_pretrained"})
            if extra:
                raise ValueError(
                    f"from_pretrained takes the architecture from its config.json; remove {', '.join(extra)}"
                )
            return self
        needed = ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
        if self.family == "llama":
            needed.append("intermediate_size")
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a fresh {self.family} needs {', '.join(missing)}")
        heads = self.num_attention_heads or 0
        kv_heads = self.num_key_value_heads or heads
        if heads % kv_heads:
            raise ValueError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}. "
                f"Choose a divisor of {heads}"
            )
        if self.head_dim is None and (self.hidden_size or 0) % heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}. "
                "Change one of them or give head_dim"
            )
        if self.family == "llama" and self.resolved_head_dim % 2:
            raise ValueError(
                f"head_dim {self.resolved_head_dim} is odd: rotary embedding pairs its two halves"
            )
        if self.family == "gpt2":
            fields = type(self).model_fields
            foreign = sorted(name for name in _LLAMA_ONLY if getattr(self, name) != fields[name].default)
            if foreign:
                raise ValueError(f"gpt2 has no {', '.join(foreign)}. Remove it, or use family: llama")
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} num_hidden_layers"
            )
        if self.rope_scaling is not None:
            check_rope_scaling(self.rope_scaling)
        width, hidden = heads * self.resolved_head_dim, self.hidden_size or 0
        for what, rows in (
            ("vocab_size", self.vocab_size or 0),
            ("num_attention_heads x head_dim", width),
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
        assert self.hidden_size is not None and self.num_attention_heads is not None
        return self.head_dim or self.hidden_size // self.num_attention_heads


class ValidationConfig(Section):
    """How often and on how much the model is validated."""

    every: NonNegative = 0
    """Validate after every so many steps, and after the last; 0: never."""
    batches: Positive | None = 8
    """Global batches of the validation split to use; null: the whole split."""
    path: PathText | None = None
    """Validation tokens, when data.path is a single raw .bin file."""


class DataConfig(Section):
    """The tokens."""

    path: PathText
    """Folder made by `cktrain data prepare`, or a raw uint16/uint32 .bin of token ids."""
    sequence_length: Size
    """Tokens in one sequence."""
    shuffle: bool = True
    """Shuffle the windows of each epoch; false reads consecutive windows from the start."""
    dtype: Literal["uint16", "uint32"] | None = None
    """Type of the ids in a raw .bin. Default: uint16 when the vocabulary fits."""
    document_mask: bool = False
    """Nothing crosses a document's border: no attention, and no loss for the token after a document's end (needs an
    end-of-text id in the data)."""
    allow_other_tokenizer: bool = False
    """Train although the data was prepared with another tokenizer than that of the pretrained model, of the run that goes
    on, or of the validation data; the data's is then the run's."""
    validation: ValidationConfig = ValidationConfig()
    """Validation during the run."""


class BatchConfig(Section):
    """Sequences per step; the number of accumulated micro-batches is derived."""

    micro_batch_size: Size
    """Sequences that one rank computes at once."""
    global_batch_size: Size
    """Sequences per optimizer step over all data ranks."""

    @model_validator(mode="after")
    def _check(self) -> BatchConfig:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"micro_batch_size {self.micro_batch_size}. Change one of them"
            )
        return self


class OptimizerConfig(Section):
    """The update rule."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw (Loshchilov & Hutter 2019) or sgd with momentum."""
    lr: FiniteNonNegative = 3.0e-4
    """Peak learning rate."""
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    """Decay of AdamW's first and second moments."""
    eps: FinitePositive = 1.0e-8
    """Added to the root of AdamW's second moment."""
    weight_decay: FiniteNonNegative = 0.1
    """Decay of matrices; biases and norm weights have none."""
    momentum: Decay = 0.9
    """SGD's momentum."""
    nesterov: bool = False
    """SGD with Nesterov's momentum."""
    clip_grad_norm: FiniteNonNegative = 1.0
    """Largest global norm of the gradient; 0: no clipping."""


class ScheduleConfig(Section):
    """Learning rate over the steps."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """Shape after warm-up; wsd is warm-up, stable, decay."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up from 0."""
    min_lr_ratio: Fraction = 0.1
    """Last learning rate over the peak."""
    decay_steps: Positive | None = None
    """wsd: steps of the final decay. Default: a tenth of the run."""


class ParallelConfig(Section):
    """Degrees of parallelism; -1 is whatever the others leave."""

    data: Degree = -1
    """Data-parallel ranks."""
    tensor: Degree = 1
    """Ranks that divide each layer."""
    pipeline: Degree = 1
    """Pipeline stages."""
    schedule: Literal["gpipe", "1f1b"] = "1f1b"
    """Order of the micro-batches in the pipeline."""
    cut: Literal["measured", "flops"] | list[Positive] = "measured"
    """How layers are divided among the stages so that the slowest stage is fastest: `measured` times a layer of each
    kind, the embedding and the head at the start and keeps the result in run.dir; `flops` counts; a list gives each
    stage's layers. With run.deterministic measured means flops."""
    zero: Literal[0, 1] = 1
    """1: each data rank keeps a slice of the optimizer's state."""


class CommConfig(Section):
    """How ranks talk."""

    transport: Literal["auto", "rdma", "mpi", "tcp", "shm"] = "auto"
    """auto tries rdma, mpi, tcp between nodes and shm inside one."""
    device: str | None = None
    """RDMA device."""
    gid_index: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Index in the device's GID table."""
    traffic_class: Annotated[int, Field(ge=0, le=255)] | None = None
    """Traffic class (DSCP << 2) of RDMA packets."""
    interface: str | None = None
    """Network interface for TCP."""
    tcp_sockets: Annotated[int, Field(ge=1, le=16)] | None = None
    """Connections per pair of ranks over TCP. Default: two between hosts, one inside."""
    table: PathText | None = None
    """File of algorithms by length that `cktrain bench collectives --tune` wrote. Default: built-in borders."""
    algorithm: str | None = None
    """Force a collective algorithm, whatever the table says."""
    wire_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the gradients on the wire."""
    weight_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the updated weights on the wire (zero: 1). bf16, which needs precision: bf16, sends what the kernels
    read and changes no loss; auto: bf16 where the precision is, else fp32."""
    timeout_s: Seconds = 120.0
    """Deadline of every wait, in seconds."""


class LaunchConfig(Section):
    """Cores and memory of each rank."""

    bind: Literal["auto", "inherit", "none"] = "auto"
    """auto divides the node's cores among its ranks; inherit keeps the mask that was handed down; none unpins."""
    threads: Annotated[int, Field(gt=0, le=MOST_CPUS)] | None = None
    """Compute threads per rank. Default: the rank's cores."""
    progress_core: Annotated[int, Field(ge=-1, le=MOST_CPUS)] | None = None
    """CPU of the communication thread; -1: where the rank runs. Default: one of the rank's own, if it has 16 or more."""
    end_margin_s: Annotated[float, Field(ge=0, le=YEAR_S)] = 120.0
    """Under Slurm: save and stop (status 75) so many seconds before the job's time ends; a step and a save must fit."""


class MemoryConfig(Section):
    """What is kept and what is computed again."""

    checkpointing: Literal["none", "block"] = "none"
    """block keeps only each block's input and computes the rest again in the backward pass."""


class CheckpointConfig(Section):
    """When to save and what to resume."""

    every: NonNegative = 100
    """Save after every so many steps, and at the end; 0: only at the end or on a signal."""
    keep: Positive = 3
    """Checkpoints to keep, of this run and those that led to it."""
    resume: PathText = "auto"
    """auto: the newest whole one of the run in run.dir, if any; none: start afresh; or the path of a checkpoint or run.
    What did not lead to the run is moved aside (docs/runs.md)."""


class LogConfig(Section):
    """What is printed."""

    every: Positive = 10
    """Print and record every so many steps, and the first."""


class Config(Section):
    """A whole run."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """fp32; bf16 (mixed, fp32 master weights); fp64 (reference kernels only); auto: bf16 where the CPU computes it."""
    parallel: ParallelConfig = ParallelConfig()
    comm: CommConfig = CommConfig()
    launch: LaunchConfig = LaunchConfig()
    memory: MemoryConfig = MemoryConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        rows = self.batch.micro_batch_size * self.data.sequence_length
        if rows > LARGEST_SIZE:
            raise ValueError(
                f"batch.micro_batch_size {self.batch.micro_batch_size:,} x data.sequence_length "
                f"{self.data.sequence_length:,} are {rows:,} tokens at once, and {LARGEST_SIZE:,} can be counted. "
                "Lower one of them"
            )
        if self.run.steps * self.batch.global_batch_size * self.data.sequence_length >= 2**63:
            raise ValueError(
                f"run.steps {self.run.steps:,} x batch.global_batch_size {self.batch.global_batch_size:,} x "
                f"data.sequence_length {self.data.sequence_length:,} are more tokens than can be counted (2^63). "
                "Lower one of them"
            )
        decay = self.schedule.decay_steps if self.schedule.name == "wsd" else None
        if decay is not None and self.schedule.warmup_steps + decay > self.run.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} and schedule.decay_steps {decay} are more than "
                f"run.steps {self.run.steps}. Lower one of them"
            )
        if self.schedule.warmup_steps > self.run.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} is more than run.steps {self.run.steps}"
            )
        return self
