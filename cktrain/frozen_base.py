"""The frozen base of a run: the pretrained weights that it leaves as they are, by path and by what the files hold.

A checkpoint saves what trains. What is frozen stays in the Hugging Face folder that it came from, so the checkpoint names
that folder and the SHA-256 of its weight files, and nothing goes on from, or opens, a checkpoint over another base.
"""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cktrain.agreed import AgreedError
from cktrain.checkpoint_record import CheckpointError, FrozenBase
from cktrain.comm.group import Group
from cktrain.consistency_check import together
from cktrain.file_identity import changed_files, sha256_of_file, sha256_of_set, stamp_of_file
from cktrain.hf.gguf_file import is_gguf
from cktrain.hf.tensors import weight_files
from cktrain.memory.param import Param


class ChangedBaseError(CheckpointError):
    """The folder of a checkpoint's frozen weights is gone, or holds others."""


class OtherBaseError(CheckpointError, AgreedError):
    """The ranks, or a run and its checkpoint, have different frozen weights; the same text on all ranks."""


def record_base(
    folder: Path,
    frozen: Sequence[Param],
    group: Group,
    recorded: FrozenBase | None = None,
    quantize: str = "none",
) -> FrozenBase:
    """What a checkpoint says of the weights of `frozen`, read from `folder`. Collective: a host's ranks share the reading.

    Files that have the stamps of `recorded`, what the checkpoint that the run goes on from says, are not read. Raises
    ValueError when the folder has no weights, OtherBaseError when the hosts have different files there.
    """
    names = together(group, partial(weight_files, folder))
    folder = folder.parent if is_gguf(folder) else folder
    hosts = [text.decode() for text in group.all_gather_bytes(platform.node().encode())]
    here = [rank for rank, host in enumerate(hosts) if host == platform.node()]
    mine = names[here.index(group.rank) :: len(here)]
    found_here = together(group, partial(_identify, folder, mine, recorded))
    told = [json.loads(text) for text in group.all_gather_bytes(json.dumps(found_here).encode())]
    by_host: dict[str, dict[str, str]] = {}
    stamps: dict[str, list[int]] = {}
    for host, found in zip(hosts, told, strict=True):
        by_host.setdefault(host, {}).update({name: digest for name, (digest, _) in found.items()})
        if host == hosts[0]:
            stamps |= {name: stamp for name, (_, stamp) in found.items() if stamp}
    if len({sha256_of_set(digests) for digests in by_host.values()}) > 1:
        who = ", ".join(f"{sha256_of_set(digests)[:12]}… on {host}" for host, digests in by_host.items())
        raise OtherBaseError(
            f"[model] {folder} holds different weights on the hosts: SHA-256 {who}. Give all hosts the same folder."
        )
    shapes = {param.name: list(param.global_shape) for param in frozen}
    return FrozenBase(
        path=str(folder.absolute()),
        files=by_host[hosts[0]],
        stamps=stamps,
        tensors=shapes,
        quantize=quantize,
    )


def _identify(
    folder: Path, names: Sequence[str], recorded: FrozenBase | None
) -> dict[str, tuple[str, list[int]]]:
    """(SHA-256, stamp) of each file; what is recorded under the stamp that a file has now is taken for it."""
    found = {}
    for name in names:
        stamp = stamp_of_file(folder / name)
        known = recorded is not None and bool(stamp) and recorded.stamps.get(name) == stamp
        digest = recorded.files[name] if recorded and known else sha256_of_file(folder / name)
        found[name] = digest, stamp
    return found


def refuse_other_base(checkpoint: Path, recorded: FrozenBase | None, found: FrozenBase | None) -> None:
    """Raise OtherBaseError when a run whose frozen weights are `found` goes on from a checkpoint over other ones."""
    if recorded is None or found is None or recorded.files == found.files:
        return
    raise OtherBaseError(
        f"[checkpoint] {checkpoint}: its frozen weights are those of {recorded.path} (SHA-256 "
        f"{sha256_of_set(recorded.files)[:12]}…), and {found.path} holds others ({sha256_of_set(found.files)[:12]}…). "
        "Set model.from_pretrained to the folder that the run began with."
    )


def open_base(checkpoint: Path, base: FrozenBase) -> Path:
    """The folder of a checkpoint's frozen weights, or their GGUF file.

    Raises ChangedBaseError when it is gone, or holds other files now.
    """
    problems = changed_files(base.path, base.files, base.stamps)
    if problems and not Path(base.path).exists():
        raise ChangedBaseError(
            f"[checkpoint] {checkpoint} holds what was trained, over the frozen weights of {base.path}, which is not there. "
            f"Put it there (SHA-256 {sha256_of_set(base.files)[:12]}…), or a link to where it is now: ln -s WHERE "
            f"{shlex.quote(str(base.path))}. An adapter can leave it, too: cktrain export RUN OUT --adapter, then "
            "--adapter OUT beside the base."
        )
    if problems:
        raise ChangedBaseError(
            f"[checkpoint] {checkpoint} holds what was trained, over the frozen weights of {base.path}: "
            f"{'; '.join(problems[:3])}. Put the folder back as it was (SHA-256 {sha256_of_set(base.files)[:12]}…)."
        )
    first = Path(base.path, next(iter(base.files)))
    return first if is_gguf(first) else Path(base.path)
