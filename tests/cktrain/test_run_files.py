"""From a Hugging Face folder through data, training and moves to text and an export: every side file stays what it was."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers_made_here import SIDE_FILES, backend, write_side_files, write_tokenizer

from cktrain import cython_kernels
from cktrain.comm.solo_group import SoloGroup
from cktrain.compose import compose
from cktrain.config import Config
from cktrain.config_file import load_config
from cktrain.data.prepare import prepare
from cktrain.hf.folder import save_folder
from cktrain.host import bind
from cktrain.launch.cli import main
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.saved_model import find_saved_model

TEXT = "one two three four five. " * 40
MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 288,
    "max_position_embeddings": 32,
}


def write_model(folder: Path, **config: Any) -> None:
    """config.json and weights beside what is in the folder."""
    model = parse_model(MODEL)
    numerics = Numerics(cython_kernels.load(), "fp32")
    params = ParamStore(build_model(model, numerics, 32).params(), numerics)
    params.initialize(seed=1)
    save_folder(folder.with_name("weights"), model, params)
    values = json.loads((folder.with_name("weights") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "eos_token_id": 2, **config}))
    shutil.move(folder.with_name("weights") / "model.safetensors", folder)
    shutil.rmtree(folder.with_name("weights"))


def config_of(**keys: Any) -> Config:
    values: dict[str, Any] = {
        "run": {"dir": "run", "steps": 1},
        "model": {"from_pretrained": "hf"},
        "data": {"path": "data", "sequence_length": 16},
        "batch": {"micro_batch_size": 1, "global_batch_size": 1},
        "precision": "fp32",
    }
    for key, value in keys.items():
        block, _, name = key.partition(".")
        values[block] = {**values[block], name: value} if name else value
    return Config.model_validate(values)


def train(**keys: Any) -> None:
    built = compose(config_of(**keys), SoloGroup(), threads=1)
    try:
        built.trainer.run()
    finally:
        built.close()


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder, data prepared with its tokenizer, a fresh model's run on the data, and a tuned run."""
    place = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    os.chdir(place)
    try:
        write_tokenizer(Path("hf"), backend(bos=True))
        write_side_files(Path("hf"))
        write_model(Path("hf"), bos_token_id=0, some_hint="kept")
        Path("text.txt").write_text(TEXT)
        prepare("text.txt", "data", tokenizer="hf", validation_fraction=0, progress=False)
        train()
        train(**{"run.dir": "fresh", "model": MODEL})
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def place(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    shutil.copytree(made_once, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    binding = bind.Binding((0,), 1, None, "")
    monkeypatch.setattr(bind, "bind", lambda *_args, **_kwargs: binding)
    return tmp_path / "here"


def exported_as_in(source: Path, out: Path) -> None:
    names = ["tokenizer.json", "tokenizer_config.json", *SIDE_FILES]
    assert {name: (out / name).read_bytes() for name in names} == {
        name: (source / name).read_bytes() for name in names
    }


def test_an_export_has_every_side_file_of_the_source_though_that_is_gone(place, capfd):
    source = shutil.move("hf", "../hf")
    shutil.rmtree("data")
    assert main(["export", "run", "out"]) == 0
    exported_as_in(Path(source), Path("out"))
    values = json.loads(Path("out/config.json").read_text())
    theirs = json.loads(Path(source, "config.json").read_text())
    assert values == theirs and values["some_hint"] == "kept"


def test_a_checkpoint_alone_is_enough_wherever_it_is(place, tmp_path, monkeypatch, capfd):
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree("run/checkpoints/step-00000001", moved)
    shutil.rmtree(place / "hf")
    shutil.rmtree(place / "data")
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_tokenizer(Path("data"), backend(("six",)))  # another one at the same relative path is never taken
    write_tokenizer(Path("hf"), backend(("six",)))
    assert main(["generate", "renamed", "--prompt", "one", "--max-tokens", "3"]) == 0
    assert main(["export", "renamed", "out"]) == 0
    assert b"three" in Path("out/tokenizer.json").read_bytes()
    assert "step-" not in capfd.readouterr().out.splitlines()[-1]


def test_a_run_moved_and_a_current_folder_elsewhere(place, tmp_path, monkeypatch, capfd):
    shutil.move("fresh", tmp_path / "moved")
    monkeypatch.chdir("/")
    assert main(["generate", str(tmp_path / "moved"), "--max-tokens", "2"]) == 0
    assert main(["export", str(tmp_path / "moved"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        place / "hf" / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize("command", [["generate", "run"], ["export", "run", "out"]])
def test_another_tokenizer_is_refused_unless_asked_for(place, capfd, command):
    write_tokenizer(Path("six"), backend(("six",)))
    assert main([*command, "--tokenizer", "six"]) == 2
    err = capfd.readouterr().err
    assert (
        "[tokenizer] six/tokenizer.json is not the tokenizer of run/checkpoints/step-00000001: other vocabulary"
        in err
    )
    assert "--any-tokenizer" in err and not Path("out").exists()
    assert main([*command, "--tokenizer", "six", "--any-tokenizer"]) == 0
    values = json.loads(Path("hf/tokenizer.json").read_text())
    Path("hf/tokenizer.json").write_text(json.dumps(values, indent=7))
    shutil.rmtree("out", ignore_errors=True)
    assert main([*command, "--tokenizer", "hf"]) == 0  # the same one, spelled otherwise


def test_a_damaged_checkpoint_is_named_before_anything_is_written(place, capfd):
    folder = Path("run/checkpoints/step-00000001/model_files")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}<|im_bad|>{% endfor %}"
    )
    assert main(["export", "run", "out"]) == 2
    assert "model_files: chat_template.jinja is not the one recorded" in capfd.readouterr().err
    assert not Path("out").exists()


def test_a_checkpoint_of_before_asks_for_its_tokenizer(place, capfd):
    checkpoint = Path("run/checkpoints/step-00000001")
    shutil.rmtree(checkpoint / "model_files")
    marker = json.loads((checkpoint / "COMPLETE").read_text())
    kept = {name: value for name, value in marker.items() if not name.startswith("model_files/")}
    (checkpoint / "COMPLETE").write_text(json.dumps(kept))
    assert main(["generate", "run"]) == 2
    assert "was written before checkpoints kept their tokenizer" in capfd.readouterr().err
    assert main(["generate", "run", "--tokenizer", "data", "--max-tokens", "2"]) == 0
    assert main(["export", "run", "out", "--tokenizer", "none"]) == 0
    assert not Path("out/tokenizer.json").exists()


def test_a_checkpoint_copied_without_its_folders_is_told_so(place, capfd):
    shutil.copytree("run/checkpoints/step-00000001", "flat", ignore=shutil.ignore_patterns("model_files"))
    assert main(["export", "flat", "out"]) == 2
    assert "flat: model_files is missing, which COMPLETE lists" in capfd.readouterr().err


def test_data_of_another_tokenizer_is_refused_by_both_names(place, caplog):
    write_tokenizer(Path("six"), backend(("six",)))
    prepare("text.txt", "other", tokenizer="six", validation_fraction=0, progress=False)
    with pytest.raises(ValueError, match="allow_other_tokenizer") as error:
        train(**{"run.dir": "new", "data.path": "other"})
    assert (
        "other/tokenizer.json, is not that of the pretrained model, hf/tokenizer.json: other vocabulary"
        in str(error.value)
    )
    assert not Path("new/checkpoints").exists()
    with caplog.at_level(logging.WARNING, "cktrain"):
        train(
            **{
                "run.dir": "new",
                "data": {"path": "other", "sequence_length": 16, "allow_other_tokenizer": True},
            }
        )
    assert "is not that of the pretrained model" in caplog.text
    side = find_saved_model("new").side
    assert side is not None and side.files["tokenizer.json"] == Path("six/tokenizer.json").read_bytes()


def test_a_resumed_run_compares_with_its_checkpoint(place):
    write_tokenizer(Path("six"), backend(("six",)))
    prepare("text.txt", "data", tokenizer="six", validation_fraction=0, overwrite=True, progress=False)
    with pytest.raises(
        ValueError, match=r"is not the tokenizer of run/checkpoints/step-00000001: other vocabulary"
    ):
        train(**{"run.steps": 2})


def test_validation_data_of_another_tokenizer_is_refused(place):
    write_tokenizer(Path("six"), backend(("six",)))
    prepare("text.txt", "other", tokenizer="six", validation_fraction=0, progress=False)
    with pytest.raises(ValueError, match="that the validation data was prepared with, other/tokenizer"):
        train(
            **{
                "run.dir": "new",
                "data": {"path": "data", "sequence_length": 16, "validation": {"every": 1, "path": "other"}},
            }
        )


@pytest.mark.parametrize("how", ["replaced", "gone"])
def test_a_tokenizer_that_did_not_make_the_tokens_is_found_out(place, how):
    file = Path("data/tokenizer.json")
    file.unlink()
    if how == "replaced":
        file.symlink_to(write_tokenizer(place / "six", backend(("six",))) / "tokenizer.json")
    with pytest.raises(ValueError, match=r"data/tokenizer\.json is (not the one|missing)"):
        train(**{"run.dir": "new", "model": MODEL})


def test_a_model_with_fewer_ids_than_the_tokenizer_trains_while_they_are_unused(place, capfd):
    write_tokenizer(Path("spare"), backend(bos=True, spare=True))
    prepare("text.txt", "more", tokenizer="spare", validation_fraction=0, progress=False)
    size = 1 + max(backend(bos=True).get_vocab().values())
    train(**{"run.dir": "new", "data.path": "more", "model": {**MODEL, "vocab_size": size}})
    assert main(["generate", "new", "--prompt", "one", "--max-tokens", "2"]) == 0
    assert main(["generate", "new", "--prompt", "<spare>", "--special-tokens", "parse"]) == 2
    assert (
        f"the token '<spare>', id {size}, and the model's vocabulary has {size} ids" in capfd.readouterr().err
    )


def test_a_token_that_the_data_uses_and_the_model_has_not_is_named(place):
    write_tokenizer(Path("spare"), backend(bos=True, spare=True), eos_token="<spare>")
    prepare("text.txt", "more", tokenizer="spare", validation_fraction=0, progress=False)
    size = 1 + max(backend(bos=True).get_vocab().values())
    with pytest.raises(
        ValueError,
        match=rf"token id {size} at position .* It is that of '<spare>': take this out",
    ):
        train(**{"run.dir": "new", "data.path": "more", "model": {**MODEL, "vocab_size": size}})


def test_a_run_goes_on_though_its_folders_are_gone_and_saves_what_it_had(place):
    shutil.rmtree("hf")
    built = compose(load_config("run/config.yaml", ["run.steps=2"]), SoloGroup(), threads=1)
    shutil.rmtree("run/model_files")  # somebody tidies up while it trains
    shutil.rmtree("data")
    built.trainer.run()
    built.close()
    assert main(["export", "run/checkpoints/step-00000002", "out"]) == 0
    assert Path("out/chat_template.jinja").read_text() == SIDE_FILES["chat_template.jinja"]


def test_the_runs_own_copy_is_not_what_a_checkpoint_is_read_with(place, capfd):
    write_tokenizer(Path("run/model_files"), backend(("six",)))
    assert main(["export", "run", "out"]) == 0
    exported_as_in(Path("hf"), Path("out"))


def test_the_same_tokenizer_without_a_template_loses_none(place, capfd):
    write_tokenizer(Path("bare"), backend(bos=True))
    assert main(["export", "run", "out", "--tokenizer", "bare/tokenizer.json"]) == 0
    exported_as_in(Path("hf"), Path("out"))


def test_links_of_a_cache_become_files_and_a_dangling_one_is_named(place, capfd):
    Path("blobs").mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.move(Path("hf", name), Path("blobs", name))
        Path("hf", name).symlink_to(Path("..", "blobs", name))
    train(**{"run.dir": "linked"})
    shutil.rmtree("blobs")
    assert main(["export", "linked", "out"]) == 0
    assert (
        not Path("out/tokenizer.json").is_symlink() and b"merges" in Path("out/tokenizer.json").read_bytes()
    )
    with pytest.raises(
        ValueError, match=r"hf/tokenizer\.json: a link to \.\./blobs/tokenizer\.json, which is not there"
    ):
        train(**{"run.dir": "again"})


def test_a_side_file_that_cannot_be_read_is_named(place):
    Path("hf/merges.txt").mkdir()
    with pytest.raises(ValueError, match=r"hf/merges\.txt: cannot be read \(Is a directory\)"):
        train(**{"run.dir": "new"})


def test_templates_in_both_places_stay_in_both(place, capfd):
    values = json.loads(Path("hf/tokenizer_config.json").read_text())
    Path("hf/tokenizer_config.json").write_text(json.dumps({**values, "chat_template": "another one"}))
    train(**{"run.dir": "both"})
    assert main(["export", "both", "out"]) == 0
    exported_as_in(Path("hf"), Path("out"))


def test_an_export_onto_other_files_changes_nothing(place, capfd):
    before = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    assert main(["export", "run", "data"]) == 2
    assert {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()} == before


def test_data_that_is_encoded_otherwise_is_told_on_resume(place, caplog):
    prepare(
        "text.txt",
        "data",
        tokenizer="hf",
        special_tokens="parse",
        validation_fraction=0,
        overwrite=True,
        progress=False,
    )
    with caplog.at_level(logging.WARNING, "cktrain"):
        train(**{"run.steps": 2})
    assert 'encoded otherwise than the run\'s data was: {"special_tokens": "parse"' in caplog.text


def test_data_of_before_that_lacks_the_models_beginning_is_told(place, caplog):
    dataset = json.loads(Path("data/dataset.json").read_text())
    del dataset["begin_ids"], dataset["special_tokens"]
    Path("data/dataset.json").write_text(json.dumps(dataset))
    with caplog.at_level(logging.WARNING, "cktrain"):
        train(**{"run.dir": "new"})
    assert "begin with the text, and the model's tokenizer puts 0 before it" in caplog.text


def test_documents_that_end_otherwise_than_the_model_knows_are_told(place, caplog):
    prepare(
        "text.txt",
        "data",
        tokenizer="hf",
        eos_token="<s>",
        validation_fraction=0,
        overwrite=True,
        progress=False,
    )
    with caplog.at_level(logging.WARNING, "cktrain"):
        train(**{"run.dir": "new"})
    assert "documents of data end with id 0, and the model's eos ids are 2, 1" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {}, "encoding": {"eos_id": "1"}}'])
def test_a_damaged_record_is_named(place, capfd, text):
    record = Path("run/checkpoints/step-00000001/model_files/record.json")
    record.write_text(text)
    assert main(["export", str(record.parents[1]), "out"]) == 2
    assert "model_files/record.json: " in capfd.readouterr().err
    assert not Path("out").exists()


def test_an_end_beyond_the_vocabulary_never_comes_and_is_told(place, capfd):
    Path("hf/generation_config.json").write_text('{"eos_token_id": [2, 999]}')
    assert main(["generate", "hf", "--max-tokens", "2"]) == 0
    assert (
        "note: of the ids that end a text 999 are beyond the model's vocabulary of 288"
        in capfd.readouterr().err
    )
    Path("hf/generation_config.json").write_text('{"bos_token_id": 999}')
    Path("hf/tokenizer_config.json").write_text(
        '{"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": false}'
    )
    assert main(["generate", "hf", "--max-tokens", "2"]) == 2  # an empty prompt begins with it
    assert "id 999, and the model's vocabulary has 288 ids" in capfd.readouterr().err
    assert main(["generate", "hf", "--prompt", "one", "--max-tokens", "2"]) == 0  # here nobody uses it


def test_a_fresh_run_finds_a_shard_that_was_changed_since_it_was_prepared(place):
    shard = Path("data/train-00000.cktok")
    data = bytearray(shard.read_bytes())
    data[-8:-4] = data[-16:-12]
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"data/train-00000.cktok: is not the shard that was prepared"):
        train(**{"run.dir": "damaged"})
    assert not Path("damaged/checkpoints").exists()
