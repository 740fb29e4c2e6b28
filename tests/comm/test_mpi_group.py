"""MPIGroup under mpirun: the conformance checks, deadlines, mismatches, exit statuses, dying ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_conformance(run_ranks, ranks):
    job = run_ranks(ranks, "mpi_program.py", "run_conformance")
    assert job.status == 0, job.output
    assert "checks run: 20" in job.output


@pytest.mark.parametrize("ranks", [2, 3])
def test_conformance_with_messages_cut_in_pieces(run_ranks, ranks):
    job = run_ranks(ranks, "mpi_program.py", "run_conformance_in_pieces")
    assert job.status == 0, job.output
    assert "in pieces: done" in job.output


def test_deadline(run_ranks):
    job = run_ranks(2, "mpi_program.py", "wait_for_absent_rank", limit_s=30)
    assert job.status == 1, job.output
    assert (
        "[comm.mpi] rank 0: all_reduce(float32[10], sum) on group world not complete after 1 s" in job.output
    )
    assert "Traceback" not in job.output


@pytest.mark.parametrize(
    "difference, mine, theirs",
    [
        ("length", "all_reduce(float32[50], sum)", "all_reduce(float32[51], sum)"),
        ("dtype", "all_reduce(float64[100], sum)", "all_reduce(float32[100], sum)"),
        ("op", "all_reduce(float32[100], sum)", "all_reduce(float32[100], max)"),
        ("operation", "all_reduce(float32[100], sum)", "barrier"),
        ("root", "broadcast(float32[100], root=0)", "broadcast(float32[100], root=1)"),
        (
            "lengths",
            "all_to_all(float32, 2 to and 1 from rank 1)",
            "all_to_all(float32, 1 to and 1 from rank 0)",
        ),
    ],
)
def test_mismatch_is_named_on_both_sides(run_ranks, difference, mine, theirs):
    job = run_ranks(2, "mpi_program.py", "call_different_things", difference)
    assert job.status == 1, job.output
    assert f"[comm.mpi] rank 0 called {mine}, but rank 1 called {theirs}. " in job.output
    assert f"[comm.mpi] rank 1 called {theirs}, but rank 0 called {mine}. " in job.output


@pytest.mark.parametrize("sent, expected", [(3, 5), (5, 3), (100_000, 99_999), (99_999, 100_000), (0, 1)])
def test_message_of_another_length(run_ranks, sent, expected):
    job = run_ranks(2, "mpi_program.py", "receive_another_length", str(sent), str(expected))
    assert job.status == 1, job.output
    assert f"[comm.mpi] rank 1 called recv(float32[{expected:,}], source=0)" in job.output


@pytest.mark.parametrize(
    "sent, expected", [(3, 5), (5, 3), (0, 1), (1, 0), (100_000, 99_999), (99_999, 100_000)]
)
def test_all_to_all_of_another_length(run_ranks, sent, expected):
    job = run_ranks(2, "mpi_program.py", "exchange_another_length", str(sent), str(expected))
    assert job.status == 1 and "AssertionError" not in job.output, job.output
    assert "[comm.mpi] rank 1 called all_to_all(float32" in job.output, job.output


@pytest.mark.parametrize("status", [0, 2, 75])
def test_exit_status_comes_through_mpirun(run_ranks, status):
    job = run_ranks(2, "mpi_program.py", "exit_with", str(status))
    assert job.status == status, job.output


def test_exception_on_one_rank_ends_all(run_ranks):
    job = run_ranks(3, "mpi_program.py", "fail_on_one_rank", limit_s=20)
    assert job.status == 1, job.output
    assert "a mistake on one rank" in job.output


def test_exception_that_nobody_catches_ends_all(run_ranks):
    """MPI is not finalized at exit, where the dying rank would wait for the others for ever."""
    job = run_ranks(2, "mpi_program.py", "fail_without_a_frame", limit_s=20)
    assert job.status == 1, job.output
    assert "nobody catches this" in job.output


def test_waiting_rank_leaves_its_core_to_others(run_ranks):
    """It sleeps in its wait of 2 s; who spins never does. How long depends on what else the machine does."""
    job = run_ranks(2, "mpi_program.py", "sleep_in_a_wait")
    assert float(re.search(r"slept: (\S+)", job.output)[1]) > 0.05, job.output


def test_mpirun_of_another_mpi_is_explained(mpirun):
    """Rank and size from a launcher that this MPI does not know: MPI then starts as a world of one."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PMIX", "PRTE"))}
    environment |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    # Singletons of Open MPI find their library only where mpirun's folder is the environment's.
    environment["LD_LIBRARY_PATH"] = str(Path(mpirun(1)[0]).resolve().parent.parent / "lib")
    code = "from cktrain.comm.bootstrap import init; init(transport='mpi', timeout_s=5)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "RendezvousError: [comm.mpi] the openmpi environment says rank 0 of 2 ranks, but" in result.stderr
    assert "sees 1" in result.stderr
    assert "mpirun" in result.stderr.splitlines()[-1]
