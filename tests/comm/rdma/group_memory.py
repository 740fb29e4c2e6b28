"""What a group over RDMA takes, by calculation."""

from cktrain.comm import _engine
from cktrain.comm.rdma_group import scratch_bytes
from cktrain.comm.transport.rdma import LANES, ONE_SIDED_SENDS, ring_bytes

PAGE, HUGE_PAGE = 4 << 10, 2 << 20


def memory_of_a_group(ranks: int, page: int = HUGE_PAGE) -> int:
    """Bytes of a rank's group beyond the arrays: links with their rings and notes, queues, and what two lanes work in.

    `page` is what memory of several MB is made of.
    """
    links = LANES * (ranks - 1)
    rings = links * _engine.RdmaLink.bytes_needed(ring_bytes(ranks - 1))
    # What soft-RoCE maps for a link, in pages with a header each: slots of sends, of receives, of completions.
    queues = sum(_up(384 + slots * bytes_, PAGE) for slots, bytes_ in ((64, 512), (64, 64), (128, 128)))
    return _up(rings, page) + links * queues + 2 * scratch_bytes(ranks)


def memory_of_one_sided_access(ranks: int) -> int:
    """Bytes of the queue pairs that `write` and `read` use, one for each other rank, and their completions."""
    peers = ranks - 1
    pair = _up(384 + ONE_SIDED_SENDS * 512, PAGE) + _up(384 + 2 * 64, PAGE)
    slots = 1 << (peers * (ONE_SIDED_SENDS + 2)).bit_length()
    return peers * pair + _up(384 + slots * 128, PAGE)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
