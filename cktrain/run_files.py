"""The side files of a run, chosen at its start, and whether its data's tokenizer is the model's.

A run that goes on has those of its checkpoint. A new one has those of the folder that its weights come from, and the
tokenizer with which its data was prepared, which must be the same one: ids that mean other tokens train without an error
and spoil the model.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

from cktrain.comm.group import Group
from cktrain.config import DataConfig
from cktrain.data.same_tokenizer import (
    all_end_ids,
    other_tokenizer_error,
    tokenizer_differences,
    where_of,
    with_other_tokenizer,
)
from cktrain.data.shards import DATASET_FILE, SUFFIX, read_dataset
from cktrain.data.special_tokens import added_around, with_ends
from cktrain.data.tokenizer_backend import read_backend
from cktrain.file_identity import sha256_of_file
from cktrain.side_files import (
    FOLDER,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    SideFiles,
    encoding_of,
    read_record,
    read_side_files,
    read_tokenizer,
)

log = logging.getLogger("cktrain")


def agree_on_side_files(
    data: DataConfig, pretrained: Path | None, checkpoint: Path | None, run_dir: Path, group: Group
) -> SideFiles:
    """Rank 0 chooses and writes them into the run's folder; the others, which write none, have none. Collective.

    Raises ValueError on all ranks when the data's tokenizer is not the model's.
    """
    side, problem = SideFiles(), ""
    if group.rank == 0:
        try:
            side = choose_side_files(data, pretrained, checkpoint)
            run_dir.mkdir(parents=True, exist_ok=True)
            side.write_with_record(run_dir / FOLDER)
        except ValueError as error:
            problem = str(error)
        except OSError as error:
            problem = f"[run] cannot write {run_dir / FOLDER}: {error.strerror}. Make room, or correct its permissions."
    problem = group.broadcast_bytes(problem.encode()).decode()
    if problem:
        raise ValueError(problem)
    return side


def choose_side_files(data: DataConfig, pretrained: Path | None, checkpoint: Path | None) -> SideFiles:
    """The run's files. Raises ValueError when a tokenizer is another one than it should be, or damaged."""
    model = None if checkpoint is None else read_record(checkpoint / FOLDER)
    who = f"the tokenizer of {checkpoint}"
    if model is None and pretrained is not None and pretrained.exists():
        model = read_side_files(pretrained)
        who = f"that of the pretrained model, {where_of(model)}"
    made = {path: _prepared_with(path, data.allow_other_tokenizer) for path in data.parts.values()}
    path = next((path for path, known in made.items() if known is not None), next(iter(made)))
    _refuse_other_parts(path, made)
    side = _with_data(path, model, who, data.allow_other_tokenizer)
    if data.validation.path is not None and side.has_tokenizer:
        held_out = _prepared_with(data.validation.path, data.allow_other_tokenizer)
        if held_out is not None:
            _refuse_other(
                held_out,
                side,
                f"that of {path}",
                "the validation data",
                data.allow_other_tokenizer,
            )
    return side


def _refuse_other_parts(path: str, made: dict[str, SideFiles | None]) -> None:
    """ValueError where a part of a mixture was made by another tokenizer than the part at `path`; other ends are told.

    Whoever allows another tokenizer than the model's means one for all parts: ids of two would mean other tokens.
    """
    first = made[path]
    for other, known in made.items():
        if first is None:
            continue
        if known is None:
            log.warning(
                "[data] warning: %s does not say which tokenizer made it, and is taken to be of that of %s",
                other,
                path,
            )
            continue
        if found := tokenizer_differences(known, first):
            raise other_tokenizer_error(
                f"the tokenizer that {other} was prepared with, {where_of(known)},",
                f"that of {path}, with which it is to be mixed",
                found,
                "Prepare all parts of data.mixture with one (cktrain data prepare … --tokenizer).",
            )
        if known.encoding is not None and first.encoding is not None and known.encoding != first.encoding:
            log.warning(
                "[data] warning: %s is encoded otherwise than %s: %s, not %s",
                other,
                path,
                json.dumps(known.encoding.model_dump()),
                json.dumps(first.encoding.model_dump()),
            )


def _with_data(path: str, model: SideFiles | None, who: str, allowed: bool) -> SideFiles:
    known = _prepared_with(path, allowed)
    if known is None:
        return model or SideFiles()
    if model is None:
        return known
    if not model.has_tokenizer:
        return replace(known, files={**model.files, **known.tokenizer_files()})
    _warn_of_ends(path, known, model)
    if _refuse_other(known, model, who, "the data", allowed):
        both, lost = with_other_tokenizer(model, known)
        if lost:
            log.warning(
                "[tokenizer] special ids are not kept, since they are other tokens now: %s", "; ".join(lost)
            )
        return both
    if model.encoding is not None and model.encoding != known.encoding and known.encoding is not None:
        log.warning(
            "[data] warning: %s is encoded otherwise than the run's data was: %s, not %s",
            path,
            json.dumps(known.encoding.model_dump()),
            json.dumps(model.encoding.model_dump()),
        )
    # The data's template is the model's, or the one that the data was rendered with instead of it.
    template = {name: data for name, data in known.files.items() if name == TEMPLATE_FILE}
    if template and template.items() - model.files.items():
        log.info("chat template: that of %s, not the model's", path)
    both = replace(
        model, encoding=known.encoding, files={**known.tokenizer_files(), **model.files, **template}
    )
    ends = all_end_ids(both)
    more = [index for index in all_end_ids(known) if index not in ends]
    return with_ends(both, more) if more else both


def _refuse_other(known: SideFiles, model: SideFiles, who: str, what: str, allowed: bool) -> bool:
    """Whether the data's tokenizer is another one, which is told; ValueError unless that is allowed."""
    found = tokenizer_differences(known, model)
    if not found:
        return False
    error = other_tokenizer_error(
        f"the tokenizer that {what} was prepared with, {where_of(known)},",
        who,
        found,
        f"Prepare {what} with the model's (cktrain data prepare … --tokenizer), or set data.allow_other_tokenizer: true.",
    )
    if not allowed:
        raise error
    log.warning("%s", error)
    return True


def _warn_of_ends(path: str, known: SideFiles, model: SideFiles) -> None:
    """Documents that end or begin otherwise than the model knows: allowed, and told."""
    ends = all_end_ids(model)
    if known.encoding is None:
        return
    may_add = b"TemplateProcessing" in model.files[TOKENIZER_FILE]
    may_add |= b"add_bos_token" in model.files.get(TOKENIZER_CONFIG_FILE, b"")
    begin = added_around(model, read_backend(model))[0] if may_add and not known.encoding.begin_ids else []
    if begin and model.encoding is None:
        log.warning(
            "[data] warning: documents of %s begin with the text, and the model's tokenizer puts %s before it. "
            "Prepare the data again to have that.",
            path,
            ", ".join(map(str, begin)),
        )
    if ends and known.encoding.eos_id not in ends:
        log.warning(
            "[data] warning: documents of %s end with id %d, and the model's eos ids are %s",
            path,
            known.encoding.eos_id,
            ", ".join(map(str, ends)),
        )


def read_prepared(path: str | Path) -> SideFiles:
    """The tokenizer that a path names; in a prepared folder with how its documents were encoded. ValueError."""
    side = read_tokenizer(path)
    if not (Path(path) / DATASET_FILE).is_file():
        return side
    dataset = read_dataset(path)
    return replace(
        side,
        encoding=encoding_of(dataset, Path(path) / DATASET_FILE),
        special_ids={**side.special_ids, **dataset.get("special_ids", {})},
    )


def _prepared_with(path: str, allowed: bool) -> SideFiles | None:
    """The tokenizer beside the tokens, which must be the one that made them. None where there is none to know of."""
    folder = Path(path)
    if folder.suffix == SUFFIX:
        folder = folder.parent
    if not folder.is_dir():
        return None
    recorded = read_dataset(folder).get("tokenizer_sha256") if (folder / DATASET_FILE).is_file() else None
    file = folder / TOKENIZER_FILE
    if not file.exists():
        if recorded is None or allowed:
            return None
        raise ValueError(
            f"[data] {file} is missing, with which the data was prepared. Put it back or prepare the data again; "
            "data.allow_other_tokenizer: true does without."
        )
    side = read_prepared(folder)
    if recorded is not None and sha256_of_file(file) != recorded and not allowed:
        raise ValueError(
            f"[data] {file} is not the one that the data was prepared with, as {DATASET_FILE} records it. Put that one "
            "back or prepare the data again; data.allow_other_tokenizer: true takes this one."
        )
    return side
