"""The objective of a run, with what it reads beside the batches: references of a preference."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from cktrain.checkpoint_record import FrozenBase
from cktrain.comm.group import Group
from cktrain.config import Config, DataConfig
from cktrain.consistency_check import together
from cktrain.data.shards import DATASET_FILE, read_dataset
from cktrain.file_identity import sha256_of_files, sha256_of_set
from cktrain.hf.gguf_file import is_gguf
from cktrain.hf.peft_folder import find_adapter
from cktrain.hf.tensors import weight_files
from cktrain.long_work import together_for_long
from cktrain.parallel.model_shard import ModelShard
from cktrain.side_files import SideFiles
from cktrain.training.distillation import Distillation, Teacher, find_teacher
from cktrain.training.objective import NextToken, Objective
from cktrain.training.preference import Preference, kind_of_reference
from cktrain.training.reference import AdapterOff, Origin, precomputed
from cktrain.training_data import Sources

log = logging.getLogger("cktrain")


def refuse_other_rows(data: DataConfig, objective: str) -> None:
    """Raises ValueError where prepared rows are pairs and the objective wants none, or the other way round."""
    for folder in (*data.parts.values(), data.validation.path):
        if folder is None:
            continue
        chat = read_dataset(folder).get("chat") or {} if (Path(folder) / DATASET_FILE).is_file() else {}
        if "pairs" in chat and objective != "dpo":
            raise ValueError(
                f"[objective] {folder} holds preference pairs, and objective.name is {objective}, which would learn the "
                "rejected answers, too. Set objective.name: dpo, or prepare the rows again without --objective dpo."
            )
        if "pairs" not in chat and objective == "dpo":
            raise ValueError(
                f"[objective] objective.name is dpo, and {folder} holds no preference pairs. Prepare rows with prompt, "
                "chosen and rejected: cktrain data prepare ROWS OUT --tokenizer MODEL --objective dpo."
            )


def run_objective(
    config: Config,
    part: ModelShard,
    data_of: Mapping[str, tuple[Sources, str]],
    pretrained: Path | None,
    base: FrozenBase | None,
    side: SideFiles | None,
    precision: str,
    root: str,
    begins: bool,
    group: Group,
) -> Objective:
    """The objective that the configuration names. Collective.

    `data_of` has of each split its sources and their fingerprint; `base` identifies the frozen weights, `root` the first run
    of the lineage, which `begins` here or goes on. Raises ValueError as `kind_of_reference` and `precomputed`.
    """
    if config.objective.name == "next_token":
        return NextToken()
    if config.objective.name == "distill":
        return _distillation(config, part, side, group)
    kind = kind_of_reference(config)
    told = config.objective.model_copy(update={"reference": kind})
    log.info("objective: %s", told.in_words())
    if kind == "adapter_off":
        return Preference(config.objective, AdapterOff())
    if config.data.mixture is not None:
        raise ValueError(
            "[objective] objective.reference precomputed is of one data set, and data.mixture names several. Prepare their "
            "rows as one, or take a fresh adapter and objective.reference: adapter_off."
        )
    sources = {split: next(iter(found.values())) for split, (found, _) in data_of.items()}
    tokens = {split: fingerprint for split, (_, fingerprint) in data_of.items()}
    digest = together(group, partial(_digest, config, pretrained, base) if group.rank == 0 else lambda: "")
    origin = Origin(group.broadcast_bytes(digest.encode()).decode(), tokens, precision, root, begins)
    tables = precomputed(config, part.stage, part.ranks, sources, origin, group)
    return Preference(config.objective, tables)


def _distillation(config: Config, part: ModelShard, side: SideFiles | None, group: Group) -> Objective:
    if part.ranks.tensor.size > 1:
        raise ValueError(
            f"[objective] distill computes its teacher whole on a rank, and parallel.tensor {part.ranks.tensor.size} "
            "divides the vocabulary. Set parallel.tensor: 1."
        )
    saved = together(group, partial(find_teacher, config, side))
    log.info("objective: %s", config.objective.in_words())
    shape = config.batch.resolved_micro_batch_size, config.data.sequence_length

    def load() -> Teacher | None:
        if part.model.head is None:
            return None
        teacher = Teacher(saved, part.model.num, *shape)
        teacher.read()
        return teacher

    return Distillation(config.objective, together_for_long(group, load))


def _digest(config: Config, pretrained: Path | None, base: FrozenBase | None) -> str:
    """Of the weights that a run begins with."""
    if pretrained is None:
        return f"fresh weights of seed {config.run.seed}"
    files = {} if base is None else dict(base.files)
    if base is None:
        folder = pretrained.parent if is_gguf(pretrained) else pretrained
        files = sha256_of_files(folder, weight_files(pretrained))
    if config.adapter is not None and config.adapter.from_pretrained is not None:
        folder = find_adapter(config.adapter.from_pretrained)
        names = [path.name for path in folder.iterdir() if path.is_file()]
        files |= {f"adapter/{name}": each for name, each in sha256_of_files(folder, names).items()}
    return sha256_of_set(files)
