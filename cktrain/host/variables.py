"""The environment variables that are cktrain's own. One that is set and is none of them is mostly a slip of the pen."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

PREFIX = "CKTRAIN_"
VARIABLES = {
    "CKTRAIN_ISA": "the instruction set of the kernels, instead of the best that the CPU has",
    "CKTRAIN_LIBDNNL": "the libdnnl of `CKTRAIN_ISA=onednn`",
    "CKTRAIN_VERBS": "the provider of RDMA verbs: native or pyverbs",
    "CKTRAIN_SIZE": "how many ranks there are; 1 runs alone whatever launchers say",
    "CKTRAIN_RANK": "this rank's number, with CKTRAIN_SIZE",
    "CKTRAIN_LOCAL_SIZE": "how many ranks its node has",
    "CKTRAIN_LOCAL_RANK": "its number among them",
    "CKTRAIN_NODE": "a name of its node, where the host does not tell nodes apart",
    "CKTRAIN_JOB": "a name of the job, which ranks that meet have in common",
    "CKTRAIN_RENDEZVOUS": "host:port at which rank 0 listens",
    "CKTRAIN_SECRET_FILE": "the file of the secret that ranks on several nodes show each other",
    "CKTRAIN_LAUNCHER": "set by `cktrain launch`: the command that the line to resume begins with",
    "CKTRAIN_DEMO_DIR": "where `./run demo` writes",
    "CKTRAIN_FINETUNE_DIR": "where `./run finetune` writes",
    "CKTRAIN_FINETUNE_ROWS": "how many rows `./run finetune` makes; 400 unless it is set",
    "CKTRAIN_BUILT": "where compiled modules are kept while cktrain is built",
}
"""Each with what it says."""
_OF_TESTS = "CKTRAIN_TEST_"


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like cktrain's and is none, with the closest that is."""
    said = []
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name in VARIABLES or name.startswith(_OF_TESTS):
            continue
        rest = name.upper().removeprefix(PREFIX)
        near = difflib.get_close_matches(rest, [known.removeprefix(PREFIX) for known in VARIABLES], n=1)
        told = (
            f"Did you mean {PREFIX}{near[0]}?"
            if near
            else f"{_elsewhere(name)}docs/launch.md lists those that are."
        )
        said.append(f"{name} is set, and is no variable of cktrain's: it has no effect. {told}")
    return said


def _elsewhere(name: str) -> str:
    """Threads are often asked for in a variable; here they are a key."""
    return "Threads are set by launch.threads. " if "THREADS" in name.upper() else ""
