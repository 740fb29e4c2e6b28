"""RDMA from Python, call by call: rdma_write, rdma_read, rdma_allreduce, rdma_broadcast, rdma_barrier.

    sudo examples/soft_roce_up.sh             # where there is no RDMA card: docs/soft_roce.md
    mpirun -n 2 python examples/rdma.py       # or any launcher that says rank and size, such as torchrun

The first two are RDMA's own: they reach into another rank's memory without its taking part. The others are those of any
group, here with RDMA below them (docs/transports.md).
"""

import sys
import traceback

import numpy as np

from cktrain.comm.bootstrap import abort, init

AT = 8192  # bytes into the memory that others reach


def call_by_call(group) -> list[str]:
    """What each call did, in words; every rank makes the same calls."""
    rank, size = group.rank, group.size
    after, before = (rank + 1) % size, (rank - 1) % size
    told = []

    # Registered memory (uint8, zeros), and its opening: from here on every rank may write and read every other's.
    memory, own = group.allocate(1 << 20), group.allocate(4096)
    remote = group.rdma_register(memory)

    own[:] = 100 + rank
    group.rdma_write(own, remote[after], AT)  # into the next rank's memory; it is on its way
    group.rdma_flush(remote[after])  # and now it is there
    group.barrier()  # rdma_barrier: so it is on all ranks
    assert np.all(memory[AT : AT + own.size] == 100 + before) and not memory[:AT].any()
    told.append(
        f"rdma_write: rank {before} wrote {own.size:,} bytes of {memory[AT]} into the memory of rank {rank}"
    )

    own[:] = 0
    group.rdma_read(own, remote[before], AT)
    group.rdma_flush(remote[before])
    assert np.all(own == 100 + (before - 1) % size)
    told.append(
        f"rdma_read: rank {rank} read {own.size:,} bytes of {own[0]} from the memory of rank {before}"
    )

    # Arrays in memory of `allocate`, as a model's gradients and weights are, travel without a copy.
    gradients = group.allocate(1 << 20).view(np.int32)
    gradients[:] = rank
    group.all_reduce(gradients)  # rdma_allreduce; with async_=True it goes on while this rank computes
    assert np.all(gradients == sum(range(size)))
    told.append(f"rdma_allreduce: {gradients.size:,} numbers, each now {gradients[0]} on all {size} ranks")

    weights = gradients[:1000]
    weights[:] = 7 if rank == 0 else -1
    group.broadcast(weights, root=0)  # rdma_broadcast
    assert np.all(weights == 7)
    told.append(f"rdma_broadcast: {weights.size:,} numbers of rank 0, now on rank {rank}")

    group.barrier()
    told.append(f"rdma_barrier: rank {rank} knows that all {size} are here")
    return told


def main() -> int:
    """One rank."""
    group = init(transport="rdma")  # an error says of each rank why it cannot
    try:
        for line in call_by_call(group):
            print(line, flush=True)
        group.close()
    except BaseException:
        traceback.print_exc()
        abort(group, 1)  # the others do not wait for this rank
    return 0


if __name__ == "__main__":
    sys.exit(main())
