"""A folder of files of ids: which are trained on and which held out, by their names."""

import numpy as np
import pytest

from cktrain.data.id_folder import id_files
from cktrain.data.shards import ShardWriter, open_source


def put(folder, **files):
    for name, ids in files.items():
        np.array(ids, "<u2").tofile(folder / name.replace("__", "."))


def test_nano_gpt_s_two_files_and_nothing_else(tmp_path):
    put(tmp_path, train__bin=[1, 2, 3], val__bin=[4, 5], other__bin=[9])
    assert open_source(tmp_path, vocab_size=300).read(0, 3).tolist() == [1, 2, 3]
    assert open_source(tmp_path, "validation", vocab_size=300).read(0, 2).tolist() == [4, 5]


def test_llm_c_s_shards_in_the_order_of_their_names(tmp_path):
    put(
        tmp_path,
        fineweb_train_000002__bin=[3],
        fineweb_train_000001__bin=[1, 2],
        fineweb_val_000000__bin=[9, 9],
    )
    put(tmp_path, fineweb_test_000000__bin=[7])
    source = open_source(tmp_path, vocab_size=300)
    assert source.read(0, len(source)).tolist() == [1, 2, 3]
    assert len(open_source(tmp_path, "validation", vocab_size=300)) == 2


def test_olmo_core_s_parts_are_all_trained_on(tmp_path):
    put(tmp_path, **{f"part-{i}__npy": [i, i] for i in range(3)})
    source = open_source(tmp_path, vocab_size=300, eos_id=2)
    assert source.read(0, len(source)).tolist() == [0, 0, 1, 1, 2, 2] and source.eos_id == 2
    with pytest.raises(ValueError, match=r"holds neither dataset\.json nor val\.bin"):
        open_source(tmp_path, "validation", vocab_size=300)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a__bin", "b__npy"), r"two kinds, a\.bin and b\.npy"),
        (("a_train__bin", "b__bin"), r"a_train\.bin says in its name what it is for, and b\.bin does not"),
    ],
)
def test_a_folder_that_does_not_say_what_is_meant(tmp_path, names, message):
    put(tmp_path, **{name: [1, 2] for name in names})
    with pytest.raises(ValueError, match=message):
        id_files(tmp_path, "train")


def test_an_end_of_documents_that_the_data_contradict(tmp_path):
    with ShardWriter(tmp_path / "a.cktok", 300, eos_id=0) as shard:
        shard.append([5, 6, 0], 3)
    assert open_source(tmp_path / "a.cktok", vocab_size=300, eos_id=0).eos_id == 0
    with pytest.raises(ValueError, match=r"documents end with id 0, and data\.eos_id says 7"):
        open_source(tmp_path / "a.cktok", vocab_size=300, eos_id=7)
    put(tmp_path, b__bin=[1, 2])
    with pytest.raises(ValueError, match=r"data\.eos_id 300 is beyond the model's vocabulary of 300"):
        open_source(tmp_path / "b.bin", vocab_size=300, eos_id=300)
