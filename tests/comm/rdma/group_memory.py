"""What a group over RDMA takes, by calculation."""

from cktrain.comm import _engine
from cktrain.comm.rdma_group import scratch_bytes
from cktrain.comm.transport.rdma import LANES, ring_bytes


def memory_of_a_group(ranks: int) -> int:
    """Bytes of a rank's group beyond the arrays: links with their rings and notes, queues, and what two lanes work in."""
    link = _engine.RdmaLink.bytes_needed(ring_bytes(ranks - 1))
    queues = 64 * 512 + 64 * 64 + 128 * 64  # soft-RoCE's entries of sends, receives, completions
    return LANES * (ranks - 1) * (link + queues) + 2 * scratch_bytes(ranks)
