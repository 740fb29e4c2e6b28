"""The headline job: one mpirun over two machines with an RDMA device each, reached by ssh, trains as one process does.

Both guests have two NUMA nodes with a core each. They boot once; `two_nodes.sh` runs the jobs, and the tests read what
it left. The data is the demo's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import guest
import numpy as np
import pytest
import yaml
from guest import Machine

# They read what one boot left, so the stage gives this file to one worker.
pytestmark = pytest.mark.guest

ROOT = Path(__file__).resolve().parents[2]
DEMO_DATA = ROOT / "data" / "demo"
CKTRAIN = [sys.executable, "-m", "cktrain.launch.cli"]
MACHINE = Machine(cpus=2, memory_mib=1536, numa_nodes=2)
STEPS = 20


class Jobs:
    """What the jobs left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def output(self, name: str, status: int = 0) -> str:
        """What a job printed; that it ended with another status is an error."""
        text = (self.folder / f"{name}.out").read_text()
        assert (self.folder / f"{name}.status").read_text() == f"{status}\n", text
        return text

    def losses(self, name: str) -> list[float]:
        """Of all steps, as written into metrics.jsonl: the shortest digits that give the same fp64 number."""
        lines = (self.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def packets(self, name: str) -> dict[tuple[str, str], int]:
        """Of the job, by host and counter."""
        before, after = (self._counters(f"{name}.{when}") for when in ("before", "after"))
        return {key: after[key] - before[key] for key in before}

    def _counters(self, name: str) -> dict[tuple[str, str], int]:
        words = [line.split() for line in (self.folder / name).read_text().splitlines()]
        return {(host, counter): int(value) for host, counter, value in words}

    def log(self, name: str, rank: int) -> str:
        """A rank's own log."""
        return (self.folder / "runs" / name / f"rank{rank}.log").read_text()

    def ranks(self, name: str) -> dict[str, Path]:
        """What the kernel said of each rank, by HOST.RANK."""
        return {path.name: path for path in sorted((self.folder / f"{name}.ranks").iterdir())}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, compiled: None) -> Jobs:
    guest.setup()
    prepare = [
        *CKTRAIN,
        "data",
        "prepare",
        "python-stdlib",
        str(DEMO_DATA),
        "--vocab-size",
        "2048",
        "--reuse",
    ]
    subprocess.run(prepare, cwd=ROOT, check=True)
    shared = tmp_path_factory.mktemp("shared")
    shutil.copytree(DEMO_DATA, shared / "data" / "demo")
    (shared / "examples").symlink_to(ROOT / "examples")
    variables = {
        # With mpirun and cktrain; ssh gives it to what it starts.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # MPI's own messages go over TCP, whatever else it finds.
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "self,sm,tcp",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    here = os.getcwd()
    os.chdir(ROOT)
    try:
        status = guest.run(
            ["bash", "tests/guest/two_nodes.sh"],
            MACHINE,
            joined=True,
            variables=variables,
            share=shared,
            time_limit_s=900,
        )
    finally:
        os.chdir(here)
    assert status == 0
    return Jobs(shared)


@pytest.fixture(scope="module")
def weights() -> int:
    """Parameters of the example's model: embedding (tied), and per layer attention, SwiGLU and two norms; a last norm."""
    model = yaml.safe_load((ROOT / "examples" / "two_nodes_rdma.yaml").read_text())["model"]
    hidden, heads, kv = (
        model[f"{key}"] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    attention = 2 * hidden * hidden + 2 * hidden * (hidden // heads * kv)
    layer = attention + 3 * hidden * model["intermediate_size"] + 2 * hidden
    return model["vocab_size"] * hidden + model["num_hidden_layers"] * layer + hidden


def test_losses_of_two_machines_are_those_of_one_process(jobs: Jobs) -> None:
    jobs.output("two_nodes_rdma")
    jobs.output("one")
    two, one = jobs.losses("two_nodes_rdma"), jobs.losses("one")
    assert len(two) == STEPS
    assert two == one  # to the bit, as run.deterministic promises
    assert min(two) < two[0] - 0.5  # it learns


def test_gradients_and_weights_travel_by_rdma_on_both_machines(jobs: Jobs, weights: int) -> None:
    assert "transport: rdma (asked for)" in jobs.output("two_nodes_rdma")
    # Of two ranks each sends half of the gradients and half of the new weights in every step, in fp32, in packets of at
    # most 4096 bytes (the largest path MTU that there is).
    least = STEPS * 2 * (4 * weights // 2) // 4096
    packets = jobs.packets("two_nodes_rdma")
    assert len(packets) == 4
    for key, count in packets.items():
        assert count > least, (key, packets)
    alone = jobs.packets("one")
    assert set(alone.values()) == {0}, alone


def test_ranks_are_pinned_under_mpirun(jobs: Jobs) -> None:
    """One rank on each machine has both cores, where mpirun had given it one, and interleaves its memory."""
    for rank in (0, 1):
        log = jobs.log("two_nodes_rdma", rank)
        place = "2 threads on cpu 0-1 (several NUMA nodes), memory interleaved over nodes 0,1"
        assert f"rank {rank}: {place}" in log
        assert "mask widened from cpu 0, given by the launcher, to 0-1" in log


def test_ranks_are_pinned_to_numa_nodes_by_launch_over_ssh(jobs: Jobs) -> None:
    """Four ranks on two machines: each on the core and in the memory of its own node, with the losses of one process."""
    assert "transport: rdma (asked for)" in jobs.output("four", status=75)
    # Up to here the learning rate warms up, and depends not on the number of steps. fp32, and only the order of
    # additions differs: the bound that the layouts have everywhere.
    np.testing.assert_allclose(jobs.losses("four")[:6], jobs.losses("one")[:6], rtol=0, atol=1e-5)
    assert min(jobs.packets("four").values()) > 0
    ranks = jobs.ranks("four")
    assert list(ranks) == ["A.0", "A.1", "B.2", "B.3"]
    for name, folder in ranks.items():
        rank = int(name[2:])
        node = rank % 2
        assert f"rank {rank}: 1 thread on cpu {node} (NUMA node {node}), memory" in jobs.log("four", rank)
        assert f"Cpus_allowed_list:\t{node}\n" in (folder / "status").read_text()
        pages = pages_of_arenas((folder / "numa_maps").read_text(), f"prefer:{node}")
        assert pages[node] > 0.9 * sum(pages), (name, pages)


def test_a_checkpoint_of_four_ranks_on_two_machines_is_complete(jobs: Jobs) -> None:
    """One process goes on from it, on the host, with the next loss of the job that did not stop (fp32, other kernels)."""
    assert "resume with: cktrain launch --hosts A:2,B:2 train" in jobs.output("four", status=75)
    checkpoint = jobs.folder / "runs" / "four" / "checkpoints" / "step-00000005"
    assert (checkpoint / "COMPLETE").exists()
    settings = [
        "run.dir=runs/six",
        "run.steps=6",
        "parallel.data=1",
        "comm.transport=auto",
        f"checkpoint.resume={checkpoint}",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    go_on = [*CKTRAIN, "train", "examples/two_nodes_rdma.yaml", *words]
    done = subprocess.run(go_on, cwd=jobs.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"resumed from {checkpoint}" in done.stdout, done.stdout + done.stderr
    (line,) = (jobs.folder / "runs" / "six" / "metrics.jsonl").read_text().splitlines()
    np.testing.assert_allclose(json.loads(line)["loss"], jobs.losses("one")[5], rtol=0, atol=1e-5)


def pages_of_arenas(numa_maps: str, policy: str) -> list[int]:
    """Pages on node 0 and on node 1 of this process's mappings of 2 MiB or more, from /proc/PID/numa_maps.

    Not of the heap, part of which is older than the policy.
    """
    pages = [0, 0]
    for line in numa_maps.splitlines():
        own = re.search(r"\banon=(\d+)", line)
        if own and int(own[1]) >= 512 and " heap " not in line:
            assert f" {policy} " in line, line
            for node, count in re.findall(r"\bN([01])=(\d+)", line):
                pages[int(node)] += int(count)
    return pages
