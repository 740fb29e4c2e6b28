"""Rows of every kind of file, with their lines; what is none says so."""

import bz2
import csv
import gzip
import json
import lzma

import pytest
import zstandard
from chat_models import SYSTEM, TURN, write_rows

from cktrain.data.chat.row_files import RowFiles, as_json, first_shape
from cktrain.data.chat.rows import parse_row
from cktrain.data.documents import BadRow

ROWS = [{"messages": SYSTEM}, {"prompt": "a,\nb", "completion": '"☃"'}, {"text": "c"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path):
    return [(raw.line, raw.value) for raw in RowFiles(path).rows()]


PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}


@pytest.mark.parametrize("packed", [None, *PACKED])
def test_json_lines_and_arrays_as_they_are_or_compressed(tmp_path, packed):
    for name, text in (("rows.jsonl", LINES), ("rows.json", json.dumps(ROWS, indent=1))):
        data = text.encode()
        path = tmp_path / (name if packed is None else f"{name}.{packed}")
        path.write_bytes(data if packed is None else PACKED[packed](data))
        assert [value for _, value in read(path)] == ROWS
        assert first_shape(path) == "messages"
    assert [line for line, _ in read(tmp_path / path.name.replace("rows.json", "rows.jsonl"))] == [1, 2, 3]


def test_zstd_of_several_frames_is_read_to_its_end(tmp_path):
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(line.encode()) for line in LINES.splitlines(True)))
    assert [value for _, value in read(path)] == ROWS
    path.write_bytes(zstandard.compress(LINES.encode() * 100)[:40])
    with pytest.raises(
        ValueError, match=r"rows.jsonl.zst: cannot be read .it ends in the midst of a zstd frame"
    ):
        read(path)


def test_a_cut_file_of_rows_is_to_be_copied_again(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode())[:-12])
    with pytest.raises(ValueError, match=r"rows.jsonl.gz: cannot be read .*copy it again\.$"):
        read(path)


def test_a_cut_line_and_commas_between_lines_are_told_as_such(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(LINES + '{"prompt": "a", "comple')
    assert "Unterminated string" in read(path)[-1][1].why
    path.write_text(LINES.replace("\n", ",\n"))
    with pytest.raises(
        ValueError, match=r"rows.jsonl:1: not JSON: a comma after a value outside of an array"
    ):
        read(path)


@pytest.mark.parametrize(
    ("name", "dialect"), [("a.csv", "excel"), ("a.tsv", "excel-tab"), ("a.csv.gz", "excel")]
)
def test_tables_have_lines(tmp_path, name, dialect):
    path = tmp_path / name
    opened = gzip.open if name.endswith(".gz") else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, dialect)
        writer.writerows([["prompt", "completion"], ["a,\nb", '"☃"'], ["c"], ["d", "e"]])
    rows = read(path)
    assert [line for line, _ in rows] == [2, 4, 5]
    assert rows[0][1] == ROWS[1] and rows[2][1] == {"prompt": "d", "completion": "e"}
    assert isinstance(rows[1][1], BadRow) and "another number of fields than the 2 columns" in rows[1][1].why


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("separator", [";", "\t", ",", "|"])
def test_other_separators_are_known_by_the_names(tmp_path, name, separator):
    path = tmp_path / name
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(
            [["prompt", "completion"], ['a, b;\tc|\n"d"', "e"], ["f"]]
        )
    (_, row), (line, bad) = read(path)
    assert row == {"prompt": 'a, b;\tc|\n"d"', "completion": "e"}
    assert line == 4 and repr(separator) in bad.remedy
    path.write_text("text\na; b\n")  # one column
    assert read(path) == [(2, {"text": "a; b"})]


@pytest.mark.parametrize("encoding", ["gb18030", "cp1252", "utf-16"])
def test_lines_of_another_encoding_are_one_reason(tmp_path, encoding):
    path = tmp_path / "a.jsonl"
    path.write_bytes("".join(f'{{"text": "é{n}é"}}\n' for n in range(3)).encode(encoding))
    if encoding == "utf-16":
        with pytest.raises(ValueError, match=r"a.jsonl: text in UTF-16. Convert it: iconv"):
            read(path)
        return
    rows = [bad for _, bad in read(path)]
    assert [bad.why for bad in rows] == ["not UTF-8"] * 3 and "iconv -t UTF-8 -f" in rows[0].remedy


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,a\n1,2\n", "two columns of one name"),
        ('a,b\n"1,2\n', "no table"),
        ("a, b\n1, 2\n", "the column ' b' has blanks around its name"),
    ],
)
def test_what_is_no_table_is_an_error(tmp_path, text, why):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"a.csv:\d: {why}"):
        read(path)


def test_a_table_of_another_encoding_comes_with_the_command_that_converts_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("prompt;completion\nWas ist schön?;Gärten\n".encode("cp1252"))
    with pytest.raises(
        ValueError, match=r"a.csv: a table that is not UTF-8. .*iconv -t UTF-8 -f WINDOWS-1252"
    ):
        read(path)


@pytest.mark.judge
def test_parquet_is_what_pyarrow_wrote(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    messages = [{"messages": SYSTEM}, {"messages": [TURN[0], {**TURN[1], "name": "bot"}]}]
    parquet.write_table(pyarrow.Table.from_pylist(messages), path)
    assert read(path) == [(1, messages[0]), (2, messages[1])]
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    with pytest.raises(ValueError, match=r"rows.parquet: damaged Parquet"):
        read(path)


def test_a_null_of_a_table_is_told_as_one(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "completion": ["x", None]}), path)
    _, second = [raw.value for raw in RowFiles(path).rows()]
    with pytest.raises(BadRow, match=r"null under completion \(other keys: prompt\)"):
        parse_row(second, {})
    with pytest.raises(BadRow, match="null under completion"):
        parse_row({"question": "b", "answer": None}, {"prompt": "question", "completion": "answer"})
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "messages": [None, "x"]}), path)
    assert first_shape(path) == "text"


def test_a_folder_is_its_files_in_order(tmp_path):
    write_rows(tmp_path / "b.jsonl", ROWS[1:])
    write_rows(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "notes.md").write_text("no rows")
    files = RowFiles(tmp_path)
    assert [raw.value for raw in files.rows()] == ROWS
    assert [raw.place for raw in files.rows()][1] == f"{tmp_path}/b.jsonl:1"
    assert files.left_out.counts == {"another suffix, .md": 1}
    before = files.fingerprint()
    write_rows(tmp_path / "b.jsonl", ROWS)
    assert RowFiles(tmp_path).fingerprint() != before


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (
            "a.txt",
            "some text",
            "text, and no rows .* cktrain data prepare .*a.txt OUT --tokenizer MODEL, and give OUT",
        ),
        ("a.pdf", "%PDF-1.4 \0", "a PDF"),
        (None, "", "no such file"),
    ],
)
def test_what_has_no_rows_is_an_error(tmp_path, name, content, why):
    path = tmp_path / (name or "nothing.jsonl")
    if name is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=why):
        RowFiles(path)
    assert first_shape(path) is None


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no file in it ends in .jsonl"):
        RowFiles(tmp_path)


def test_the_first_shape_is_that_of_the_first_good_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{no json\n' + LINES)
    assert first_shape(path) == "messages"


def test_a_rejected_row_is_kept_with_its_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{no json\n')
    good, bad = RowFiles(path).rows()
    assert json.loads(as_json(good, "why")) == {
        "file": str(path),
        "line": 1,
        "reason": "why",
        "row": {"a": 1},
    }
    assert json.loads(as_json(bad, "why"))["row"] == {"text": "{no json"}
