"""init without mpirun: one process needs no MPI; several need one, and are told how to get it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cktrain.comm.bootstrap import abort, init
from cktrain.comm.errors import TransportUnavailableError
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
        "import cktrain.launch, cktrain.launch.bind, cktrain.launch.topology\n"
        "assert 'numpy' not in sys.modules and 'mpi4py' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
