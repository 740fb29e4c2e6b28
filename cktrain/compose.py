"""From a configuration and a group to a trainer: the one place that puts the parts of a run together."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cktrain import cython_kernels
from cktrain.base_folder import with_base
from cktrain.checkpoint import Progress, load_checkpoint
from cktrain.checkpoint_choice import agree_on_checkpoint, begin_run
from cktrain.checkpoint_folder import find_candidates
from cktrain.checkpoint_record import CheckpointError, FrozenBase
from cktrain.comm.group import Group
from cktrain.config import Config, DataConfig
from cktrain.config_file import save_config
from cktrain.consistency_check import agree_on_data, together
from cktrain.data.fingerprint import fingerprint
from cktrain.data.loader import BatchLoader
from cktrain.data.mixed_loader import mixed_fingerprint
from cktrain.data.unchanged_shards import refuse_changed_shards
from cktrain.frozen_base import record_base, refuse_other_base
from cktrain.hf.folder import resolve_model
from cktrain.hf.freeze import hold_as_stored
from cktrain.hf.peft_folder import find_adapter, load_adapter, peft_adapter, resolve_adapter
from cktrain.hf.peft_targets import in_words, loras
from cktrain.hf.tensors import hf_tensors, load_weights
from cktrain.long_work import together_for_long
from cktrain.models.build import build_model
from cktrain.models.family import ModelConfig
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics
from cktrain.optim.table import OPTIMIZERS
from cktrain.parallel.mesh import resolve_mesh
from cktrain.parallel.model_shard import ModelShard
from cktrain.parallel.pipeline_partition import choose_partition
from cktrain.parallel.ranks import Ranks, divide_world
from cktrain.plan.admission import admit
from cktrain.precision import agree_on_precision
from cktrain.resume import consumed_examples, model_differences, other_changes, saved_config
from cktrain.run_files import agree_on_side_files
from cktrain.run_length import count_steps, length_in_words
from cktrain.shared_folder import check_shared_folder
from cktrain.training.observer import Observer
from cktrain.training.run_objective import refuse_other_rows, run_objective
from cktrain.training.trainer import Trainer
from cktrain.training.validation import Validator
from cktrain.training_data import (
    Sources,
    make_loader,
    open_training,
    open_validation,
    part_in_words,
    parts_read,
)
from cktrain.training_rows import prepare_rows

log = logging.getLogger("cktrain")


@dataclass
class Run:
    """A composed run, to be closed."""

    trainer: Trainer
    loader: BatchLoader

    def close(self) -> None:
        """Stop the background reader."""
        self.loader.close()

    def has_saved(self) -> bool:
        """Whether this run has written a checkpoint, so that `checkpoint.resume: auto` goes on from it."""
        found = find_candidates(self.trainer.checkpoint_folder).found
        return bool(found) and found[0].state.run == self.trainer.progress.run


def compose(
    config: Config,
    group: Group,
    threads: int,
    peak_flops: float | None = None,
    observers: Sequence[Observer] = (),
) -> Run:
    """Build everything for this rank. Raises ValueError for what the user can mend.

    What a rank does by itself it does `together` with the others, which then hear of a failure. Of any other error this
    rank alone knows, and whoever called ends the others, who may be waiting.
    """
    ranks = divide_world(group, together(group, partial(resolve_mesh, config.parallel, group.size)))
    _warn_of_tensor_ranks_apart(ranks)
    kernels = cython_kernels.load()
    kernels.set_num_threads(threads)
    group.use_reduction(getattr(kernels, "reduction", None))
    run_dir = Path(config.run.dir)
    check_shared_folder(run_dir, group)
    checkpoints = run_dir / "checkpoints"
    checkpoint = agree_on_checkpoint(checkpoints, config.checkpoint.resume, group)
    before = None if checkpoint is None else together(group, partial(saved_config, checkpoint))
    precision = agree_on_precision(
        config.precision, kernels.isa, "" if checkpoint is None else checkpoint.state.precision, group
    )
    config = with_base(config, group, lambda text: log.info("%s", text))
    model_config, pretrained = together_for_long(group, lambda: _architecture(config.model, before))
    adapter = together(group, partial(resolve_adapter, config.adapter))
    config = config.model_copy(update={"model": model_config, "adapter": adapter})
    config = prepare_rows(config, pretrained, checkpoint, group)
    examples = 0
    if checkpoint is not None and before is not None:
        examples = together(group, partial(consumed_examples, checkpoint, before, config))
    data, length = config.data, config.data.sequence_length
    together(group, partial(_refuse_longer, length, model_config.max_position_embeddings))
    config = _admit(config, pretrained, ranks, precision, threads, group, before)
    side = agree_on_side_files(
        data, pretrained, None if checkpoint is None else checkpoint.path, run_dir, group
    )
    numerics = Numerics(kernels, precision)
    together(group, partial(refuse_other_rows, data, config.objective.name))
    sources = together(group, partial(open_training, data, model_config.vocab_size))
    _hold_shards(data, group)
    tokens = together(group, partial(mixed_fingerprint, sources))
    agree_on_data(tokens, group)
    load_batches = partial(
        make_loader, config, sources, data_rank=ranks.data.rank, data_ranks=ranks.data.size
    )
    loader = together(group, load_batches)
    if data.mixture is None and loader.windows < config.batch.resolved_global_batch_size:
        log.warning(
            "[data] warning: %s gives %s sequences of %d tokens, and a step takes %d: the same ones come again within a "
            "step. Give more data, or a smaller batch.global_batch_size.",
            data.resolved_path,
            f"{loader.windows:,}",
            length,
            config.batch.resolved_global_batch_size,
        )
    done = 0 if checkpoint is None else checkpoint.state.step
    config = together(group, partial(count_steps, config, loader.windows, done, examples))
    if said := length_in_words(config, loader.windows):
        log.info(said)
    for read in parts_read(config, sources):
        log.info(part_in_words(read))
    by_block = config.memory.checkpointing == "block"
    build = partial(build_model, model_config, numerics, length, by_block, config.adapter)
    model = together(group, build)
    names = [tensor.name for tensor in hf_tensors(model_config, model.params())]
    recorded = None if checkpoint is None else checkpoint.state.base
    base = _frozen_base(model, config, pretrained, group, recorded)
    if checkpoint is not None:
        refuse_other_base(checkpoint.path, recorded, base)
    peft = None if adapter is None else peft_adapter(adapter, model_config, model, base)
    part = ModelShard(config, model, ranks, choose_partition(config, numerics, ranks))
    params = part.params
    optimizer_of = partial(
        OPTIMIZERS[config.optimizer.name], params, config.optimizer, part.data.update_spans
    )
    optimizer = together(group, optimizer_of)
    if checkpoint is not None:
        other = [] if before is None else model_differences(before, config)
        load = partial(load_checkpoint, checkpoint, params, optimizer, part.shapes, other, verify=False)
        progress = together(group, load)
        if base is not None and pretrained is not None:
            together(group, partial(load_weights, pretrained, model_config, params, names, params.frozen))
        log.info("resumed from %s", checkpoint.path)
        if before is not None:
            for change in other_changes(checkpoint, before, config, precision, tokens):
                log.info("changed on resume: %s", change)
    else:
        if pretrained is not None:
            together(group, partial(load_weights, pretrained, model_config, params, names))
            params.initialize(config.run.seed, [param for param in params.params if param.spec.adapter])
            for _, lora in loras(part.model):
                lora.start()
            log.info("weights from %s", pretrained)
            if adapter is not None and adapter.from_pretrained is not None and peft is not None:
                folder = find_adapter(adapter.from_pretrained)
                together(group, partial(load_adapter, folder, peft, params))
                log.info("adapter from %s", folder)
        else:
            params.initialize(config.run.seed)
        progress = Progress(step=0, updates=0, tokens=0, precision=precision)
        part.data.broadcast_weights()  # a checkpoint's digests have told that all ranks read the same
    data_of = {"train": (sources, tokens)}
    if data.validation.wanted:
        splits = together(group, partial(open_validation, config))
        held_out = together(group, partial(mixed_fingerprint, splits))
        data_of["validation"] = splits, held_out
        if together(group, partial(_trained_too, splits, sources)):
            log.warning(
                "[data] warning: validation reads the very tokens that are trained: its loss says nothing of other text. "
                "Hold rows out (--validation), or name others in data.validation.path"
            )
    lineage = begin_run(checkpoints, checkpoint, group)
    objective = run_objective(
        config,
        part,
        data_of,
        pretrained,
        base,
        side,
        precision,
        root=lineage.parents[0].run if lineage.parents else lineage.run,
        begins=checkpoint is None,
        group=group,
    )
    validator = None
    if "validation" in data_of:
        validator = Validator(config, part, *data_of["validation"], objective)
    together(group, lambda: save_config(config, run_dir / "config.yaml") if group.rank == 0 else None)
    progress = replace(
        progress,
        precision=precision,
        examples=examples,
        steps=config.run.total_steps,
        run=lineage.run,
        parents=tuple(lineage.parents),
        data=tokens,
        base=base,
        layout=ranks.mesh.degrees,
    )
    trainer = Trainer(
        config,
        part,
        optimizer,
        loader,
        progress,
        validator=validator,
        peak_flops=peak_flops,
        observers=observers,
        side=side,
        adapter=peft,
        objective=objective,
    )
    return Run(trainer, loader)


def _trained_too(held_out: Sources, trained: Sources) -> bool:
    """Whether a split that is held out is one that is trained on."""
    return not {fingerprint(source) for source in held_out.values()}.isdisjoint(
        map(fingerprint, trained.values())
    )


def _hold_shards(data: DataConfig, group: Group) -> None:
    """What was changed of the data's shards is found; the ranks of a host share what is to be read."""
    hosts = group.all_gather_bytes(platform.node().encode())
    here = [rank for rank, host in enumerate(hosts) if host == hosts[group.rank]]
    folders = [path for path in (*data.parts.values(), data.validation.path) if path is not None]
    together_for_long(group, partial(refuse_changed_shards, folders, here.index(group.rank), len(here)))


def _refuse_longer(length: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        raise ValueError(
            f"[data] data.sequence_length {length} is longer than the model's max_position_embeddings {longest}. "
            f"Set it to {longest} or less."
        )


def _admit(
    config: Config,
    pretrained: Path | None,
    ranks: Ranks,
    precision: str,
    threads: int,
    group: Group,
    before: Config | None,
) -> Config:
    """`admit`, of a model whose folder may be gone: its weights are then planned as if they were fresh."""
    model = (
        config.model if pretrained is not None else config.model.model_copy(update={"from_pretrained": None})
    )
    planned = config.model_copy(update={"model": model})
    batch = admit(planned, ranks.mesh, precision, threads, group, before).batch
    return config.model_copy(update={"batch": batch})


def _frozen_base(
    model: Transformer, config: Config, folder: Path | None, group: Group, recorded: FrozenBase | None
) -> FrozenBase | None:
    """Say what trains; of a model with frozen parameters, let them keep their files' dtype, and record which files."""
    if config.adapter is not None:
        of = config.optimizer
        log.info("adapter: %s", in_words(config.adapter, config.model, model))
        log.info("optimizer: %s, lr %g, weight_decay %g, betas %s", of.name, of.lr, of.weight_decay, of.betas)
    frozen = [param for param in model.params() if not param.trainable]
    count, still = sum(param.size for param in model.params()), sum(param.size for param in frozen)
    log.info("%s parameters: %s trained, %s frozen", f"{count:,}", f"{count - still:,}", f"{still:,}")
    if not frozen:
        return None
    if folder is None:
        raise CheckpointError(
            f"[model] model.from_pretrained: {config.model.from_pretrained} is gone, and the frozen weights are read from "
            "it. Put it back, or set model.from_pretrained to where it is now."
        )
    kept = together(group, partial(hold_as_stored, folder, config.model, model))
    if kept:
        in_blocks = config.model.quantize != "none"
        how = "decoded or widened" if in_blocks else "as their files have them: widened"
        log.info("of these %s, %s while they are multiplied", kept, how)
    return record_base(folder, frozen, group, recorded, config.model.quantize)


def _architecture(model: ModelConfig, before: Config | None) -> tuple[ModelConfig, Path | None]:
    """The architecture, and the folder of weights to start from; a folder that is gone is not needed to go on."""
    folder = model.from_pretrained
    gone = folder is not None and not Path(folder).exists()
    if gone and before is not None and folder == before.model.from_pretrained:
        log.info("model.from_pretrained: %s is gone; the architecture is the checkpoint's", folder)
        return before.model, None
    return resolve_model(model)


def _warn_of_tensor_ranks_apart(ranks: Ranks) -> None:
    """Tensor ranks exchange activations in every layer; on several nodes that is slow, and may be wanted."""
    hosts = dict.fromkeys(name.decode() for name in ranks.tensor.all_gather_bytes(platform.node().encode()))
    if len(hosts) > 1 and ranks.tensor.rank == 0:
        log.warning(
            "warning: parallel.tensor %d spans %d nodes (%s): activations cross the network in every layer. "
            "Give each node's ranks to one tensor group, or use parallel.pipeline between nodes.",
            ranks.tensor.size,
            len(hosts),
            ", ".join(hosts),
        )
