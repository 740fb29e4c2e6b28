"""Damaged files of others: each is read whole or refused in words, in no more time or memory than its size asks for.

python tests/cktrain/damage/damaged_files.py 100000            of each kind as many, and what became of them
python tests/cktrain/damage/damaged_files.py 100000 jsonl      of one kind
"""

from __future__ import annotations

import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from changes import changed_bytes, changed_header, changed_values
from kinds import KINDS, Kind

MEMORY_LIMIT = 1 << 30
"""Bytes of address space beyond what stands: a damaged size must not become an allocation."""


def damaged(kind: Kind, draw: np.random.Generator) -> Iterator[None]:
    """One damage after another, endlessly, each in one file; the others are whole."""
    whole = {file: file.read_bytes() for file in kind.damaged}
    files = list(whole)
    while True:
        file = files[int(draw.integers(len(files)))]
        values = {".json": changed_values, ".jsonl": changed_values, ".safetensors": changed_header}.get(
            file.suffix
        )
        if values is not None and draw.random() < 0.5:
            file.write_bytes(values(whole[file], draw))
        else:
            file.write_bytes(changed_bytes(whole[file], min(kind.damaged[file], len(whole[file])), draw))
        yield
        file.write_bytes(whole[file])


def outcome(kind: Kind, other_way: bool) -> str:
    """Read all: "whole", or the error without its numbers and names."""
    try:
        kind.read(other_way)
    except ValueError as error:
        text = str(error)
        said, _, rows = text.partition("\n  ")
        assert re.match(r"\[[\w.]+\] .*[.):;] .*\.$", said, re.DOTALL), text
        return re.sub(r"'.*?'|\"[^\"]*\"|[\d,]+|/\S+", "…", (rows or said).partition("\n")[0])[:60]
    return "whole"


def main() -> None:
    """Try as many of each kind as asked for; print the commonest outcomes and the longest time. A signal ends a kind."""
    count, names = int(sys.argv[1]), sys.argv[2:] or list(KINDS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in names:
        longest, found = 0.0, Counter[str]()
        with tempfile.TemporaryDirectory() as folder:
            kind, draw = KINDS[name](Path(folder)), np.random.default_rng(2026)
            kind.read(False)  # whatever it imports stands in memory now
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LIMIT, resource.RLIM_INFINITY))
            with suppress(KeyboardInterrupt):
                for number, _ in zip(range(count), damaged(kind, draw), strict=False):
                    began = time.process_time()
                    found[outcome(kind, number % 2 == 1)] += 1
                    longest = max(longest, time.process_time() - began)
        files = sum(found.values())
        print(
            f"{name}: {files:,} files, each read whole or refused in words; the longest took {longest:.2f} s"
        )
        for text, times in found.most_common(12):
            print(f"{times:>8,}  {text}", flush=True)


if __name__ == "__main__":
    main()
