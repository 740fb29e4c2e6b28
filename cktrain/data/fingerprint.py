"""What tells one stream of tokens from another without reading all of it.

A SHA-256 of the stream's length, vocabulary, end-of-text id and of BLOCKS blocks of ids, and of their loss mask and borders
of rows where there are any, evenly spaced from the first to the last. Paths, shard borders and the type of the ids are left
out: a copy elsewhere is the same data. Two streams of one length that differ only between the blocks are not told apart.
"""

from __future__ import annotations

import hashlib

from cktrain.data.shards import TokenSource

BLOCKS = 64
BLOCK_TOKENS = 1024


def fingerprint(source: TokenSource) -> str:
    """The fingerprint, 16 hexadecimal digits; reads at most 64 blocks of 1,024 ids."""
    size = len(source)
    digest = hashlib.sha256(f"{size} {source.vocab_size} {source.eos_id}".encode())
    count = min(BLOCK_TOKENS, size)
    for number in range(BLOCKS):
        start = (size - count) * number // (BLOCKS - 1)
        digest.update(source.read(start, count).astype("<i4").tobytes())
        if source.has_loss_mask:
            digest.update(source.learned(start, count).tobytes())
        if source.row_length is not None:
            digest.update(source.begins(start, count).tobytes())
    return digest.hexdigest()[:16]
