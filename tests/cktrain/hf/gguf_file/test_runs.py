"""Runs that start from a GGUF file: what trains is saved, what is frozen stays in the file, by its SHA-256."""

import numpy as np
import pytest

import cktrain as ck
from cktrain.checkpoint_record import CheckpointError

FROZEN = ["model.embed_tokens", "model.layers.0.*"]


def config(path, tokens_file, folder, freeze):
    return {
        "run": {"dir": str(folder), "steps": 2},
        "model": {"from_pretrained": str(path), "freeze": freeze},
        "data": {"path": str(tokens_file), "sequence_length": 16},
        "batch": {"micro_batch_size": 2, "global_batch_size": 4},
        "schedule": {"warmup_steps": 0},
    }


def test_a_run_trains_from_a_file_as_from_the_folder_made_of_it(gguf, tokens_file, tmp_path):
    from cktrain.hf.gguf_file.import_gguf import import_gguf

    path = gguf("llama3")
    import_gguf(path, tmp_path / "hf")
    for name, source in (("a", path), ("b", tmp_path / "hf")):
        ck.train(config(source, tokens_file, tmp_path / name, []), bar=False)
    ids = np.array([1, 5, 9, 30])
    one, other = (ck.load(tmp_path / name) for name in ("a", "b"))
    np.testing.assert_array_equal(one.logits(ids), other.logits(ids))
    assert one.encode("the thing") == ck.load(path).encode("the thing")


def test_frozen_weights_stay_in_the_file(gguf, tokens_file, tmp_path):
    path = gguf("llama", "q8_0")
    ck.train(config(path, tokens_file, tmp_path / "run", FROZEN), bar=False)
    model = ck.load(tmp_path / "run")
    assert np.isfinite(model.logits([1, 2, 3])).all()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"llama-q8_0\.gguf is not the one recorded"):
        ck.load(tmp_path / "run").logits([1, 2, 3])
