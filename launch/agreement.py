"""Ranks that are not the same run: another version, another configuration, another instruction set.

Each rank reads its own files on its own host, so they are compared before anything is built on them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.launch.topology import format_cpulist

log = logging.getLogger("cktrain")

# What may differ from host to host.
_OWN = ("launch.", "comm.device", "comm.gid_index", "comm.interface")


def check_agreement(group: Group, config: Config, version: str, isa: str) -> None:
    """Compare what all ranks of `group` run (collective); `isa` is the label of this rank's kernel set.

    Different instruction sets are said; with `parallel.zero: 0`, where every rank updates all weights by itself, they
    would drift apart, and are refused.

    Raises:
        ValueError: on all ranks, for differences that would spoil the run.
    """
    mine = {"version": version, "isa": isa, "config": config.model_dump(mode="json")}
    ranks = [json.loads(text) for text in group.all_gather_bytes(json.dumps(mine).encode())]
    problems = differences(ranks)
    if problems:
        raise ValueError("\n".join(problems))
    isas = [rank["isa"] for rank in ranks]
    if len(set(isas)) == 1:
        return
    text = f"the ranks have different instruction sets: {_who(isas)}"
    if config.parallel.zero == 0:
        raise ValueError(
            f"[launch] {text}. With parallel.zero: 0 their weights would drift apart. Set CKTRAIN_ISA to one that all "
            "have, or parallel.zero: 1."
        )
    if group.rank == 0:
        log.warning("[launch] warning: %s. All wait for the slowest in every step.", text)


def differences(ranks: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong: one line per thing that should be the same on all ranks, with who has what."""
    found = []
    versions = [rank["version"] for rank in ranks]
    if len(set(versions)) > 1:
        found.append(
            f"[launch] the ranks run different versions of cktrain: {_who(versions)}. Install one on all hosts."
        )
    flat = [dict(_flatten(rank["config"])) for rank in ranks]
    for key in sorted(set().union(*flat)):
        values = [json.dumps(settings.get(key)) for settings in flat]
        if len(set(values)) > 1 and not key.startswith(_OWN):
            found.append(
                f"[launch] the ranks have different configurations: {key} is {_who(values)}. "
                "Give all hosts the same file."
            )
    return found


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flatten(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found


def _who(values: Sequence[str]) -> str:
    """Each distinct value and the ranks that have it: "1 on rank 0-2, 2 on rank 3"."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on rank {format_cpulist(who)}" for value, who in ranks.items())
