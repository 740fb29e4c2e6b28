"""Several trainings one after the other in one job of mpirun, whose processes start once: most of their time is imports
where Python is emulated.

train_each.py DEVICE CONFIG.yaml PROVIDER [CONFIG.yaml PROVIDER]...

Rank 0 says how many packets the device received in each.
"""

import os
import sys

from ends import counters

from cktrain.comm.mpi_group import MPI
from cktrain.launch.cli import main


def train_each(device: str, *jobs: str) -> int:
    # A training that has used MPI ends it, as no other is to come; here one does.
    finalize, MPI.Finalize = MPI.Finalize, lambda: None
    for config, provider in zip(jobs[::2], jobs[1::2], strict=True):
        os.environ["CKTRAIN_VERBS"] = provider
        before = counters(device)["rcvd_pkts"]
        if status := main(["train", config]):
            return status
        received = counters(device)["rcvd_pkts"] - before
        if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
            print(f"{config} received {received} packets", flush=True)
    finalize()
    return 0


if __name__ == "__main__":
    sys.exit(train_each(*sys.argv[1:]))
