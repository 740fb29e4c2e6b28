"""Models, tokenizers and adapters by their id on a Hugging Face Hub, ORG/NAME or ORG/NAME@REVISION: the local cache, then a
download.

huggingface_hub does both, with its own environment (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN). What is whole in the
cache is taken as it is, and nothing is asked of the Hub. A path that is there, or a name in
a folder that is there, is no id: a mistyped path is not asked for.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cktrain.file_identity import sha256_of_file
from cktrain.hf.config_json import CONFIG_FILE
from cktrain.hf.tensors import weight_files
from cktrain.host.process import environment
from cktrain.side_files import GENERATION_FILE, TEMPLATE_FOLDER, TOKENIZER_FILE, TOKENIZER_FILES

log = logging.getLogger("cktrain")

_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_OF_THE_NETWORK = (
    "HF_ENDPOINT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
"""Variables that say how the Hub is reached; their values may hold passwords and are not shown."""
_IN_CACHE = re.compile(r"models--(?P<org>.+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)/?$")
_SHA256 = re.compile("[0-9a-f]{64}")
_LEFT_OUT = ["consolidated*", "*/*.safetensors"]
"""The same weights once more under other names, as Mistral's repositories have them, and those of other formats."""


@dataclass(frozen=True)
class Kind:
    """What is wanted of an id's files."""

    name: str
    files: list[str]
    """Patterns of what is fetched."""
    needs: str
    is_whole: Callable[[Path], bool]


def _is_whole_model(folder: Path) -> bool:
    try:
        weight_files(folder)
    except ValueError:
        return False
    return (folder / CONFIG_FILE).is_file()


_ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
_SIDE_FILES = [CONFIG_FILE, GENERATION_FILE, *TOKENIZER_FILES, f"{TEMPLATE_FOLDER}/*.jinja"]
MODEL = Kind(
    "model",
    [*_SIDE_FILES, "*.safetensors", "*.safetensors.index.json"],
    f"{CONFIG_FILE} and safetensors",
    _is_whole_model,
)
TOKENIZER = Kind("tokenizer", _SIDE_FILES, TOKENIZER_FILE, lambda folder: (folder / TOKENIZER_FILE).is_file())
ADAPTER = Kind(
    "adapter",
    _ADAPTER_FILES,
    " and ".join(_ADAPTER_FILES),
    lambda folder: all((folder / name).is_file() for name in _ADAPTER_FILES),
)


def local_path(model: str | Path, kind: Kind = MODEL) -> Path:
    """Where a model is on this machine: the path itself, or the folder in the cache that has the id's files of that kind.

    What is fetched is said. Raises ValueError for an id that is not here and cannot be fetched, with the command that
    fetches it elsewhere.
    """
    text, path = str(model), Path(model)
    match = _ID.fullmatch(text)
    if match is None or path.exists() or path.parent.is_dir():
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"[hub] {text}: there is no such folder or file here, and an id of a Hugging Face Hub is looked up by "
            "huggingface_hub. Correct the path, or pip install 'cktrain[hub]'."
        ) from None

    def folder(**how: Any) -> Path:
        found = snapshot_download(
            match["id"],
            revision=match["revision"],
            allow_patterns=kind.files,
            ignore_patterns=_LEFT_OUT,
            **how,
        )
        return Path(found)

    cached = _cached(folder)
    if cached is not None and kind.is_whole(cached):
        return cached
    log.info("%s: %s is fetched from the Hub", kind.name, text)
    found = _fetched(text, match["id"], folder)
    _refuse_damaged(text, found)
    if not kind.is_whole(found):
        if _is_offline():
            raise ValueError(f"[hub] {text}: {_not_fetched(text, match['id'], 'HF_HUB_OFFLINE is set')}.")
        raise ValueError(
            f"[hub] {text}: {found} is no {kind.name} with {kind.needs}: the Hub has them not, or could not be asked. Try "
            "again with a network, or convert it with transformers or PEFT (save_pretrained)."
        )
    log.info("%s: %s is %s", kind.name, text, found)
    return found


def hub_id(path: str | Path) -> str | None:
    """The id of a folder in the cache; None for another folder."""
    match = _IN_CACHE.search(str(path))
    return None if match is None else f"{match['org']}/{match['name']}"


def what_fetches_the_rest(folder: str | Path) -> str | None:
    """The command that fetches what a folder in the cache lacks of its repository; None for another folder."""
    match = _IN_CACHE.search(str(folder))
    return (
        None
        if match is None
        else f"hf download {match['org']}/{match['name']} --revision {match['revision']}"
    )


def _refuse_damaged(text: str, folder: Path) -> None:
    """ValueError for a file that is not what its name says: the cache calls large ones by their SHA-256."""
    for file in sorted(folder.rglob("*")):
        blob = file.resolve()
        if file.is_symlink() and _SHA256.fullmatch(blob.name) and sha256_of_file(blob) != blob.name:
            raise ValueError(
                f"[hub] {text}: {file} is not the file that the Hub has: its SHA-256 is another. The connection or the disk "
                f"damaged it. Remove it, and it is fetched again: rm {shlex.quote(str(blob))} {shlex.quote(str(file))}"
            )


def _cached(folder: Callable[..., Path]) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return folder(local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def _fetched(text: str, name: str, folder: Callable[..., Path]) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return folder()
    except GatedRepoError:
        why = f"its owner asks for consent first. Give it at {constants.ENDPOINT}/{name}, then: hf auth login"
    except RepositoryNotFoundError:
        why = (
            f"there is no such folder or file here, and no such repository at {constants.ENDPOINT}, or a private one. "
            "Correct it, or: hf auth login"
        )
    except RevisionNotFoundError:
        why = f"it has no such revision at {constants.ENDPOINT}. Give a branch, a tag or a commit that it has"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        cause = "HF_HUB_OFFLINE is set" if _is_offline() else _cause(error)
        why = _not_fetched(text, name, cause)
    raise ValueError(f"[hub] {text}: {why}.")


def _cause(error: Exception) -> str:
    """Why the Hub was not reached: which server was asked, what it came to, and the variables that had a say in it."""
    from huggingface_hub import constants

    why = str(error.__cause__ or error).partition("\n")[0]
    named = [name for each in _OF_THE_NETWORK for name in (each, each.lower()) if environment().get(name)]
    said = f", with {', '.join(named)} set: correct what is not meant" if named else ""
    return f"{constants.ENDPOINT}: {why}{said}"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _not_fetched(text: str, name: str, why: str) -> str:
    """What there is to do, where a model is not here and the Hub is not reached."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    _, _, revision = text.partition("@")
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    return (
        f"there is no such folder or file here, nor is it whole in {cache}, and it cannot be fetched ({why}). Where there "
        f"is a network: {command}; then copy {cache / ('models--' + name.replace('/', '--'))} to here"
    )
