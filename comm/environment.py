"""Who this process is, as the launcher that started it says in environment variables.

Pure parsing, without numpy and without MPI: `launch` reads it before numpy loads, to bind the process to its
cores. Launchers are looked for in this order, and the first that is found speaks alone:

| source | variables |
|---|---|
| cktrain | CKTRAIN_{RANK,SIZE,LOCAL_RANK,LOCAL_SIZE} (`cktrain launch`) |
| openmpi | OMPI_COMM_WORLD_{SIZE,RANK,LOCAL_RANK,LOCAL_SIZE} (Open MPI's mpirun) |
| pmi | PMI_{SIZE,RANK}, MPI_LOCALRANKID, MPI_LOCALNRANKS (MPICH's and Intel MPI's mpiexec, srun --mpi=pmi2) |
| slurm | SLURM_{STEP_ID,PROCID,LOCALID,NODEID,STEP_NUM_TASKS,STEP_TASKS_PER_NODE} (srun) |
| pmix | PMIX_RANK alone (another PMIx launcher; it tells no size) |
| torchrun | RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE |
| none | a process on its own |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cktrain.comm.errors import RendezvousError

# Slurm's reserved step ids: pending, extern, batch and interactive steps are not srun's tasks, and carry
# SLURM_PROCID=0 and SLURM_NTASKS all the same.
_FIRST_RESERVED_STEP = 0xFFFFFFF0


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
                "comm", f"the {found.source} environment gives {size_name} {size}", "Start the job anew"
            )
        if rank is not None and (rank < 0 or (size is not None and rank >= size)):
            raise RendezvousError(
                "comm",
                f"the {found.source} environment gives {rank_name} {rank} of {size_name} {size}",
                "Start the job anew, or unset the variables that an older job left behind",
            )
    return found


def _read(environ: Mapping[str, str]) -> ProcessEnvironment:
    def number(*names: str) -> int | None:
        for name in names:
            if name in environ:
                try:
                    return int(environ[name])
                except ValueError:
                    raise RendezvousError(
                        "comm", f"{name}={environ[name]!r} is not a number", f"Unset {name} or set it right"
                    ) from None
        return None

    def make(
        source: str, rank: int, size: int, local_rank: int | None, local_size: int | None
    ) -> ProcessEnvironment:
        if size == 1:  # one process in the job is one process on its node, said or unsaid
            local_rank, local_size = 0, 1
        return ProcessEnvironment(rank, size, local_rank, local_size, source)

    for source, rank_name, size_name, local_rank_name, local_size_name in (
        ("cktrain", "CKTRAIN_RANK", "CKTRAIN_SIZE", "CKTRAIN_LOCAL_RANK", "CKTRAIN_LOCAL_SIZE"),
        (
            "openmpi",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
        ("pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ):
        rank, size = number(rank_name), number(size_name)
        if rank is not None and size is not None:
            return make(source, rank, size, number(local_rank_name), number(local_size_name))

    step = number("SLURM_STEP_ID", "SLURM_STEPID")
    rank, size = number("SLURM_PROCID"), number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if step is not None and 0 <= step < _FIRST_RESERVED_STEP and rank is not None and size is not None:
        tasks = expand_tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        node = number("SLURM_NODEID")
        local_size = tasks[node] if node is not None and 0 <= node < len(tasks) else None
        return make("slurm", rank, size, number("SLURM_LOCALID"), local_size)

    rank = number("PMIX_RANK")
    if rank is not None:
        return ProcessEnvironment(rank, None, None, None, "pmix")

    rank, size = number("RANK"), number("WORLD_SIZE")
    if rank is not None and size is not None:
        return make("torchrun", rank, size, number("LOCAL_RANK"), number("LOCAL_WORLD_SIZE"))
    return ProcessEnvironment()


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
        if host and port.isdigit() and 0 < int(port) < 65536:
            return host.strip("[]"), int(port)
        raise RendezvousError(
            "comm", f"CKTRAIN_RENDEZVOUS={given!r} is not host:port", "Set it to the address of rank 0's host"
        )
    if environ.get("MASTER_ADDR") and environ.get("MASTER_PORT", "").isdigit():
        beside_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return environ["MASTER_ADDR"], int(environ["MASTER_PORT"]) + beside_agent
    return None


def expand_tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's "2(x3),1" to [2, 2, 2, 1]; an empty list where the text is of another form."""
    tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return []
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks
