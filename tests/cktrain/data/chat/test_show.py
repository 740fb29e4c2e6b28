"""Rows of a prepared folder, with what is learned set off."""

from cktrain.data.chat.show import shown_rows
from cktrain.data.shards import ShardWriter
from cktrain.data.tokenizer import Tokenizer


def test_packed_rows_are_shown_without_padding(tmp_path):
    tokenizer = Tokenizer.train(["abc"], 257)
    tokenizer.save(tmp_path)
    a, b, c = tokenizer.encode("abc")
    with ShardWriter(
        tmp_path / "train-00000.cktok", 257, tokenizer.eos_id, loss_mask=True, row_length=8
    ) as shard:
        learned = [False, True, True, False, True, False, False, False]
        begins = [True, False, False, True, False, True, False, False]
        shard.append([a, b, c, b, c, 0, 0, 0], 1, learned, begins)
    (tmp_path / "dataset.json").write_text(
        '{"version": 1, "splits": {"train": {"shards": [{"file": "train-00000.cktok"}]}, "validation": {"shards": []}}}'
    )
    first, second = shown_rows(tmp_path, 9)
    assert (first.plain(), first.tokens, first.trained, first.sequence) == ("a⟦bc⟧", 3, 2, 0)
    assert second.plain() == "b⟦c⟧"
    assert len(shown_rows(tmp_path, 1)) == 1
