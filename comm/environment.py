"""Who this process is, as the launcher that started it says in environment variables.

Pure parsing, without numpy and without MPI: `launch` reads it before numpy loads, to bind the process to its
cores. Launchers are looked for in this order, and the first that tells both rank and size is followed:

| source | variables |
|---|---|
| cktrain | CKTRAIN_{RANK,SIZE,LOCAL_RANK,LOCAL_SIZE} (`cktrain launch`) |
| openmpi | OMPI_COMM_WORLD_{SIZE,RANK,LOCAL_RANK,LOCAL_SIZE} (Open MPI's mpirun) |
| pmi | PMI_{SIZE,RANK}, MPI_LOCALRANKID, MPI_LOCALNRANKS (MPICH's and Intel MPI's mpiexec, srun --mpi=pmi2) |
| slurm | SLURM_{STEP_ID,PROCID,LOCALID,NODEID,STEP_NUM_TASKS,STEP_TASKS_PER_NODE} (srun) |
| pmix | PMIX_RANK alone (another PMIx launcher; it tells no size) |
| torchrun | RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE |
| none | a process on its own |

torchrun's own mark, TORCHELASTIC_RUN_ID, puts it before all but cktrain: it is started by srun or mpirun, never they by
it. CKTRAIN_SIZE=1 alone says that this is a process on its own, whatever an older job or an interactive step has left in
the shell. Where another launcher's variables say something else, `note` tells it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cktrain.comm.errors import RendezvousError

# Slurm's reserved step ids: pending, extern, batch and interactive steps are not srun's tasks, and carry
# SLURM_PROCID=0 and SLURM_NTASKS all the same.
_FIRST_RESERVED_STEP = 0xFFFFFFF0
VARIABLES = {
    "cktrain": "CKTRAIN_RANK and CKTRAIN_SIZE",
    "openmpi": "OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE",
    "pmi": "PMI_RANK and PMI_SIZE",
    "slurm": "SLURM_PROCID and SLURM_STEP_NUM_TASKS",
    "pmix": "PMIX_RANK",
    "torchrun": "RANK and WORLD_SIZE",
}
"""Of each source, what tells rank and size."""
ALONE = "CKTRAIN_SIZE=1"
"""What to set to run alone in an environment that says otherwise."""


@dataclass(frozen=True)
class ProcessEnvironment:
    """Place of this process in its job; `None` where the launcher does not tell."""

    rank: int = 0
    size: int | None = 1
    local_rank: int | None = 0
    """Rank among the processes of this node."""
    local_size: int | None = 1
    """Number of the job's processes on this node."""
    source: str = "none"
    """Which launcher spoke; "none" for a process on its own."""
    note: str = field(default="", compare=False)
    """What else the environment says that was not followed; empty mostly."""

    @property
    def place(self) -> tuple[int, int | None]:
        """Rank and size."""
        return self.rank, self.size

    @property
    def variables(self) -> str:
        """The variables that gave rank and size, for messages."""
        return VARIABLES.get(self.source, "no launcher's variables")


def read_process_environment(environ: Mapping[str, str]) -> ProcessEnvironment:
    """Return what `environ` says of this process.

    Raises:
        RendezvousError: a variable is not a number, or rank and size contradict each other.
    """
    found = _read(environ)
    for rank_name, rank, size_name, size in (
        ("rank", found.rank, "size", found.size),
        ("local rank", found.local_rank, "local size", found.local_size),
    ):
        if size is not None and size < 1:
            raise RendezvousError(
                "comm",
                f"the {found.source} environment ({found.variables}) gives {size_name} {size}",
                "Start the job anew",
            )
        if rank is not None and (rank < 0 or (size is not None and rank >= size)):
            raise RendezvousError(
                "comm",
                f"the {found.source} environment ({found.variables}) gives {rank_name} {rank} of {size_name} {size}",
                "Start the job anew, or unset the variables that an older job left behind",
            )
    if None not in (found.size, found.local_size) and found.local_size > found.size:  # type: ignore[operator]
        raise RendezvousError(
            "comm",
            f"the {found.source} environment gives {found.local_size} ranks on this node of {found.size} in all",
            "Start the job anew, or unset the variables that an older job left behind",
        )
    return found


def _read(environ: Mapping[str, str]) -> ProcessEnvironment:
    """The first launcher that tells rank and size."""
    if _number(environ, "CKTRAIN_SIZE") == 1 and "CKTRAIN_RANK" not in environ:
        return ProcessEnvironment(source="cktrain")
    pairs = {names[0]: partial(_pair, environ, *names) for names in _PAIRS}
    readers = [
        *([pairs["torchrun"]] if "TORCHELASTIC_RUN_ID" in environ else []),
        pairs["openmpi"],
        pairs["pmi"],
        partial(_slurm, environ),
        partial(_pmix, environ),
        pairs["torchrun"],
    ]
    chosen = pairs["cktrain"]()
    if chosen is not None:  # `cktrain launch` knows what it does, wherever it was called
        return chosen
    _refuse_halves(environ, _PAIRS[:1])
    other = []
    for read in readers:
        try:
            found = read()
        except RendezvousError:
            if chosen is None:
                raise
            continue  # what nobody follows may be wrong
        if chosen is None:
            chosen = found
        elif found is not None and None not in (found.size, chosen.size) and found.place != chosen.place:
            other.append(f"{found.variables} say rank {found.rank} of {found.size}")
    if chosen is None:
        _refuse_halves(environ, _PAIRS)
        return ProcessEnvironment()
    return replace(chosen, note="; ".join(other))


_PAIRS = (
    ("cktrain", "CKTRAIN_RANK", "CKTRAIN_SIZE", "CKTRAIN_LOCAL_RANK", "CKTRAIN_LOCAL_SIZE"),
    (
        "openmpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
)


def _pair(
    environ: Mapping[str, str], source: str, rank: str, size: str, local_rank: str, local_size: str
) -> ProcessEnvironment | None:
    """What a launcher says that tells rank and size in two variables; None where one is not there."""
    if rank not in environ or size not in environ:
        return None
    this, all_ranks = _number(environ, rank), _number(environ, size)
    assert this is not None and all_ranks is not None
    return _made(source, this, all_ranks, _number(environ, local_rank), _number(environ, local_size))


def _made(
    source: str, rank: int, size: int, local_rank: int | None, local_size: int | None
) -> ProcessEnvironment:
    if size == 1:  # one process in the job is one process on its node, said or unsaid
        local_rank, local_size = 0, 1
    return ProcessEnvironment(rank, size, local_rank, local_size, source)


def _pmix(environ: Mapping[str, str]) -> ProcessEnvironment | None:
    rank = _number(environ, "PMIX_RANK")
    return None if rank is None else ProcessEnvironment(rank, None, None, None, "pmix")


def _slurm(environ: Mapping[str, str]) -> ProcessEnvironment | None:
    step = _number(environ, "SLURM_STEP_ID", "SLURM_STEPID")
    if step is None or not 0 <= step < _FIRST_RESERVED_STEP:
        return None
    rank, size = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if rank is None or size is None:
        return None
    tasks = expand_tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(environ, "SLURM_NODEID")
    local_size = tasks[node] if node is not None and 0 <= node < len(tasks) else None
    return _made("slurm", rank, size, _number(environ, "SLURM_LOCALID"), local_size)


def _refuse_halves(environ: Mapping[str, str], pairs: Sequence[tuple[str, ...]]) -> None:
    """Who tells only one of rank and size has started several processes all the same, or was meant to tell both."""
    for _, rank, size, *_ in pairs:
        for given, missing in ((rank, size), (size, rank)):
            if (
                given in environ
                and missing not in environ
                and environ[given].strip() != "1" * (given == size)
            ):
                raise RendezvousError(
                    "comm",
                    f"{given}={environ[given]!r} is set and {missing} is not",
                    f"Set both, or unset {given}; to run alone set {ALONE}",
                )


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    """The first of the variables that is set, as a number."""
    for name in names:
        if name in environ:
            text = environ[name].strip()
            if re.fullmatch(r"[+-]?[0-9]{1,10}", text):
                return int(text)
            raise RendezvousError(
                "comm", f"{name}={environ[name][:80]!r} is not a number", f"Unset {name} or set it right"
            )
    return None


def job_name(environ: Mapping[str, str], parent: int) -> str:
    """A name that all ranks of this job on a node know, and no other job has at the same time.

    CKTRAIN_JOB if it is set, else the launcher's own name of the job, else the process id of its `parent`, the
    launcher's daemon on this node.
    """
    if environ.get("CKTRAIN_JOB"):
        return environ["CKTRAIN_JOB"]
    if environ.get("PMIX_NAMESPACE"):
        return environ["PMIX_NAMESPACE"]
    if "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" in environ:
        return f"slurm-{environ['SLURM_JOB_ID']}-{environ['SLURM_STEP_ID']}"
    if "MASTER_PORT" in environ:
        run = environ.get("TORCHELASTIC_RUN_ID", "")
        return f"{environ.get('MASTER_ADDR', '')}-{environ['MASTER_PORT']}-{run}"
    return f"parent-{parent}"


def meeting_address(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Host and port where rank 0 listens: CKTRAIN_RENDEZVOUS, or torchrun's; None where nobody says.

    torchrun's agent listens at its own port itself, so the ranks take the next one.

    Raises:
        RendezvousError: not of the form host:port.
    """
    if given := environ.get("CKTRAIN_RENDEZVOUS"):
        host, _, port = given.rpartition(":")
        if host and _is_port(port):
            return host.strip("[]"), int(port)
        raise RendezvousError(
            "comm", f"CKTRAIN_RENDEZVOUS={given!r} is not host:port", "Set it to the address of rank 0's host"
        )
    address, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    if not address and not port:
        return None
    beside_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not address or not _is_port(port) or int(port) + beside_agent > 65535:
        if read_process_environment(environ).source != "torchrun":  # another program's
            return None
        raise RendezvousError(
            "comm",
            f"MASTER_ADDR={address!r} and MASTER_PORT={port!r} are no host and port",
            "Set both to where rank 0 listens, or CKTRAIN_RENDEZVOUS=host:port",
        )
    return address, int(port) + beside_agent


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and 0 < int(text) < 65536


def expand_tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's "2(x3),1" to [2, 2, 2, 1]; an empty list where the text is of another form."""
    tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return []
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks
