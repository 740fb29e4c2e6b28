"""init without mpirun: one process needs no MPI; several need one, and are told how to get it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from cktrain.comm import bootstrap
from cktrain.comm.bootstrap import abort, init
from cktrain.comm.environment import ProcessEnvironment
from cktrain.comm.errors import RendezvousError, TransportUnavailableError
from cktrain.comm.solo_group import SoloGroup


@pytest.mark.parametrize("transport", ["auto", "mpi"])
@pytest.mark.parametrize("environ", [{}, {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}])
def test_one_process_is_solo(transport, environ):
    group = init(transport=transport, timeout_s=7, environ=environ)
    assert isinstance(group, SoloGroup)
    assert (group.rank, group.size, group.name, group.timeout_s) == (0, 1, "world", 7)


def test_unknown_transport():
    with pytest.raises(ValueError, match=r"'pigeon'.* auto, rdma, mpi, shm, tcp"):
        init(transport="pigeon", environ={})


@pytest.mark.parametrize("error", [ImportError("No module named mpi4py"), RuntimeError("cannot load MPI\nx")])
def test_missing_mpi_is_explained(monkeypatch, error):
    class Refusing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "mpi4py":
                raise error

    for name in [n for n in sys.modules if n.split(".")[0] == "mpi4py" or n == "cktrain.comm.mpi_group"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    with pytest.raises(TransportUnavailableError) as caught:
        init(environ={"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"})
    message = str(caught.value)
    assert 'pip install "cktrain[mpi]"' in message
    assert "rank 1: shm: " in message and "mpi: mpi4py does not load: " in message
    assert "\n" not in message
    assert list(caught.value.reasons) == [1]


INTERACTIVE = {
    "SLURM_JOB_ID": "test-interactive",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_NODEID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "4",
    "SLURM_PTY_PORT": "40000",
}


def test_ranks_that_nobody_starts_are_told_at_once_and_by_whom(caplog):
    """`srun --pty bash`, then a run in that shell: Slurm's variables say four tasks."""
    with caplog.at_level("INFO", "cktrain.comm"), pytest.raises(RendezvousError) as caught:
        init(environ={**INTERACTIVE, "WORLD_SIZE": "8", "RANK": "0"}, timeout_s=0.05)
    said = caplog.messages[0]
    assert "rank 0 of 4 by SLURM_PROCID and SLURM_STEP_NUM_TASKS: waiting up to 0.05 s for 3 others" in said
    assert "not followed: RANK and WORLD_SIZE say rank 0 of 8" in said
    assert "interactive" in said and "CKTRAIN_SIZE=1" in said
    message = str(caught.value)
    assert "local ranks 1, 2, 3 of 4 did not come" in message
    assert "(rank 0 of 4 by SLURM_PROCID and SLURM_STEP_NUM_TASKS)" in message
    assert message.endswith("if nobody started other ranks, set CKTRAIN_SIZE=1.")
    assert isinstance(init(environ={**INTERACTIVE, "CKTRAIN_SIZE": "1"}), SoloGroup)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
def test_an_address_that_leads_nowhere_is_named(host):
    environ = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": "29500"}
    with pytest.raises(RendezvousError, match="rank 1 of 2 by RANK and WORLD_SIZE") as caught:
        init(transport="tcp", environ=environ, timeout_s=0.05)
    assert repr(host) in str(caught.value) or host in str(caught.value)


def test_variables_of_an_older_job_without_an_address_are_named():
    with pytest.raises(TransportUnavailableError) as caught:
        init(environ={"RANK": "0", "WORLD_SIZE": "2"}, timeout_s=0.05)
    assert str(caught.value).endswith(
        "if nobody started other ranks (RANK and WORLD_SIZE say so), set CKTRAIN_SIZE=1."
    )


def test_a_rank_that_mpi_does_not_have_is_refused(monkeypatch):
    """PMIX_RANK=2 of an older job: MPI starts a world of one, whose only rank would train as a silent rank 2."""
    monkeypatch.setitem(sys.modules, "cktrain.comm.mpi_group", SimpleNamespace(library=lambda: "an MPI"))
    options = SimpleNamespace(process=ProcessEnvironment(2, None, None, None, "pmix"))
    with pytest.raises(RendezvousError, match=r"mpi4py's MPI \(an MPI\) sees 1"):
        bootstrap._check_mpi_size(options, 1)
    bootstrap._check_mpi_size(options, 3)


def test_abort_flushes_and_exits():
    code = (
        "from cktrain.comm.bootstrap import abort, init\n"
        "group = init(environ={})\n"
        "print('last words', end='')\n"
        "abort(group, 3)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (3, "last words")


def test_abort_of_a_solo_group_is_an_exit():
    with pytest.raises(SystemExit):
        abort(SoloGroup(), 1)


def test_binding_needs_no_numpy():
    """What runs before the binding must not load numpy: its BLAS would start threads on all cores."""
    code = (
        "import sys\n"
        "import cktrain.comm, cktrain.comm.environment, cktrain.comm.errors\n"
        "import cktrain.launch, cktrain.host.bind, cktrain.host.topology\n"
        "assert 'numpy' not in sys.modules and 'mpi4py' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
