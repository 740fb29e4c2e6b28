"""A program for mpirun: trains one run after another, each on a mesh of the first ranks of one world.

    mpirun -n 8 python layouts.py CASES.json RESULTS.json TRANSPORT

CASES is a list of {name, ranks, isa, config, steps}. RESULTS maps a name to {losses, norms, replicas, weights, arenas,
…}: what rank 0 saw, whether all copies of a weight are bitwise the same, a checksum of rank 0's weights, each rank's
memory; or to {error}.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cktrain.comm import bootstrap
from cktrain.comm.group import Group
from cktrain.compose import compose
from cktrain.config import Config
from cktrain.memory import arena


def checksum(array: np.ndarray) -> bytes:
    return hashlib.sha256(array.tobytes()).digest()


def copies_are_equal(part: Any) -> bool:
    """Whether data ranks compute with the same weights, and replicated spans are the same on all their ranks."""
    data = part.params.data
    checks = [(part.ranks.data, param.value) for param in part.params.params]
    checks += [(r.group, data[r.start : r.stop]) for r in part.partial.spans]
    return all(len(set(group.all_gather_bytes(checksum(array)))) == 1 for group, array in checks)


def arenas_made_since(before: set[int]) -> dict[str, int]:
    """Bytes by name of the arenas that were made for this case; a case before may not be gone yet."""
    made: Counter[str] = Counter()
    for number, (name, nbytes) in arena._ACCOUNTS.items():
        if number not in before:
            made[name] += nbytes
    return made


def run_case(case: dict[str, Any], group: Group) -> dict[str, Any]:
    os.environ["CKTRAIN_ISA"] = case["isa"]
    before = set(arena._ACCOUNTS)
    config = Config.model_validate(case["config"])
    run = compose(config, group, threads=case.get("threads", 1))
    try:
        trainer = run.trainer
        steps = [trainer.step() for _ in range(case["steps"])]
        part = trainer.part
        if case.get("save"):
            trainer.save()
        validation = trainer.validator.run().loss if trainer.validator else None
        arenas = json.dumps(arenas_made_since(before)).encode()
        equal = all(answer == b"1" for answer in group.all_gather_bytes(b"%d" % copies_are_equal(part)))
        return {
            "losses": [s.loss for s in steps],
            "norms": [s.grad_norm for s in steps],
            "tokens": [s.tokens for s in steps],
            "measures": [list(s.measures.values()) for s in steps],
            "validation": validation,
            "replicas": equal,
            "weights": checksum(part.params.data).hex(),
            "state_bytes": sum(a.nbytes for a in trainer.optimizer.state.values()),
            "parameter_bytes": part.params.data.nbytes,
            "arenas": [json.loads(text) for text in group.all_gather_bytes(arenas)],
        }
    finally:
        run.close()


def main(cases: str, results: str, transport: str) -> None:
    world = bootstrap.init(transport=transport)
    found = {}
    for number, case in enumerate(json.loads(Path(cases).read_text())):
        takes_part = world.rank < case["ranks"]
        group = world.split(0 if takes_part else 1, world.rank)
        done = Path(f"{results}.{number}")
        if not takes_part:
            while not done.exists():  # asleep, where a wait for the others would take a part of their core
                time.sleep(0.05)
            continue
        began = time.perf_counter()
        try:
            found[case["name"]] = run_case(case, group)
        except ValueError as error:
            found[case["name"]] = {"error": str(error)}
        if world.rank == 0:
            print(f"{case['name']:60} {time.perf_counter() - began:6.2f} s", flush=True)
            done.touch()
    if world.rank == 0:
        Path(results).write_text(json.dumps(found))
    world.close()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
