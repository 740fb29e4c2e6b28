"""Whether a prepared folder still is what would be made now: what it was made from, and what it holds.

`made_from` is recorded in dataset.json and compared part by part, so that what differs can be said. Files are compared by
their content: a file that was changed within the clock's grain, or came back with an old date, is another one, and a copy
of the same tree is the same source. Hashing runs at 700 MB a second and more, encoding at about one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from cktrain.data.shards import DATASET_VERSION
from cktrain.file_identity import changed_files, sha256_of_bytes, sha256_of_set
from cktrain.side_files import SideFiles


class Source(Protocol):
    """What data is prepared from."""

    def fingerprint(self) -> str:
        """A hash of the files' names and contents."""


def made_from(corpus: Source, tokenizer: SideFiles | None, options: dict[str, Any]) -> dict[str, Any]:
    """What a prepared folder depends on; `tokenizer` is the one that was given, None where one is trained."""
    found = {"format": DATASET_VERSION, "source": corpus.fingerprint(), **options}
    if tokenizer is not None:
        digests = {name: sha256_of_bytes(data) for name, data in tokenizer.files.items()}
        ids = json.dumps(dict(tokenizer.special_ids), sort_keys=True)
        found["tokenizer"] = sha256_of_set({**digests, "special ids": sha256_of_bytes(ids.encode())})
    return found


def why_again(folder: Path, dataset: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Why a prepared folder cannot be kept; None when it can."""
    before = dataset.get("made_from")
    if not isinstance(before, dict) or not isinstance(dataset.get("written"), dict):
        return "it was made by an older cktrain, which did not record enough"
    for key in sorted({*before, *now}, key=lambda key: key != "source"):
        if before.get(key) != now.get(key):
            if key in ("source", "tokenizer"):
                return f"the {key} has changed"
            return f"{key} was {before.get(key)} and is {now.get(key)}"
    changed = changed_files(folder, dataset["written"])
    if changed:
        return "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    return None
