"""A tokenizer.json read by the `tokenizers` library, or an error that says which of the ways to fail it was.

The library raises bare Exception, and a panic of its Rust code is not even that. It is imported where it is first used:
training, which reads ids, never does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cktrain.foreign_file import parse_json
from cktrain.side_files import TOKENIZER_FILE, SideFiles

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Result = TypeVar("Result")


def read_backend(side: SideFiles) -> Backend:
    """The library's tokenizer, without the truncation and padding that a tokenizer.json may have kept.

    Raises ValueError when the file is damaged, or of a newer version of the library.
    """
    import tokenizers

    where = str(Path(side.found_in) / TOKENIZER_FILE)
    data = side.files[TOKENIZER_FILE]

    def read() -> Backend:
        backend = tokenizers.Tokenizer.from_str(data.decode("utf-8-sig"))
        backend.no_truncation()
        backend.no_padding()
        return backend

    try:
        return guarded(
            read,
            f"{where}: tokenizers {tokenizers.__version__} cannot read it",
            "It is damaged, or a newer version wrote it: fetch it again, or pip install -U tokenizers.",
        )
    except ValueError:
        _refuse_what_is_none(data, where)
        raise


def _refuse_what_is_none(data: bytes, where: str) -> None:
    """ValueError for what is no tokenizer.json of any version, in plainer words than the library's."""
    remedy = "Fetch the file again, or give one that `tokenizers` saved."
    if data.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"[tokenizer] {where}: a pointer of Git LFS, not the file. Run git lfs pull in its folder."
        )
    values = parse_json(data, dict[str, Any], name=where, area="tokenizer", remedy=remedy)
    if "model" not in values:
        raise ValueError(f'[tokenizer] {where}: not a tokenizer.json, it has no "model". {remedy}')


def guarded(call: Callable[[], Result], what: str, remedy: str) -> Result:
    """What the call returns. Raises ValueError `[tokenizer] what (the library's words). remedy`, for panics too."""
    try:
        return call()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"[tokenizer] {what} ({str(error)[:300]}). {remedy}") from None
