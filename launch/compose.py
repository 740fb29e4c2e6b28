"""From a configuration and a group to a trainer: the one place that puts the parts of a run together."""

from __future__ import annotations

import logging
import platform
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
from cktrain.models.hf_weights import hf_tensors, load_weights
from cktrain.models.hugging_face import resolve_model
from cktrain.nn.numerics import Numerics
from cktrain.optim.optimizer import OPTIMIZERS
from cktrain.parallel.cuts import choose_cuts
from cktrain.parallel.mesh import resolve_mesh
from cktrain.parallel.part import Part
from cktrain.parallel.ranks import Ranks, divide_world
from cktrain.run_files import agree_on_side_files
from cktrain.shared_folder import check_shared_folder
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
    ranks = divide_world(group, resolve_mesh(config.parallel, group.size))
    _warn_of_tensor_ranks_apart(ranks)
    kernels = cython_kernels.load()
    kernels.set_num_threads(threads)
    group.use_reduction(getattr(kernels, "reduction", None))
    run_dir = Path(config.run.dir)
    check_shared_folder(run_dir, group)
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
    side = agree_on_side_files(data, pretrained, checkpoint, run_dir, group)
    numerics = Numerics(kernels, precision)
    source = open_source(data.path, "train", model_config.vocab_size, data.dtype)
    loader = BatchLoader(
        source,
        length,
        config.batch.micro_batch_size,
        config.batch.global_batch_size,
        config.run.seed,
        shuffle=data.shuffle,
        data_rank=ranks.data.rank,
        data_ranks=ranks.data.size,
        document_mask=data.document_mask,
        vocab_size=model_config.vocab_size,
    )
    model = build_model(model_config, numerics, length, config.memory.checkpointing == "block")
    names = [tensor.name for tensor in hf_tensors(model.params())]
    part = Part(config, model, ranks, choose_cuts(config, numerics, ranks))
    params = part.params
    optimizer = OPTIMIZERS[config.optimizer.name](params, config.optimizer, part.data.update_spans)
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, params, optimizer, part.shapes)
        log.info("resumed from %s", checkpoint)
    else:
        if pretrained is not None:
            load_weights(pretrained, params, names)
            log.info("weights from %s", pretrained)
        else:
            params.initialize(config.run.seed)
        progress = Progress(step=0, updates=0, tokens=0, precision=precision)
    part.data.broadcast_weights()
    validator = None
    if data.validation.every:
        held_out = open_source(
            data.validation.path or data.path,
            "train" if data.validation.path else "validation",
            model_config.vocab_size,
            data.dtype,
        )
        validator = Validator(config, part, held_out)
    if group.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, run_dir / "config.yaml")
    trainer = Trainer(
        config,
        part,
        optimizer,
        loader,
        progress,
        validator=validator,
        peak_flops=peak_flops,
        bar=bar,
        side=side,
    )
    return Run(trainer, loader)


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
