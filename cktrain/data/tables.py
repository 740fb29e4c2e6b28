"""Rows of columnar files, Parquet and Arrow, by pyarrow: a batch at a time, of the columns that are asked for.

Arrow has two forms, the stream (datasets' files) and the file (Feather), which begin differently and are read alike. A batch
is checked before its values are read: offsets that lead out of it are damage, and would be a signal otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cktrain.data.sniff import BadFile, shown

TableForm = Literal["parquet", "arrow"]

_ROWS = 256  # of Parquet, at once
_ARROW_FILE = b"ARROW1"
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream
_NAMED = 12  # columns


def table_rows(path: Path, form: TableForm, *columns: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row's number, from 1, and its values: of these columns, or of all, without nested keys that are null.

    Raises BadFile for a damaged file and a column that is not there, and OSError of the disk.
    """
    number = 0
    with _damage(path, form):
        for batch in _batches(path, form, columns):
            batch.validate(full=True)
            for row in batch.to_pylist():
                number += 1
                yield number, row if columns else {key: without_null(item) for key, item in row.items()}


def columns_of(path: Path, form: TableForm) -> list[str]:
    """The names of a table's columns. Raises as `table_rows`."""
    with _damage(path, form), _open(path, form) as reader:
        return list(reader.schema_arrow.names if form == "parquet" else reader.schema.names)


def without_null(value: Any) -> Any:
    """Messages of one table have all keys: those that one has not are null."""
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value


def _batches(path: Path, form: TableForm, columns: tuple[str, ...]) -> Iterator[Any]:
    with _open(path, form) as reader:
        names = list(reader.schema_arrow.names if form == "parquet" else reader.schema.names)
        for name in columns:
            if names.count(name) != 1:
                what = "has no column" if name not in names else "has several columns"
                found = ", ".join(map(shown, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
                raise BadFile(
                    f"[data.corpus] {shown(path)}: {what} {name!r} (found: {found}). Name the one that holds the text with "
                    "--text-key."
                )
        if form == "parquet":
            yield from reader.iter_batches(batch_size=_ROWS, columns=list(columns) or None)
            return
        whole = hasattr(reader, "num_record_batches")
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if whole else reader:
            yield batch.select(list(columns)) if columns else batch


@contextlib.contextmanager
def _open(path: Path, form: TableForm) -> Iterator[Any]:
    import pyarrow

    if form == "parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as reader:
            yield reader
        return
    with pyarrow.OSFile(str(path)) as file:  # read and not mapped, see token_file.py
        whole = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        size = file.size()
        file.seek(max(0, size - len(_END)))
        if not whole and file.read() != _END:  # one that was cut between two batches reads as a shorter one
            raise BadFile(
                f"[data.corpus] {shown(path)}: truncated, its {size:,} bytes do not end as an Arrow stream ends. Copy it "
                "again."
            )
        file.seek(0)
        with (pyarrow.ipc.open_file if whole else pyarrow.ipc.open_stream)(file) as reader:
            yield reader


@contextlib.contextmanager
def _damage(path: Path, form: TableForm) -> Iterator[None]:
    """Within it pyarrow's errors about what is in a file become a BadFile that names it."""
    name = form.capitalize()
    try:
        import pyarrow
    except ImportError:
        raise BadFile(
            f"[data.corpus] {shown(path)}: {name} needs pyarrow: pip install 'cktrain[parquet]'."
        ) from None
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's, and not about what is in the file
            raise
        why = " ".join(str(error).split())
        raise BadFile(f"[data.corpus] {shown(path)}: damaged {name} ({why}). Copy it again.") from error
