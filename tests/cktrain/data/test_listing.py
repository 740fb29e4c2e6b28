"""What a folder holds is read, or told with the reason: nothing is left out in silence, and nothing hangs."""

import gzip
import json
import os
import socket

import pytest

from cktrain.data import listing as module
from cktrain.data.chat.row_files import RowFiles
from cktrain.data.corpus import Corpus
from cktrain.data.listing import how_to_fetch, list_files


def put(root, *names, text="x"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_is_left_out_is_counted_with_its_reason(tmp_path):
    put(
        tmp_path,
        "a.txt",
        "sub/B.MD",
        "c.jsonl.gz",
        "__pycache__/x.py",
        "__MACOSX/x.txt",
        ".git/x.txt",
        "._a.txt",
    )
    put(
        tmp_path,
        ".hidden.txt",
        ".ipynb_checkpoints/x.md",
        "b.csv",
        "sub/c.CSV",
        "d.parquet",
        "README",
        "e.txt~",
    )
    os.mkfifo(tmp_path / "pipe.txt")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.txt"))
    server.close()
    (tmp_path / "gone").symlink_to("nowhere")
    found = list_files(tmp_path, (".txt", ".md", ".jsonl"))
    assert [path.relative_to(tmp_path).as_posix() for path in found.files] == [
        "a.txt",
        "c.jsonl.gz",
        "sub/B.MD",
    ]
    assert found.left_out.counts == {
        "hidden": 3,
        "the Mac's AppleDouble": 1,
        "no data": 2,
        "another suffix, .csv": 2,
        "another suffix, .parquet": 1,
        "another suffix, none": 1,
        "another suffix, .txt~": 1,
        "a pipe, socket or device": 2,
        "a link that leads nowhere": 1,
    }
    assert "2 left out: another suffix, .csv (b.csv, sub/c.CSV)" in found.left_out.lines()


def test_a_file_and_its_packed_form_are_read_once(tmp_path):
    put(tmp_path, "a.jsonl", text='{"text": "once"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "once"}\n'))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed"))
    corpus = Corpus(tmp_path)
    assert list(corpus.documents()) == ["once", "packed"]
    assert corpus.left_out.counts == {"packed, and it lies beside it unpacked": 1}


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "valid.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
        ("x/Train/a.txt", "x/val/a.txt"),
    ],
)
def test_what_is_held_out_by_its_name_is_not_read_with_what_is_trained_on(tmp_path, names):
    put(tmp_path, *names)
    with pytest.raises(ValueError, match=r"holds .*rain.* and .*, and a folder is read whole. Give the one"):
        list_files(tmp_path, (".txt", ".jsonl"))
    for name in names[1:]:
        (tmp_path / name).unlink()
    assert len(list_files(tmp_path, (".txt", ".jsonl")).files) == 1


def test_a_folder_that_holds_a_dataset_of_save_to_disk_names_it(tmp_path):
    put(tmp_path, "a.jsonl", "set/dataset_info.json", "set/data.arrow", text="{}")
    (tmp_path / "set/state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    with pytest.raises(ValueError, match=r"holds .*/set, which is a dataset of save_to_disk"):
        list_files(tmp_path, (".jsonl",))


def test_what_a_clone_of_a_dataset_holds_beside_its_rows_is_left_out_and_told(tmp_path):
    put(tmp_path, "data.jsonl", "README.md", ".gitattributes", "dataset_infos.json")
    found = list_files(tmp_path, (".json", ".jsonl"))
    assert [path.name for path in found.files] == ["data.jsonl"]
    assert found.left_out.first["about the data, and no rows"] == ["dataset_infos.json"]


def test_names_that_say_nothing_of_splits_are_read_together(tmp_path):
    put(
        tmp_path,
        "trainer.txt",
        "tests/a.txt",
        "training-notes.txt",
        "evaluation.txt",
        "a/train.txt",
        "b/test.txt",
    )
    assert len(list_files(tmp_path, (".txt",)).files) == 6


def test_many_of_a_kind_are_one_line(tmp_path):
    put(tmp_path, *(f"{i}.zst" for i in range(9)), "a.txt")
    lines = list_files(tmp_path, (".txt",)).left_out.lines()
    assert lines == ["9 left out: another suffix, .zst (0.zst, 1.zst, 2.zst, ...)"]


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    put(tmp_path / "elsewhere", "a.txt", "deep/b.txt")
    put(tmp_path / "source", "own/c.txt")
    source = tmp_path / "source"
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "again").symlink_to(tmp_path / "elsewhere" / "deep")
    (source / "own" / "loop").symlink_to(source)
    (source / "self.txt").symlink_to("self.txt")
    (source / "file.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    with pytest.raises(ValueError, match=r"self\.txt: cannot be read"):
        list_files(source, (".txt",))
    (source / "self.txt").unlink()
    found = list_files(source, (".txt",))
    names = [path.relative_to(source).as_posix() for path in found.files]
    assert names == ["file.txt", "linked/a.txt", "linked/deep/b.txt", "own/c.txt"]
    assert found.left_out.counts == {"the same folder under another name": 2}


def test_a_link_to_a_file_that_is_gone_is_an_error_or_counted(tmp_path):
    put(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to("/nowhere/b.txt")
    with pytest.raises(
        ValueError, match=r"b\.txt: cannot be read \(a link to /nowhere/b\.txt, which is not there\)"
    ):
        Corpus(tmp_path)
    corpus = Corpus(tmp_path, skip_bad_files=True)
    assert list(corpus.documents()) == ["x"] and corpus.left_out.counts == {"cannot be read": 1}
    with pytest.raises(ValueError, match=r"b\.txt: cannot be read"):
        Corpus(tmp_path / "b.txt")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a.txt", "secret/b.txt")

    def listdir(path, real=os.listdir):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(module.os, "listdir", listdir)
    with pytest.raises(ValueError, match=r"secret: cannot be read \(Permission denied\).*--skip-bad-files"):
        Corpus(tmp_path)
    assert Corpus(tmp_path, skip_bad_files=True).left_out.counts == {"cannot be read": 1}


@pytest.mark.parametrize("number", ["EACCES", "EIO", "ESTALE"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, number):
    import errno

    put(tmp_path, "a.txt", "b.txt")
    code = getattr(errno, number)

    def opened(path, mode="r", real=open, **options):
        if str(path).endswith("b.txt"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, mode, **options)

    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(ValueError, match=rf"b\.txt: cannot be read \({os.strerror(code)}\)"):
        Corpus(tmp_path)
    corpus = Corpus(tmp_path, skip_bad_files=True)
    assert list(corpus.documents()) == ["x"]
    assert list(corpus.left_out.counts.values()) == [1]


def test_files_that_change_or_vanish_while_they_are_read(tmp_path):
    put(tmp_path, "a.txt", "b.txt")
    corpus = Corpus(tmp_path)
    put(tmp_path, "b.txt", text="longer")
    with pytest.raises(ValueError, match=r"b\.txt: changed while it was read \(from 1 to 6 bytes\)"):
        list(corpus.documents())
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"b\.txt: cannot be read \(No such file"):
        list(corpus.documents())


def test_sources_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", "/dev/null", "/dev/zero"):
        with pytest.raises(ValueError, match="a pipe, socket or device, and the documents are read twice"):
            Corpus(source)
    with pytest.raises(ValueError, match=r"cannot be read .*File name too long"):
        Corpus(tmp_path / ("x" * 300))
    with pytest.raises(ValueError, match="no such file or folder"):
        Corpus("a\0b")
    put(tmp_path, "empty.txt", text="")
    with pytest.raises(ValueError, match=r"nothing to read[\s\S]*1 left out: empty \(empty\.txt\)"):
        Corpus(tmp_path / "empty.txt")


def test_a_folder_of_nothing_that_is_read_says_what_it_holds(tmp_path):
    put(tmp_path, "a.orc", "b.orc")
    with pytest.raises(ValueError, match=r"nothing to read[\s\S]*2 left out: another suffix, \.orc"):
        Corpus(tmp_path)


def test_json_beside_documents_that_is_none(tmp_path):
    put(tmp_path, "a.jsonl", text='{"text": "one"}\n')
    put(tmp_path, "b.json", text='[{"text": "two"}]')
    put(tmp_path, "config.json", text='{"hidden_size": 3}')
    put(tmp_path, "vocab.json", text='{"text": 17}')
    put(tmp_path, "list.json", text="[1, 2]")
    put(tmp_path, "empty.json", text="[]")
    corpus = Corpus(tmp_path)
    assert list(corpus.documents()) == ["one", "two"]
    assert corpus.left_out.counts == {
        'JSON, but no key "text" (found: hidden_size)': 1,
        'JSON, but "text" is int, not text': 1,
        'JSON, but no key "text" (found: int)': 1,
        "JSON without a row": 1,
    }


def test_bad_rows_are_counted_where_that_was_asked_for(tmp_path):
    rows = [
        '{"text": "a"}',
        '{"text": null}',
        "{broken",
        '{"body": "b"}',
        '{"text": null}',
        '{"text": ""}',
        '["text"]',
    ]
    put(tmp_path, "a.jsonl", text="\n".join([*rows, '{"text": "z"}']))
    with pytest.raises(ValueError, match=r'a\.jsonl:2: "text" is null, not text\. .*--skip-bad-rows'):
        list(Corpus(tmp_path).documents())
    corpus = Corpus(tmp_path, skip_bad_rows=True)
    for _ in range(2):  # each reading counts for itself
        assert list(corpus.documents()) == ["a", "z"]
        assert corpus.seen.empty_rows == 1 and sum(corpus.seen.bad_rows.values()) == 5
        assert corpus.seen.bad_rows['"text" is null, not text'] == 2
        assert [place.rpartition(":")[2] for place in corpus.seen.places] == ["2", "3", "4"]


def test_a_bad_file_is_left_out_whole(tmp_path):
    put(tmp_path, "a.txt")
    (tmp_path / "b.txt").write_bytes(b"good line\n" * 300_000 + b"\xff\n")
    (tmp_path / "c.txt").write_bytes(b"%PDF-1.7\n")
    corpus = Corpus(tmp_path, skip_bad_files=True)
    assert list(corpus.documents()) == ["x"]
    assert sorted(corpus.left_out.counts) == ["a PDF", "byte 0xff at offset 3,000,000 is not UTF-8"]


def test_names_that_are_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9\n.txt"
    with open(path, "wb") as file:
        file.write(b"x")
    corpus = Corpus(tmp_path)
    assert list(corpus.documents()) == ["x"] and len(corpus.fingerprint()) == 64
    with open(path, "ab") as file:
        file.write(b"\xff")
    with pytest.raises(ValueError, match=r"caf\\udce9\\n\.txt: byte 0xff") as error:
        list(corpus.documents())
    assert json.dumps(str(error.value)) and "\n" not in str(error.value)


def test_a_dataset_of_the_hub_comes_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "hf download org/chats --repo-type dataset --local-dir chats."
    for read in (RowFiles, lambda name: Corpus(name)):
        with pytest.raises(ValueError, match=command):
            read("org/chats")
    (tmp_path / "org").mkdir()
    for name in ("org/chats", "other/chats.jsonl", "chats", "/org/chats"):
        assert how_to_fetch(name) == ""
