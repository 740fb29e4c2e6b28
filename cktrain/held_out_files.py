"""Rows that are held out and stand in files of their own: what to do, wherever a share of the rows is asked for."""

from __future__ import annotations

import shlex


def files_of_their_own(held_out: str) -> str:
    """One sentence, without its full stop."""
    return (
        "Rows of their own are prepared by themselves, as those that are trained on: cktrain data prepare "
        f"{shlex.quote(held_out)} HELD_OUT --tokenizer MODEL --validation 0; then data.path and data.validation.path name "
        "the two folders"
    )
