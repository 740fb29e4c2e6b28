"""Which blocks each pipeline stage gets: as the user says, by measured cost, or by floating-point operations.

Costs are measured at the start, by all ranks at the same time as in training; the mean over ranks decides, so that all
decide alike. What was decided stands in RUN/stages.json and is taken from there when the run goes on: the same run has
the same stages.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cktrain.best_effort import BestEffort
from cktrain.config import Config, Positive
from cktrain.foreign_file import read_json
from cktrain.nn.numerics import Numerics
from cktrain.parallel.costs import Cost, ModelCosts, measure_costs
from cktrain.parallel.ranks import Ranks
from cktrain.parallel.stages import Partition, cut

log = logging.getLogger("cktrain")

FILE = "stages.json"


class _Decided(BaseModel):
    """What of the file is read again."""

    of: dict[str, Any]
    layers: list[Positive]


def choose_partition(config: Config, numerics: Numerics, ranks: Ranks) -> Partition | None:
    """The blocks of each stage, the same on all ranks; None: `ModelShard` cuts by floating-point operations.

    `config.model` is resolved. Collective. Raises ValueError for a list that does not fit the model.
    """
    wanted, stages = config.parallel.cut, ranks.pipeline.size
    layers = config.model.num_hidden_layers
    if isinstance(wanted, list):
        return partition_from_list(wanted, layers, stages)
    if stages == 1 or stages > layers or wanted == "flops" or config.run.deterministic:
        return None
    file = Path(config.run.dir) / FILE
    question = _question(config, numerics, ranks)
    cuts = _decided_before(file, question, ranks)
    if cuts is not None:
        return cuts
    costs = mean_costs(measure_costs(config, numerics, ranks.mesh), ranks)
    cuts = partition_by_costs(costs, stages)
    if ranks.world.rank == 0:
        with BestEffort(
            f"[parallel] {file} cannot be written", "The run goes on; resumed, it may cut otherwise."
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                json.dumps({"of": question, "layers": [b - a for a, b in cuts], "costs": asdict(costs)})
            )
        log.info("pipeline stages of %s by measured cost: %s", _spelled(cuts), _spelled_costs(costs))
    return cuts


def partition_from_list(layers_of_stages: list[int], layers: int, stages: int) -> Partition:
    """The cuts that give each stage this many layers. ValueError, with the numbers, when they do not fit."""
    if len(layers_of_stages) != stages or sum(layers_of_stages) != layers or min(layers_of_stages) < 1:
        raise ValueError(
            f"[parallel] parallel.cut {layers_of_stages} has {len(layers_of_stages)} stages and "
            f"{sum(layers_of_stages)} layers; parallel.pipeline is {stages}, the model has {layers} layers and each "
            "stage needs at least one. Make them agree, or set parallel.cut: measured."
        )
    return list(pairwise(accumulate(layers_of_stages, initial=0)))


def partition_by_costs(costs: ModelCosts, stages: int) -> Partition:
    """The cut whose slowest stage, forward and backward together, is fastest."""
    return cut([block.both for block in costs.blocks], costs.embedding.both, costs.head.both, stages)


def mean_costs(mine: ModelCosts, ranks: Ranks) -> ModelCosts:
    """The mean of all ranks' costs, the same on all of them. Collective over the world."""
    told = [json.loads(text) for text in ranks.world.all_gather_bytes(json.dumps(asdict(mine)).encode())]

    def mean(costs: list[dict[str, float]]) -> Cost:
        return Cost(*(sum(cost[key] for cost in costs) / len(costs) for key in ("forward", "backward")))

    blocks = zip(*(each["blocks"] for each in told), strict=True)
    return ModelCosts(
        mean([each["embedding"] for each in told]),
        tuple(mean(list(costs)) for costs in blocks),
        mean([each["head"] for each in told]),
        sum(each["outside"] for each in told) / len(told),
    )


def _question(config: Config, numerics: Numerics, ranks: Ranks) -> dict[str, Any]:
    """All that the costs depend on, as far as the run knows it."""
    return {
        "model": config.model.model_dump(),
        **({} if config.adapter is None else {"adapter": config.adapter.meaning()}),
        "stages": ranks.pipeline.size,
        "tensor": ranks.tensor.size,
        "rows": [config.batch.resolved_micro_batch_size, config.data.sequence_length],
        "precision": numerics.precision,
        "checkpointing": config.memory.checkpointing,
        "kernels": numerics.kernels.isa,
    }


def _decided_before(file: Path, question: dict[str, Any], ranks: Ranks) -> Partition | None:
    """What rank 0 finds in the run's folder, for the same question."""
    found = b""
    if ranks.world.rank == 0 and file.exists():
        try:
            before = read_json(file, _Decided, area="parallel", remedy="The stages are measured anew")
            if before.of == question:
                partition_from_list(
                    before.layers, question["model"]["num_hidden_layers"], ranks.pipeline.size
                )
                found = json.dumps(before.layers).encode()
        except ValueError as error:
            log.warning("warning: %s.", str(error).rstrip("."))
    found = ranks.world.broadcast_bytes(found, root=0)
    return (
        partition_from_list(json.loads(found), sum(json.loads(found)), ranks.pipeline.size) if found else None
    )


def _spelled(cuts: Partition) -> str:
    return " + ".join(str(stop - start) for start, stop in cuts) + " layers"


def _spelled_costs(costs: ModelCosts) -> str:
    blocks = sorted({block.both for block in costs.blocks})
    spread = " to ".join(f"{1e3 * seconds:.1f}" for seconds in dict.fromkeys((blocks[0], blocks[-1])))
    return (
        f"embedding {1e3 * costs.embedding.both:.1f} ms, a layer {spread} ms, head {1e3 * costs.head.both:.1f} ms "
        "per micro-batch"
    )
