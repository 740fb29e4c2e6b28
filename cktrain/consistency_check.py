"""Ranks that are not the same run: another version, configuration or instruction set, other data; and what fails on one.

Each rank reads its own files on its own host, so they are compared before anything is built on them.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cktrain.agreed import AgreedError
from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.host.topology import format_cpulist
from cktrain.system_error import in_words

log = logging.getLogger("cktrain")

Value = TypeVar("Value")

# What may differ from host to host.
_OWN = ("launch.", "comm.device", "comm.gid_index", "comm.interface")


class AgreedProblem(ValueError, AgreedError):
    """What is wrong with the user's input on any rank, the same text on all."""


class LoneProblem(ValueError):
    """What this rank has met outside of what the ranks do `together`: the others may wait for it, and are to be ended."""


def together(group: Group, work: Callable[[], Value]) -> Value:
    """This rank's part of what all ranks do at the same time; what it returns. Collective.

    Raises AgreedProblem on all ranks, each distinct problem with who has it, when the work of any raises ValueError,
    OSError or MemoryError; a rank alone raises its own.
    """
    problem = ""
    value: Value | None = None
    try:
        value = _in_words(work)
    except (ValueError, MemoryError) as error:
        if group.size == 1:
            raise
        problem = str(error) or "[memory] there is not enough"
    problem = agree_on_problem(problem, group)
    if problem:
        raise AgreedProblem(problem)
    return value  # type: ignore[return-value]


def _in_words(work: Callable[[], Value]) -> Value:
    try:
        return work()
    except OSError as error:
        raise ValueError(in_words(error)) from None


def agree_on_problem(problem: str, group: Group) -> str:
    """What is wrong on any rank, the same text on all: each distinct problem and who has it; empty when all is well."""
    problems = [text.decode() for text in group.all_gather_bytes(problem.encode())]
    if group.size == 1 or not any(problems):
        return problems[0]
    who: dict[str, list[int]] = {}
    for rank, text in enumerate(problems):
        if text:
            who.setdefault(text, []).append(rank)
    return "\n".join(f"{text} (rank {', '.join(map(str, ranks))})" for text, ranks in who.items())


def agree_on_data(found: str, group: Group) -> None:
    """Raise ValueError, on all ranks, when the fingerprints of their training tokens differ. Collective."""
    mine = json.dumps([found, platform.node()]).encode()
    ranks = [json.loads(text) for text in group.all_gather_bytes(mine)]
    if len({data for data, _ in ranks}) > 1:
        who = _who([f"{data} ({host})" for data, host in ranks])
        raise AgreedProblem(
            f"[data] the ranks read different training tokens: fingerprint {who}. Give all hosts the same data.path."
        )


def check_agreement(group: Group, config: Config, version: str, isa: str) -> None:
    """Compare what all ranks of `group` run (collective); `isa` is the label of this rank's kernel set.

    Different instruction sets are said; with `parallel.zero: 0`, where every rank updates all weights by itself, they
    would drift apart, and are refused.

    Raises:
        AgreedProblem: on all ranks, for differences that would spoil the run.
    """
    mine = {"version": version, "isa": isa, "config": config.model_dump(mode="json")}
    ranks = [json.loads(text) for text in group.all_gather_bytes(json.dumps(mine).encode())]
    problems = differences(ranks)
    if problems:
        raise AgreedProblem("\n".join(problems))
    isas = [rank["isa"] for rank in ranks]
    if len(set(isas)) == 1:
        return
    text = f"the ranks have different instruction sets: {_who(isas)}"
    if config.parallel.zero == 0:
        raise AgreedProblem(
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
