"""Nothing is deleted that prepare did not write, one prepares at a time, and what a killed one left is tidied."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cktrain.data import target as module
from cktrain.data.prepare import prepare
from cktrain.data.shards import open_source
from cktrain.data.target import Target
from cktrain.folder_lock import lock_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    text = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(20))
    (folder / "corpus.jsonl").write_text(text)
    prepare(folder / "corpus.jsonl", folder / "out", vocab_size=270, progress=False)
    return folder


@pytest.fixture
def place(made, tmp_path) -> Path:
    """A folder with corpus.jsonl and out, fresh for each test."""
    for path in [made / "corpus.jsonl", *sorted((made / "out").iterdir())]:
        copy = tmp_path / path.relative_to(made)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def run(place, out="out", source="corpus.jsonl", **options):
    said = []
    options = {"vocab_size": 280, "progress": False, "overwrite": True, "say": said.append} | options
    prepare(place / source, place / out, **options)
    return said


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize(
    "name", ["thesis.txt", "notes/a.txt", ".hidden", "train-00000.cktok.bak", "train-00007.cktok"]
)
def test_files_of_others_are_not_deleted(place, name):
    (place / "out" / name).parent.mkdir(exist_ok=True)
    (place / "out" / name).write_text("precious")
    before = contents(place)
    for options in ({"overwrite": True}, {"overwrite": False, "reuse": True}):
        with pytest.raises(ValueError, match=rf"would be deleted: {name.split('/')[0]}\. Move it away"):
            run(place, **options)
    assert contents(place) == before


def test_a_file_that_comes_while_it_is_prepared_is_not_deleted(place, monkeypatch):
    from cktrain.data import prepare as preparing

    def write(*arguments, real=preparing.write_synced):
        (place / "out" / "late.txt").write_text("precious")
        real(*arguments)

    monkeypatch.setattr(preparing, "write_synced", write)
    with pytest.raises(ValueError, match=r"would be deleted: late\.txt"):
        run(place)
    assert (place / "out" / "late.txt").read_text() == "precious"
    assert sorted(path.name for path in place.iterdir()) == ["corpus.jsonl", "out"]


@pytest.mark.parametrize("text", ['{"mine": 1}', "{", "[]", '{"version": 1, "splits": 3}', '{"version": 99}'])
def test_a_dataset_file_of_another_kind_is_left_alone(place, text):
    (place / "out" / "dataset.json").write_text(text)
    before = contents(place)
    with pytest.raises(ValueError, match="nothing in it is deleted"):
        run(place)
    assert contents(place) == before


def test_a_link_in_place_of_a_shard_is_not_deleted(place):
    shard = place / "out" / "train-00000.cktok"
    shard.rename(place / "elsewhere.cktok")
    shard.symlink_to(place / "elsewhere.cktok")
    with pytest.raises(ValueError, match=r"would be deleted: train-00000\.cktok"):
        run(place)


def test_out_and_source_in_each_other(place):
    texts = place / "texts"
    texts.mkdir()
    (texts / "a.jsonl").write_bytes((place / "corpus.jsonl").read_bytes())
    (place / "link").symlink_to(texts)
    with pytest.raises(ValueError, match=r"lies in the source"):
        run(place, out="texts/out", source="texts")
    with pytest.raises(ValueError, match=r"lies in the source"):
        run(place, out="link/deep/out", source="texts")  # by another name
    with pytest.raises(ValueError, match=r"lies in the source"):
        run(place, out="texts/out", source="link")
    with pytest.raises(ValueError, match="exists and is not a prepared folder"):
        run(place, out="texts", source="texts")
    (place / "out" / "corpus.jsonl").write_bytes((place / "corpus.jsonl").read_bytes())
    with pytest.raises(ValueError, match=r"would be deleted: corpus\.jsonl"):
        run(place, source="out/corpus.jsonl")
    assert sorted(path.name for path in texts.iterdir()) == ["a.jsonl"]


def test_a_source_that_is_reached_through_out(place):
    (place / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no file|nothing to read"):
        run(place, out="empty", source="empty")
    (place / "other").mkdir()
    (place / "other" / "x.jsonl").symlink_to(place / "out" / "tokenizer.json")
    with pytest.raises(ValueError, match="holds the source"):
        run(place, source="other", text_key="version")


def test_a_link_stays_a_link(place):
    (place / "disk").mkdir()
    (place / "link").symlink_to(place / "disk" / "out")
    run(place, out="link", overwrite=False)
    assert (place / "link").is_symlink() and open_source(place / "disk" / "out").vocab_size == 280
    run(place, out="link", vocab_size=275)
    assert (place / "link").is_symlink() and open_source(place / "disk" / "out").vocab_size == 275
    assert sorted(path.name for path in place.iterdir()) == ["corpus.jsonl", "disk", "link", "out"]
    assert [path.name for path in (place / "disk").iterdir()] == ["out"]


def test_places_that_cannot_be_replaced(place, monkeypatch):
    monkeypatch.chdir(place / "out")
    with pytest.raises(ValueError, match="is the folder that this command runs in, or holds it"):
        prepare(place / "corpus.jsonl", ".", overwrite=True, progress=False)
    with pytest.raises(ValueError, match=r"exists and is not a prepared|runs in"):
        prepare(place / "corpus.jsonl", "", overwrite=True, progress=False)
    with pytest.raises(ValueError, match="is the root of all"):
        prepare(place / "corpus.jsonl", "/", overwrite=True, progress=False)
    monkeypatch.chdir(place)
    monkeypatch.setattr(module.os.path, "ismount", lambda path: str(path).endswith("out"))
    with pytest.raises(ValueError, match=r"where a file system is mounted.*out/data"):
        run(place)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="exists and is not a prepared folder"):
        run(place, out="corpus.jsonl")
    (place / "loop").symlink_to("loop")
    with pytest.raises((ValueError, OSError)):
        run(place, out="loop")


def test_a_training_keeps_the_shards_that_it_has_open(place):
    source = open_source(place / "out")
    before = source.read(0, len(source)).copy()
    run(place)
    run(place, vocab_size=275)
    assert np.array_equal(source.read(0, len(source)), before)
    assert open_source(place / "out").vocab_size == 275


def test_the_mode_of_a_folder_is_kept(place):
    (place / "out").chmod(0o2770)
    run(place)
    assert (place / "out").stat().st_mode & 0o7777 == 0o2770


def test_two_prepares_of_one_folder(place):
    with (
        lock_folder(place / "out.preparing", "cktrain data prepare"),
        pytest.raises(
            ValueError, match=rf"out\.preparing is in use by cktrain data prepare, pid {os.getpid()}"
        ),
    ):
        run(place)
    before = contents(place / "out")
    run(place, overwrite=False, reuse=True, vocab_size=270)
    assert contents(place / "out") == before


def test_reuse_beside_one_that_is_at_work(place):
    with Target(place / "out", True, print) as other:
        (other.data / "half").write_text("x")
        run(place, overwrite=False, reuse=True, vocab_size=270)  # nothing to write: not in each other's way
        assert (other.data / "half").exists()


# As put_in_place does, after its check; the new folder is a whole one.
MOVE_AWAY = """
target.existing = None
os.rename(target.out, target._replaced)
import shutil
shutil.copytree(target._replaced, target.data, dirs_exist_ok=True, ignore=shutil.ignore_patterns("notes"))
os.rename(target.data, target.out)
"""


def killed(place, code):
    """Run code in a process that ends without any cleaning up."""
    code = (
        "import os, sys\nfrom cktrain.data.target import Target\n"
        "Target._check = lambda *_: None\n"
        "target = Target(sys.argv[1], True, print)\ntarget.__enter__()\n" + code + "\nos._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place / "out")], check=False)
    assert done.returncode == 9


def test_what_a_killed_one_left_is_removed_with_a_word(place):
    killed(place, "(target.data / 'train-00000.cktok.tmp').write_text('half')")
    assert (place / "out.preparing" / "data" / "train-00000.cktok.tmp").exists()
    said = run(place, overwrite=False, reuse=True, vocab_size=270)  # also where nothing is to be made
    assert [line for line in said if "removing what one that was killed has left" in line and "pid" in line]
    assert sorted(path.name for path in place.iterdir()) == ["corpus.jsonl", "out"]


@pytest.mark.parametrize("moment", ["between", "after"])
def test_one_that_was_killed_while_it_replaced(place, moment):
    before = contents(place / "out")
    rest = "\nos.rename(target.data, target.out)" if moment == "after" else ""
    killed(
        place,
        "(target.data / 'dataset.json').write_text('{}')\nos.rename(target.out, target._replaced)" + rest,
    )
    if moment == "between":
        assert not (place / "out").exists()
        with pytest.raises(ValueError, match="already holds prepared data"):
            run(place, overwrite=False)
        assert contents(place / "out") == before
        run(place)
    else:
        with pytest.raises(ValueError, match="nothing in it is deleted"):  # '{}' is no dataset.json
            run(place)
    assert sorted(path.name for path in place.iterdir()) == ["corpus.jsonl", "out"]


def test_what_others_put_into_a_folder_that_is_being_replaced_stays(place):
    """Between the check and the rename there is time for a copy to begin."""
    (place / "out" / "notes").mkdir()
    (place / "out" / "notes" / "a.txt").write_text("precious")
    killed(place, MOVE_AWAY)
    with pytest.raises(ValueError, match=r"replaced: is left from one that was killed and cannot be removed"):
        run(place)
    kept = place / "out.preparing" / "replaced" / "notes" / "a.txt"
    assert kept.read_text() == "precious" and open_source(place / "out").vocab_size == 270


def test_an_interrupt_while_it_is_replaced(place, monkeypatch):
    before = contents(place / "out")

    def rename(source, destination, real=os.rename):
        real(source, destination)
        if Path(destination).name == "replaced":
            raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        run(place)
    assert contents(place / "out") == before
    assert sorted(path.name for path in place.iterdir()) == ["corpus.jsonl", "out"]


def test_a_folder_of_ones_own_with_the_workspace_s_name(place):
    (place / "out.preparing").mkdir()
    (place / "out.preparing" / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"out\.preparing: is needed .* holds something else: mine\.txt"):
        run(place)
    assert (place / "out.preparing" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("number", ["EXDEV", "EACCES", "EPERM", "EBUSY"])
def test_what_the_end_will_need_is_tried_at_the_start(place, monkeypatch, number):
    """A layer of an image, a protected folder, another's folder: said before the work, not after it."""
    before = contents(place)

    def rename(source, destination, real=os.rename):
        if Path(source).name == "out":
            raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
        real(source, destination)

    monkeypatch.setattr(module.os, "rename", rename)
    monkeypatch.setattr("cktrain.data.prepare._write_shards", None)  # would fail if it were called
    with pytest.raises(ValueError, match=r"out: cannot be moved aside \("):
        run(place)
    assert contents(place) == before and not (place / "out.preparing").exists()


def test_what_cannot_be_removed_is_said_at_the_start(place):
    """As on NFS, where a file that is open keeps its folder."""
    (place / "out.preparing" / "replaced").mkdir(parents=True)
    (place / "out.preparing" / "replaced" / ".nfs01").write_text("x")
    with pytest.raises(ValueError, match=r"replaced: is left from one that was killed and cannot be removed"):
        run(place)
    assert (place / "out.preparing" / "replaced" / ".nfs01").exists()


def test_a_parent_that_cannot_be_written(place, monkeypatch):
    (place / "file").write_text("x")
    with pytest.raises(ValueError, match="file"):
        run(place, out="file/out")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match=r"Permission denied\. Give a folder that can be written to"):
        run(place)
