"""What `Dataset.save_to_disk` of Hugging Face's datasets leaves: a folder of Arrow files, and state.json that names them.

    FOLDER/state.json           _data_files: the files with the rows, in order; of older writers also _indices…
    FOLDER/dataset_info.json    what the rows are; its number of rows is that of what the rows were once chosen from
    FOLDER/data-0000I-of-0000N.arrow

A DatasetDict has dataset_dict.json with the names of its splits, and a folder as above for each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cktrain.data.sniff import BadFile, shown
from cktrain.foreign_file import read_json

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_COPY = "Copy the folder again, or save the dataset again."


def saved_parts(folder: Path) -> list[Path] | None:
    """The files of a folder of save_to_disk with its rows, in order; None for any other folder.

    Raises BadFile for several splits, of which one is to be named, for rows in another order than the files', and for files
    that are not there.
    """
    if (folder / _SPLITS).is_file():
        values = read_json(folder / _SPLITS, dict[str, Any], area="data.corpus", remedy=_COPY)
        splits = [name for name in values.get("splits") or [] if isinstance(name, str)]
        raise BadFile(
            f"[data.corpus] {shown(folder)}: a dataset of save_to_disk with the splits {', '.join(map(shown, splits))}. "
            f"Give one of them, as {shown(folder / (splits or ['train'])[0])}."
        )
    if not ((folder / _STATE).is_file() and (folder / _INFO).is_file()):
        return None
    state = read_json(folder / _STATE, dict[str, Any], area="data.corpus", remedy=_COPY)
    if any(key.startswith("_indices") and state[key] for key in state):
        raise BadFile(
            f"[data.corpus] {shown(folder)}: its rows are chosen by a file of indices, which older datasets wrote. Write "
            "them in order: dataset.flatten_indices().save_to_disk(...)."
        )
    names = [entry.get("filename") for entry in state.get("_data_files") or [] if isinstance(entry, dict)]
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if not names or wrong:
        what = f"{wrong[0]!r}, which is no name in its folder" if wrong else "no files of rows"
        raise BadFile(f"[data.corpus] {shown(folder / _STATE)}: names {what}. {_COPY}")
    files = [folder / str(name) for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise BadFile(
            f"[data.corpus] {shown(missing[0])}: is not there, and {_STATE} names it as one of {len(files)} files of rows. "
            f"{_COPY}"
        )
    return files
