"""A tokenizer.json read by the `tokenizers` library, or an error that says which of the ways to fail it was.

The library raises bare Exception, and a panic of its Rust code is not even that. It is imported where it is first used:
training, which reads ids, never does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cktrain.foreign_file import parse_json, shorten
from cktrain.side_files import ADDED_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, SideFiles

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Result = TypeVar("Result")


def read_backend(side: SideFiles) -> Backend:
    """The library's tokenizer, without the truncation, padding and dropout that a tokenizer.json may have kept.

    Dropout divides a text by chance, each time otherwise; data and prompts are what the text says. Tokens that stand only
    beside tokenizer.json (`added_tokens_decoder` of tokenizer_config.json, added_tokens.json) are added, as transformers
    does. Raises ValueError when the file is damaged, or of a newer version of the library.
    """
    import tokenizers

    where = str(Path(side.found_in) / TOKENIZER_FILE)
    data = side.files[TOKENIZER_FILE]

    def read() -> Backend:
        backend = tokenizers.Tokenizer.from_str(data.decode("utf-8-sig"))
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None) is not None:
            model = backend.model
            model.dropout = None
            backend.model = model
        return backend

    try:
        backend = guarded(
            read,
            f"{where}: tokenizers {tokenizers.__version__} cannot read it",
            "It is damaged, or a newer version wrote it: fetch it again, or pip install -U tokenizers.",
        )
    except ValueError:
        _refuse_what_is_none(data, where)
        raise
    _add_tokens_beside(side, backend)
    return backend


def _add_tokens_beside(side: SideFiles, backend: Backend) -> None:
    """Add what the files beside tokenizer.json name and it lacks. ValueError where a token would not get its id."""
    import tokenizers

    named: list[tuple[int, dict[str, Any], str]] = []
    decoder = side.json(TOKENIZER_CONFIG_FILE).get("added_tokens_decoder")
    for index, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and index.isdecimal():
            named.append((int(index), token, TOKENIZER_CONFIG_FILE))
    if not named:  # the older file counts where the newer key does not stand
        for content, number in side.json(ADDED_TOKENS_FILE).items():
            if isinstance(number, int):
                named.append((number, {"content": content}, ADDED_TOKENS_FILE))
    for number, token, file in sorted(named, key=lambda each: each[0]):
        content = token["content"]
        if not content or backend.token_to_id(content) is not None:
            continue
        flags = {key: token.get(key) is True for key in ("single_word", "lstrip", "rstrip", "special")}
        normalized = token.get("normalized", not flags["special"]) is True
        backend.add_tokens([tokenizers.AddedToken(content, normalized=normalized, **flags)])
        if (got := backend.token_to_id(content)) != number:
            raise ValueError(
                f"[tokenizer] {Path(side.found_in) / file}: {shorten(content)} is to be id {number}, {TOKENIZER_FILE} lacks "
                f"it and would call it {got}. Save the tokenizer again with transformers, or correct one of the files."
            )


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
