"""The typed configuration of a run: one frozen section per block of the YAML file.

Every field's description is its documentation; `docs/configuration.md` is generated from them. Unknown keys and
wrong types are errors (`config_file.py` adds the file, the line and the closest known key). Sizes that must divide
are checked here, where both numbers are known. The `model:` block is one of the families' (`cktrain/models/`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cktrain.config_types import (
    AUTO,
    LARGEST_SIZE,
    MOST_CPUS,
    YEAR_S,
    Decay,
    Degree,
    Duration,
    FiniteNonNegative,
    FinitePositive,
    Fraction,
    Interval,
    NonNegative,
    PathText,
    Positive,
    Seconds,
    Section,
    Size,
    SizeOrAuto,
    duration_seconds,
)
from cktrain.held_out_files import files_of_their_own
from cktrain.hf.peft_config import ADAPTER_DEFAULTS, AdapterConfig
from cktrain.mixture_config import MixturePart, MixtureStage, check_mixture
from cktrain.models import AnyModel


class RunConfig(Section):
    """What to run and where its files go."""

    dir: PathText
    """Folder of the run: resolved config, metrics, logs and checkpoints. Made when missing."""
    seed: NonNegative = 1234
    """Seed of the initial weights and of the order of the data."""
    steps: Positive | None = None
    """Optimizer steps in the whole run. Exactly one of steps, epochs and tokens is given."""
    epochs: FinitePositive | None = None
    """Passes over the training sequences in the whole run, whole ones or not; the steps follow from it, and are said."""
    tokens: Positive | None = None
    """Tokens of the training sequences in the whole run, with a label or without; the steps follow from it, and are said."""
    max_time: Duration | None = None
    """Where the run ends at the latest, as 8h or 1h30min of training, resumed parts and saves included: the schedule moves
    on by the clock where its steps are too slow for it, so that the rate has fallen to its end by then."""
    deterministic: bool = False
    """Add the micro-batches' gradients along one fixed order, whatever the number of data ranks."""

    @model_validator(mode="after")
    def _check_length(self) -> RunConfig:
        lengths = {"steps": self.steps, "epochs": self.epochs, "tokens": self.tokens}
        given = [f"{key} {value:g}" for key, value in lengths.items() if value is not None]
        if len(given) > 1:
            number = "both" if len(given) == 2 else "all"
            raise ValueError(f"{' and '.join(given)} {number} say how long it is. Give one of them")
        if not given:
            raise ValueError("nothing says how long it is. Give steps, epochs or tokens")
        return self

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds."""
        return None if self.max_time is None else duration_seconds(self.max_time)

    @property
    def total_steps(self) -> int:
        """The steps of the whole run, where they are known: of epochs once the data has been opened."""
        assert self.steps is not None, "epochs and tokens are counted in steps first (cktrain/run_length.py)"
        return self.steps


class ValidationConfig(Section):
    """How often and on how much the model is validated. Beside data.train also one number, the share of the rows that is
    held out: validated before the first step, five times in an epoch and after the last step, all of it."""

    fraction: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Share of the rows of data.train that is held out. Default: 0.05."""
    every: NonNegative = 0
    """Validate after every so many steps, and after the last; 0: never."""
    times_per_epoch: Positive | None = None
    """Instead of every: validate so many times in an epoch, after each step of short ones, and after the last step."""
    at_start: bool = False
    """Validate before the first step, too."""
    batches: Positive | None = 8
    """Global batches of the validation split to use; null: the whole split."""
    path: PathText | None = None
    """Validation tokens of their own: a raw .bin, or another folder made by `cktrain data prepare`."""

    @model_validator(mode="after")
    def _check(self) -> ValidationConfig:
        if self.every and self.times_per_epoch is not None:
            raise ValueError(
                f"every {self.every} and times_per_epoch {self.times_per_epoch} both say when. Give one of them"
            )
        return self

    @property
    def wanted(self) -> bool:
        """Whether the run validates at all."""
        return bool(self.every or self.times_per_epoch or self.at_start)


OF_ROWS = ("train_on", "packing", "too_long", "chat_template", "columns", "group_by", "skip_bad")
"""Keys of `data:` that say what becomes of the rows of `data.train`."""
_VALIDATED = {"times_per_epoch": 5, "at_start": True, "batches": None}


class DataConfig(Section):
    """The tokens: path, a mixture of several, or rows of which the run makes them."""

    path: PathText | None = None
    """Folder made by `cktrain data prepare`, or token ids of nanoGPT, llm.c, Megatron or OLMo-core (docs/data.md)."""
    mixture: list[MixturePart] | None = None
    """Instead of path: several data sets, each with the share that it has of the tokens (docs/data.md)."""
    stages: list[MixtureStage] | None = None
    """Instead of the weights in mixture: weights that change after so many tokens."""
    train: PathText | None = None
    """Instead of path: a file of chats or instructions, or a folder of such (docs/chat_data.md). The run prepares them into
    run.dir/data with the tokenizer and chat template of model.from_pretrained, or keeps what it has prepared of them."""
    train_on: Literal["assistant", "completion", "all"] | None = None
    """Of the rows of train, what is learned. Default: assistant, every answer."""
    packing: Literal["bfd", "none"] | None = None
    """bfd puts several rows of train into a sequence (best-fit decreasing), none one. Default: bfd."""
    too_long: Literal["drop", "truncate", "error"] | None = None
    """What becomes of rows of train that are longer than a sequence. Default: drop, at most 5 % of them."""
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    """For the rows of train: chatml, llama3, plain or a file. Default: the model's own."""
    columns: dict[str, str] | None = None
    """{our key: the key in train's rows}."""
    group_by: Annotated[str, Field(min_length=1)] | None = None
    """Rows of train with the same value of this key are trained or held out together."""
    skip_bad: bool | None = None
    """Leave out rows of train that cannot be used, into run.dir/data/rejected.jsonl. Default: they end the run."""
    sequence_length: Size
    """Tokens in one sequence."""
    shuffle: bool = True
    """Shuffle the windows of each epoch; false reads consecutive windows from the start."""
    dtype: Literal["uint16", "uint32"] | None = None
    """Type of the ids in a raw .bin. Default: uint16 when the vocabulary fits."""
    eos_id: NonNegative | None = None
    """Id that ends a document, in a file of ids that does not say it; document_mask goes by it."""
    document_mask: bool = False
    """Nothing crosses a document's border: no attention, and no loss for the token after a document's end (needs an
    end-of-text id in the data)."""
    allow_other_tokenizer: bool = False
    """Train although the data was prepared with another tokenizer than that of the pretrained model, of the run that goes
    on, or of the validation data; the data's is then the run's."""
    validation: ValidationConfig = ValidationConfig()
    """Validation during the run."""

    @model_validator(mode="before")
    @classmethod
    def _share_held_out(cls, values: Any) -> Any:
        """A number is short for a block; rows of which nothing is said are validated, too."""
        if not isinstance(values, Mapping):
            return values
        given = values.get("validation")
        if given is None and values.get("train") is not None:
            given = 0.05
        if isinstance(given, str):
            raise ValueError(
                f"validation is {given!r}, and takes a share of train's rows, as 0.05, or a block of keys. "
                f"{files_of_their_own(given)}"
            )
        if isinstance(given, bool) or not isinstance(given, int | float):
            return values
        return {**values, "validation": {"fraction": float(given), **(_VALIDATED if given else {})}}

    @model_validator(mode="after")
    def _check_source(self) -> DataConfig:
        ways = {"path": self.path, "mixture": self.mixture, "train": self.train}
        given = [key if key == "mixture" else f"{key} {way}" for key, way in ways.items() if way is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say what is trained on. Give one of them")
        if not given:
            raise ValueError(
                "nothing says what is trained on. Give path, mixture for several, or train for rows of chats"
            )
        if self.stages is not None and self.mixture is None:
            raise ValueError("stages are of a mixture, which is not given. Give it, or leave stages out")
        if self.mixture is not None:
            check_mixture(self.mixture, self.stages)
        of_rows = [key for key in OF_ROWS if getattr(self, key) is not None]
        of_rows += ["validation.fraction"] if self.validation.fraction is not None else []
        if self.train is None and of_rows:
            raise ValueError(
                f"{', '.join(of_rows)}: how rows of train become sequences, and {given[0]} is prepared. Leave it out, "
                "or give train"
            )
        of_ids = {"dtype": self.dtype, "eos_id": self.eos_id, "validation.path": self.validation.path}
        other = next((key for key, value in of_ids.items() if value is not None), None)
        if self.train is not None and other is not None:
            raise ValueError(f"{other} is of a raw .bin, and train {self.train} has rows. Leave it out")
        return self

    @property
    def resolved_path(self) -> str:
        """`path`, once the rows of `train` are prepared."""
        assert self.path is not None, "rows are prepared first (cktrain/training_rows.py)"
        return self.path

    @property
    def parts(self) -> dict[str, str]:
        """The path of each data set that is trained on, by its name; of one alone the name is the path."""
        if self.mixture is not None:
            return {part.called: part.path for part in self.mixture}
        return {self.resolved_path: self.resolved_path}

    @property
    def shares_of_stages(self) -> list[tuple[int | None, list[float]]]:
        """Of a mixture the tokens with which each stage ends (None: it does not) and the weight of each part, 0 of one that
        is not read in it."""
        assert self.mixture is not None
        if self.stages is None:
            return [(None, [part.weight or 0.0 for part in self.mixture])]
        return [
            (stage.until_tokens, [stage.weights.get(part.called, 0.0) for part in self.mixture])
            for stage in self.stages
        ]


class BatchConfig(Section):
    """Sequences per step, by global_batch_size or by gradient_accumulation_steps."""

    micro_batch_size: SizeOrAuto = AUTO
    """Sequences that one rank computes at once. auto: as many as fit into the memory, and no more than are of use
    (docs/memory.md); the choice is said, and a run that goes on keeps it."""
    global_batch_size: Size | None = None
    """Sequences per optimizer step over all data ranks; the number of accumulated micro-batches is derived."""
    gradient_accumulation_steps: Size | None = None
    """Instead of global_batch_size: micro-batches of a rank in a step, of micro_batch_size sequences each."""

    @model_validator(mode="after")
    def _check(self) -> BatchConfig:
        micro, batch, steps = self.micro_batch_size, self.global_batch_size, self.gradient_accumulation_steps
        if batch is not None and steps is not None:
            raise ValueError(
                f"global_batch_size {batch:,} and gradient_accumulation_steps {steps:,} both say how many sequences a step "
                "has. Give one of them"
            )
        if batch is None and steps is None:
            raise ValueError(
                "nothing says how many sequences a step has. Give global_batch_size or gradient_accumulation_steps"
            )
        if not isinstance(micro, int):
            if batch is None:
                raise ValueError(
                    f"gradient_accumulation_steps {steps:,} are of a micro_batch_size that is given, and it is auto. Give "
                    "a number, or global_batch_size instead"
                )
        elif batch is not None and batch % micro:
            raise ValueError(
                f"global_batch_size {batch} is not a multiple of micro_batch_size {micro}. Change one of them"
            )
        return self

    @property
    def resolved_micro_batch_size(self) -> int:
        """`micro_batch_size`, once it is a number."""
        assert isinstance(self.micro_batch_size, int), "auto is chosen first (cktrain/plan/batch_sizes.py)"
        return self.micro_batch_size

    @property
    def resolved_global_batch_size(self) -> int:
        """`global_batch_size`, once it is known."""
        assert self.global_batch_size is not None, (
            "accumulation is multiplied first (cktrain/plan/batch_sizes.py)"
        )
        return self.global_batch_size


OF_OBJECTIVE: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1, "label_smoothing": 0.0, "length_normalized": False, "reference": None},
    "distill": {"teacher": None, "temperature": 1.0, "alpha": 1.0},
}
"""Keys that an objective has for itself, and their defaults."""
DPO_OPTIMIZER: dict[str, Any] = {"lr": 5.0e-6, "weight_decay": 0.0, "betas": [0.9, 0.999]}
"""Of the optimizer, where a run prefers and does not give them."""


class ObjectiveConfig(Section):
    """What is minimised; keys of another objective than the one named are errors."""

    name: Literal["next_token", "dpo", "distill"] = "next_token"
    """next_token: the cross-entropy of each token that follows, of the labels that count; dpo: of pairs of answers, that
    the chosen one becomes more probable beside a reference, and the rejected one less (docs/preference.md); distill: that
    the model's distribution of each labelled token becomes that of a teacher (docs/distillation.md)."""
    beta: FinitePositive | None = None
    """dpo: how closely the model is held to its reference. Default: 0.1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    """dpo: the share of pairs that are taken to be the wrong way round. Default: 0."""
    length_normalized: bool | None = None
    """dpo: divide an answer's log-probability by its tokens. Default: false."""
    reference: Literal["adapter_off", "precomputed"] | None = None
    """dpo: the model without its adapter, computed beside each step; or the model as the run begins, computed once for all
    pairs and kept in run.dir. Default: adapter_off where a fresh adapter is all that is trained, else precomputed."""

    teacher: PathText | None = None
    """distill: a Hugging Face folder or GGUF file of a model with the same vocabulary."""
    temperature: FinitePositive | None = None
    """distill: by which both models' logits are divided. Default: 1."""
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """distill: the weight of the divergence; that of the labels' cross-entropy is 1 - alpha. Default: 1."""

    @model_validator(mode="after")
    def _check_keys(self) -> ObjectiveConfig:
        other = {key: name for name, keys in OF_OBJECTIVE.items() if name != self.name for key in keys}
        if given := [key for key in other if getattr(self, key) is not None]:
            raise ValueError(
                f"{given[0]} is of the objective {other[given[0]]}, and name is {self.name}. Leave it out, or set name: "
                f"{other[given[0]]}"
            )
        if self.name == "distill" and self.teacher is None:
            raise ValueError("name is distill, and nothing says from which model. Give teacher")
        return self

    def in_words(self) -> str:
        """Its name and keys."""
        keys = {key: self.said(key) for key in OF_OBJECTIVE.get(self.name, {})}
        given = [
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in keys.items()
        ]
        return ", ".join([self.name, *(text for text in given if not text.endswith((" None", " False")))])

    def said(self, key: str) -> Any:
        """A key's value, or its default where it is not given."""
        value = getattr(self, key)
        return OF_OBJECTIVE[self.name][key] if value is None else value


class OptimizerConfig(Section):
    """The update rule."""

    name: Literal["adamw", "adamw_8bit", "muon", "sgd"] = "adamw"
    """adamw (Loshchilov & Hutter 2019), adamw_8bit (with moments of a byte each, Dettmers et al. 2022), muon (Keller Jordan
    et al. 2024; adamw for what is no matrix) or sgd with momentum."""
    lr: FiniteNonNegative = 3.0e-4
    """Peak learning rate."""
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.95]  # noqa: RUF012
    """Decay of AdamW's first and second moments."""
    eps: FinitePositive = 1.0e-8
    """Added to the root of AdamW's second moment."""
    weight_decay: FiniteNonNegative = 0.1
    """Decay of matrices; biases and norm weights have none."""
    momentum: Decay = 0.9
    """SGD's momentum."""
    nesterov: bool = False
    """SGD with Nesterov's momentum."""
    muon_lr: FiniteNonNegative | None = None
    """Muon's peak learning rate of matrices; null: lr."""
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Muon's rate by a matrix's shape: for updates as large as AdamW's, whose lr and decay then fit, or times
    √max(1, rows/columns)."""
    ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    """Muon's Newton-Schulz iterations."""
    clip_grad_norm: FiniteNonNegative = 1.0
    """Largest global norm of the gradient; 0: no clipping."""


class ScheduleConfig(Section):
    """Learning rate over the steps."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """Shape after warm-up; wsd is warm-up, stable, decay."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up from 0."""
    warmup_ratio: Fraction = 0.0
    """Instead of warmup_steps: their share of the run's steps, rounded up."""
    min_lr_ratio: Fraction = 0.1
    """Last learning rate over the peak."""
    decay_steps: Positive | None = None
    """wsd: steps of the final decay. Default: a tenth of the run."""

    @model_validator(mode="after")
    def _check_warmup(self) -> ScheduleConfig:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and warmup_ratio {self.warmup_ratio:g} both say how long the warm-up is. "
                "Give one of them"
            )
        return self

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a run of so many."""
        return self.warmup_steps or math.ceil(self.warmup_ratio * steps)

    def check(self, steps: int) -> None:
        """Raises ValueError where its parts are longer than a run of so many steps."""
        warmup, decay = self.warmup(steps), self.decay_steps if self.name == "wsd" else None
        if decay is not None and warmup + decay > steps:
            raise ValueError(
                f"schedule.warmup_steps {warmup} and schedule.decay_steps {decay} are more than "
                f"run.steps {steps}. Lower one of them"
            )
        if warmup > steps:
            raise ValueError(f"schedule.warmup_steps {warmup} is more than run.steps {steps}")


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

    every: Interval = 100
    """Save after every so many steps, or after a time as 15min or 2h, and at the end; 0: only at the end or on a signal."""
    keep: Positive = 3
    """Checkpoints to keep, of this run and those that led to it."""
    resume: PathText = "auto"
    """auto: the newest whole one of the run in run.dir, if any; none: start afresh; or the path of a checkpoint or run.
    What did not lead to the run is moved aside (docs/runs.md)."""
    save_best: bool = False
    """Keep the checkpoint with the lowest validation loss in run.dir/best, too."""
    early_stopping_patience: Positive | None = None
    """End the run, saved, after so many validations in a row that were not better than the best one before."""


class LogConfig(Section):
    """What is printed."""

    every: Positive = 10
    """Print and record every so many steps, and the first."""
    tensorboard: bool = False
    """Also write TensorBoard's event files, in run.dir/tensorboard (needs tensorboardX)."""
    wandb: Annotated[str, Field(min_length=1)] | None = None
    """Also send to this project of Weights & Biases (needs wandb; WANDB_MODE=offline keeps it in run.dir/wandb)."""


class Config(Section):
    """A whole run."""

    run: RunConfig
    model: AnyModel
    adapter: AdapterConfig | None = None
    """What is trained beside pretrained weights that stay as they are; left out: all weights are trained."""
    data: DataConfig
    batch: BatchConfig
    objective: ObjectiveConfig = ObjectiveConfig()
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

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_optimizer(cls, values: Any) -> Any:
        """An adapter has others: it begins at zero, and its weights are few. Preference has small steps."""
        if not isinstance(values, Mapping):
            return values
        optimizer, objective = values.get("optimizer", {}), values.get("objective")
        if not isinstance(optimizer, Mapping):
            return values
        if isinstance(objective, Mapping) and objective.get("name") == "dpo":
            return {**values, "optimizer": {**DPO_OPTIMIZER, **optimizer}}
        if values.get("adapter") is None:
            return values
        return {**values, "optimizer": {**ADAPTER_DEFAULTS, **optimizer}}

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.adapter is not None and self.model.from_pretrained is None:
            raise ValueError(
                "adapter stands beside pretrained weights, and model.from_pretrained is not given. Give a folder, or leave "
                "adapter out"
            )
        if self.data.train is not None and self.model.from_pretrained is None:
            raise ValueError(
                "data.train is written by the tokenizer and chat template of model.from_pretrained, which is not given. "
                "Give it, or prepare the rows with another tokenizer: cktrain data prepare"
            )
        if self.data.mixture is not None:
            by_epochs = {
                "run.epochs": self.run.epochs,
                "data.validation.times_per_epoch": self.data.validation.times_per_epoch,
            }
            if counted := [key for key, value in by_epochs.items() if value is not None]:
                raise ValueError(
                    f"{counted[0]}: the parts of data.mixture have epochs of their own, and so the run has none. Give "
                    "run.steps or run.tokens, and data.validation.every"
                )
        if self.adapter is not None and self.model.freeze:
            raise ValueError(
                "adapter keeps all weights of model.from_pretrained as they are already. Leave model.freeze out"
            )
        if self.model.quantize != "none" and self.adapter is None and not self.model.freeze:
            raise ValueError(
                f"model.quantize {self.model.quantize} holds weights in blocks, which cannot be trained, and without "
                "adapter and model.freeze all weights are. Give an adapter, or leave quantize out"
            )
        batch, length = self.batch, self.data.sequence_length
        micro = batch.micro_batch_size if isinstance(batch.micro_batch_size, int) else 1
        if micro * length > LARGEST_SIZE:
            raise ValueError(
                f"batch.micro_batch_size {micro:,} x data.sequence_length {length:,} are {micro * length:,} tokens at once, "
                f"and {LARGEST_SIZE:,} can be counted. Lower one of them"
            )
        steps, sequences = self.run.steps or 0, batch.global_batch_size
        if sequences is not None and steps * sequences * length >= 2**63:
            raise ValueError(
                f"run.steps {steps:,} x batch.global_batch_size {sequences:,} x data.sequence_length {length:,} are more "
                "tokens than can be counted (2^63). Lower one of them"
            )
        if steps:
            self.schedule.check(steps)
        kept = self.checkpoint
        if (kept.save_best or kept.early_stopping_patience) and not self.data.validation.wanted:
            raise ValueError(
                "checkpoint.save_best and checkpoint.early_stopping_patience go by the validation loss, and nothing is "
                "validated. Set data.validation.every or data.validation.times_per_epoch"
            )
        return self
