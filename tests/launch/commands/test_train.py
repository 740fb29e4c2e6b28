"""`cktrain train`: what the system refuses while a run is composed is agreed on by all ranks, and said in one line."""

from __future__ import annotations

import errno
import os

import pytest

from cktrain.host import bind
from cktrain.launch.cli import main

CONFIG = """\
run: {dir: run, steps: 2}
model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 24, vocab_size: 280}
data: {path: data, sequence_length: 16}
batch: {micro_batch_size: 1, global_batch_size: 2}
"""


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/data/train-00000.shard"),
        OSError(errno.EIO, "Input/output error", "/weights/model.safetensors"),
        OSError(errno.ESTALE, "Stale file handle", "/nfs/data"),
        OSError(errno.EMFILE, "Too many open files", "/data/x"),
    ],
    ids=lambda error: errno.errorcode[error.errno],
)
def test_what_the_system_refuses_while_composing_is_one_line(tmp_path, monkeypatch, capsys, error):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bind, "bind", lambda *_args, **_kwargs: bind.Binding((0,), 1, (), ""))
    (tmp_path / "run.yaml").write_text(CONFIG)

    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cktrain.training_data.open_source", refused)
    assert main(["train", "run.yaml"]) == 2
    err = capsys.readouterr().err
    assert f"{error.filename}: {error.strerror} (on {os.uname().nodename})" in err
    assert err.count("\n") == 1 and "Traceback" not in err and "Errno" not in err
