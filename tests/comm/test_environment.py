"""Who we are, as each launcher says it: variables as seen in the wild, and broken ones."""

from __future__ import annotations

import re

import pytest

from cktrain.comm.environment import (
    ProcessEnvironment,
    expand_tasks_per_node,
    job_name,
    meeting_address,
    read_process_environment,
)
from cktrain.comm.errors import RendezvousError

OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_RANK": "5",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}

CKTRAIN = {"CKTRAIN_RANK": "2", "CKTRAIN_SIZE": "3", "CKTRAIN_LOCAL_RANK": "0", "CKTRAIN_LOCAL_SIZE": "1"}


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, ProcessEnvironment(0, 1, 0, 1, "none")),
        (OPENMPI, ProcessEnvironment(5, 8, 1, 4, "openmpi")),
        (HYDRA, ProcessEnvironment(3, 4, 1, 2, "pmi")),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, ProcessEnvironment(3, 4, None, None, "pmi")),
        (SRUN, ProcessEnvironment(6, 7, 2, 3, "slurm")),
        ({"PMIX_RANK": "2"}, ProcessEnvironment(2, None, None, None, "pmix")),
        ({**SRUN, "PMIX_RANK": "6"}, ProcessEnvironment(6, 7, 2, 3, "slurm")),
        (TORCHRUN, ProcessEnvironment(1, 2, 1, 2, "torchrun")),
        # `cktrain launch` inside an allocation, or from a shell that an older job's variables were left in.
        ({**SRUN, **OPENMPI, **TORCHRUN, **CKTRAIN}, ProcessEnvironment(2, 3, 0, 1, "cktrain")),
        # mpirun inside a Slurm allocation: mpirun started this process.
        ({**SRUN, **OPENMPI}, ProcessEnvironment(5, 8, 1, 4, "openmpi")),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, ProcessEnvironment(0, 1, 0, 1, "pmi")),
    ],
)
def test_launchers(environ, expected):
    assert read_process_environment(environ) == expected


@pytest.mark.parametrize("step", ["4294967291", "4294967290", "4294967292", None])
def test_slurm_batch_script_is_no_task(step):
    """In sbatch's own script and salloc's shell SLURM_NTASKS is the allocation's, but one process runs."""
    environ = {key: value for key, value in SRUN.items() if key != "SLURM_STEP_ID"}
    if step is not None:
        environ["SLURM_STEP_ID"] = step
    environ["SLURM_PROCID"] = "0"
    assert read_process_environment(environ).source == "none"


@pytest.mark.parametrize(
    "environ, words",
    [
        ({**OPENMPI, "OMPI_COMM_WORLD_RANK": "8"}, "rank 8 of size 8"),
        ({**OPENMPI, "OMPI_COMM_WORLD_SIZE": "0"}, "size 0"),
        ({**OPENMPI, "OMPI_COMM_WORLD_LOCAL_RANK": "4"}, "local rank 4 of local size 4"),
        ({**TORCHRUN, "RANK": "-1"}, "rank -1"),
        ({**TORCHRUN, "WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a number"),
    ],
)
def test_contradictions_are_named(environ, words):
    with pytest.raises(RendezvousError, match=words):
        read_process_environment(environ)


ELASTIC = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("environ", "expected", "note"),
    [
        ({"CKTRAIN_SIZE": "1"}, ProcessEnvironment(0, 1, 0, 1, "cktrain"), ""),
        ({**SRUN, **OPENMPI, "CKTRAIN_SIZE": "1"}, ProcessEnvironment(0, 1, 0, 1, "cktrain"), ""),
        ({**SRUN, **OPENMPI, **CKTRAIN}, ProcessEnvironment(2, 3, 0, 1, "cktrain"), ""),
        # torchrun, which srun or mpirun has started once per node, started this process
        ({**SRUN, **ELASTIC}, ProcessEnvironment(1, 2, 1, 2, "torchrun"), "SLURM_PROCID and .* say rank 6 of 7"),
        ({**OPENMPI, **ELASTIC}, ProcessEnvironment(1, 2, 1, 2, "torchrun"), "OMPI_COMM_WORLD_RANK .* rank 5 of 8"),
        ({"PMIX_RANK": "4", **ELASTIC}, ProcessEnvironment(1, 2, 1, 2, "torchrun"), ""),
        # somebody exported torchrun's variables in a job script
        ({**SRUN, "RANK": "6", "WORLD_SIZE": "7"}, ProcessEnvironment(6, 7, 2, 3, "slurm"), ""),
        ({**SRUN, **TORCHRUN}, ProcessEnvironment(6, 7, 2, 3, "slurm"), "^RANK and WORLD_SIZE say rank 1 of 2$"),
        ({**OPENMPI, **SRUN}, ProcessEnvironment(5, 8, 1, 4, "openmpi"), "SLURM_PROCID .* rank 6 of 7"),
        ({**HYDRA, **OPENMPI}, ProcessEnvironment(5, 8, 1, 4, "openmpi"), "PMI_RANK and PMI_SIZE say rank 3 of 4"),
        # what nobody follows may be wrong
        ({**OPENMPI, "RANK": "x", "WORLD_SIZE": "y"}, ProcessEnvironment(5, 8, 1, 4, "openmpi"), ""),
        ({**OPENMPI, "RANK": "1"}, ProcessEnvironment(5, 8, 1, 4, "openmpi"), ""),
        ({"WORLD_SIZE": "1"}, ProcessEnvironment(), ""),
        ({"RANK": " 1 ", "WORLD_SIZE": "+2"}, ProcessEnvironment(1, 2, None, None, "torchrun"), ""),
    ],
)  # fmt: skip
def test_one_launcher_is_followed_and_others_are_told(environ, expected, note):
    found = read_process_environment(environ)
    assert found == expected
    assert re.search(note, found.note) if note else not found.note


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "1"}, "RANK='1' is set and WORLD_SIZE is not.* to run alone set CKTRAIN_SIZE=1"),
        ({"RANK": "0"}, "RANK='0' is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE='4' is set and RANK is not"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE='2' is set and PMI_RANK is not"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is not"),
        ({"CKTRAIN_RANK": "0"}, "CKTRAIN_RANK='0' is set and CKTRAIN_SIZE is not"),
        ({**SRUN, "CKTRAIN_SIZE": "4"}, "CKTRAIN_SIZE='4' is set and CKTRAIN_RANK is not"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK='' is not a number. Unset RANK"),
        ({"RANK": "1.0", "WORLD_SIZE": "2"}, "RANK='1.0' is not a number"),
        ({"RANK": "1_0", "WORLD_SIZE": "20"}, "RANK='1_0' is not a number"),
        ({"RANK": "²", "WORLD_SIZE": "20"}, "RANK='²' is not a number"),
        ({"RANK": "9" * 5000, "WORLD_SIZE": "20"}, "is not a number"),
        ({**SRUN, "SLURM_PROCID": "x"}, "SLURM_PROCID='x' is not a number"),
        ({**SRUN, "SLURM_STEP_ID": ""}, "SLURM_STEP_ID='' is not a number"),
        ({**TORCHRUN, "LOCAL_RANK": "x"}, "LOCAL_RANK='x' is not a number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, "4 ranks on this node of 2 in all"),
        ({**SRUN, "SLURM_PROCID": "7"}, "SLURM_PROCID and SLURM_STEP_NUM_TASKS. gives rank 7 of size 7"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_variables(environ, words):
    with pytest.raises(RendezvousError, match=words):
        read_process_environment(environ)


@pytest.mark.parametrize(
    "master",
    [
        {"MASTER_ADDR": "h"}, {"MASTER_PORT": "29500"}, {"MASTER_ADDR": "h", "MASTER_PORT": "http"},
        {"MASTER_ADDR": "h", "MASTER_PORT": "²"}, {"MASTER_ADDR": "h", "MASTER_PORT": "70000"},
        {"MASTER_ADDR": "h", "MASTER_PORT": ""}, {"MASTER_ADDR": "h", "MASTER_PORT": "0"},
        {"MASTER_ADDR": "h", "MASTER_PORT": "65535", "TORCHELASTIC_USE_AGENT_STORE": "True"},
    ],
)  # fmt: skip
def test_a_master_that_is_no_address_is_named(master):
    with pytest.raises(RendezvousError, match=r"MASTER_ADDR=.* and MASTER_PORT=.* are no host and port"):
        meeting_address({**TORCHRUN, **master})
    assert meeting_address({**SRUN, **master}) is None  # another program's


@pytest.mark.parametrize(
    "text, tasks",
    [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2(x2)", [1, 2, 2]), ("", []), ("2(x", []), ("two", [])],
)
def test_tasks_per_node(text, tasks):
    assert expand_tasks_per_node(text) == tasks


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({"CKTRAIN_JOB": "a", "PMIX_NAMESPACE": "b"}, "a"),
        ({"PMIX_NAMESPACE": "prterun-x-1@1"}, "prterun-x-1@1"),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, "slurm-7-0"),
        ({"MASTER_ADDR": "h", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "r"}, "h-29500-r"),
        ({}, "parent-42"),
    ],
)
def test_job_name(environ, expected):
    assert job_name(environ, 42) == expected


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, None),
        ({"CKTRAIN_RENDEZVOUS": "node7:1234", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, ("node7", 1234)),
        ({"MASTER_ADDR": "x", "MASTER_PORT": "29500"}, ("x", 29500)),
        ({"MASTER_ADDR": "x", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}, ("x", 29501)),
    ],
)
def test_meeting_address(environ, expected):
    assert meeting_address(environ) == expected


@pytest.mark.parametrize("text", ["host", ":1", "host:", "host:0", "host:99999", "host:http"])
def test_meeting_address_that_is_none(text):
    with pytest.raises(RendezvousError, match="host:port"):
        meeting_address({"CKTRAIN_RENDEZVOUS": text})
