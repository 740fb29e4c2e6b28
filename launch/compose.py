"""From a configuration and a group to a trainer: the one place that puts the parts of a run together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cktrain import cython_kernels
from cktrain.checkpoint import Progress, find_checkpoint, load_checkpoint
from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.config_file import save_config
from cktrain.data.loader import BatchLoader
from cktrain.data.shards import open_source
from cktrain.launch.precision import agree_on_precision
from cktrain.models.build import build_model
from cktrain.models.hugging_face import load_weights, resolve_model
from cktrain.nn.numerics import Numerics
from cktrain.nn.params import FlatParams
from cktrain.optim.optimizer import OPTIMIZERS
from cktrain.parallel.data import DataParallel
from cktrain.parallel.mesh import resolve_mesh
from cktrain.trainer import Trainer
from cktrain.validation import Validator

log = logging.getLogger("cktrain")


@dataclass
class Run:
    """A composed run, to be closed."""

    trainer: Trainer
    loader: BatchLoader

    def close(self) -> None:
        """Stop the background reader."""
        self.loader.close()


def compose(
    config: Config, group: Group, threads: int, peak_flops: float | None = None, bar: Any = None
) -> Run:
    """Build everything for this rank. Raises ValueError for what the user can mend."""
    mesh = resolve_mesh(config.parallel, group.size)
    if mesh.data != mesh.world:
        raise ValueError(
            f"[parallel] tensor {mesh.tensor} x pipeline {mesh.pipeline}: this version divides only the "
            "data. Set both to 1."
        )
    kernels = cython_kernels.load()
    kernels.set_num_threads(threads)
    run_dir = Path(config.run.dir)
    checkpoint = find_checkpoint(run_dir / "checkpoints", config.checkpoint.resume)
    precision = agree_on_precision(config.precision, kernels.isa, checkpoint, group)
    model_config, pretrained = resolve_model(config.model)
    config = config.model_copy(update={"model": model_config})
    data, length = config.data, config.data.sequence_length
    longest = model_config.max_position_embeddings
    if longest is not None and length > longest:
        raise ValueError(
            f"[data] data.sequence_length {length} is longer than the model's max_position_embeddings {longest}. "
            f"Set it to {longest} or less."
        )
    numerics = Numerics(kernels, precision)
    source = open_source(data.path, "train", model_config.vocab_size, data.dtype)
    loader = BatchLoader(
        source,
        length,
        config.batch.micro_batch_size,
        config.batch.global_batch_size,
        config.run.seed,
        shuffle=data.shuffle,
        data_rank=group.rank,
        data_ranks=group.size,
        document_mask=data.document_mask,
        vocab_size=model_config.vocab_size,
    )
    model = build_model(model_config, numerics, length, config.memory.checkpointing == "block")
    params = FlatParams(model.params(), numerics)
    optimizer = OPTIMIZERS[config.optimizer.name](params, config.optimizer)
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, params, optimizer)
        log.info("resumed from %s", checkpoint)
    else:
        if pretrained is not None:
            load_weights(pretrained, params)
            log.info("weights from %s", pretrained)
        else:
            params.initialize(config.run.seed)
        progress = Progress(step=0, updates=0, tokens=0, precision=precision)
    DataParallel(group, params).broadcast_weights()
    validator = None
    if data.validation.every:
        held_out = open_source(
            data.validation.path or data.path,
            "train" if data.validation.path else "validation",
            model_config.vocab_size,
            data.dtype,
        )
        validator = Validator(config, model, params, held_out, group)
    if group.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, run_dir / "config.yaml")
    trainer = Trainer(
        config,
        model,
        params,
        optimizer,
        loader,
        group,
        progress,
        validator=validator,
        peak_flops=peak_flops,
        bar=bar,
    )
    return Run(trainer, loader)
