"""From rows to packed shards: all of them, whole, on their side of the split, and what is wrong is said at once."""

import datetime
import json
import re
from pathlib import Path

import numpy as np
import pytest
from chat_models import STOCK, SYSTEM, TURN, TURNS_TWO, write_model, write_rows

from cktrain.config import DataConfig
from cktrain.data.chat import prepare
from cktrain.data.chat.named_templates import NAMED
from cktrain.data.chat.prepare import ChatOptions, prepare_chat
from cktrain.data.chat.show import shown_rows
from cktrain.data.chat.template import stock_template, without_generation
from cktrain.data.shards import open_source
from cktrain.launch.cli import main
from cktrain.run_files import choose_side_files

COUNTING = [{"instruction": f"count to {i}", "output": " ".join(map(str, range(i + 1)))} for i in range(30)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(Path("model"))


def run(rows, out="out", model="model", **options):
    said = []
    source = rows if isinstance(rows, (str, Path)) else write_rows(Path("rows.jsonl"), rows)
    how = {name: options.pop(name) for name in ("reuse", "overwrite") if name in options}
    options = ChatOptions(**({"sequence_length": 160} | options))
    return prepare_chat(
        source, out, tokenizer=model, options=options, progress=False, say=said.append, **how
    ), said


def texts(folder="out", split="train"):
    return sorted(row.plain() for row in shown_rows(folder, 1000, split))


@pytest.mark.parametrize("packing", ["bfd", "none"])
def test_every_row_is_in_one_split_whole(packing):
    summary, _ = run(COUNTING, packing=packing, validation_fraction=0.1)
    splits = {split: texts(split=split) for split in ("train", "validation")}
    assert [len(splits[s]) for s in splits] == [27, 3] == [summary["splits"][s]["documents"] for s in splits]
    expected = [
        f"<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n{row['instruction']}<|im_end|>\n"
        f"<|im_start|>assistant\n⟦{row['output']}<|im_end|>⟧\n"
        for row in COUNTING
    ]
    assert sorted(splits["train"] + splits["validation"]) == sorted(expected)
    chat = summary["chat"]
    assert (
        chat["rows"] == 30 and chat["masks"] == {"generation blocks": 30} and chat["shapes"] == {"alpaca": 30}
    )
    lengths = [row.tokens for split in splits for row in shown_rows("out", 99, split)]
    assert chat["row_tokens"] == sum(lengths) and chat["length"]["max"] == max(lengths)
    assert chat["length"]["p50"] == sorted(lengths)[14]
    assert chat["trained_tokens"] == sum(r.trained for s in splits for r in shown_rows("out", 99, s))
    for split in splits:
        source = open_source("out", split)
        assert source.row_length == 160 and len(source) == 160 * summary["splits"][split]["sequences"]
    if packing == "none":
        assert chat["sequences"] == 30
    else:
        assert chat["sequences"] < 30 and chat["packing_efficiency"] > 0.7


def test_padding_is_a_row_of_its_own_without_labels():
    run([{"messages": TURN}], validation_fraction=0.0)
    source = open_source("out")
    begins = np.flatnonzero(source.begins(0, 160)).tolist()
    (row,) = shown_rows("out", 9)
    assert begins == [0, row.tokens] and not source.learned(row.tokens, 160 - row.tokens).any()


def test_shards_are_divided_and_the_same_again():
    run(COUNTING, shard_tokens=256, validation_fraction=0.0)
    assert len(list(Path("out").glob("train-*.cktok"))) > 3
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    run(COUNTING, shard_tokens=256, validation_fraction=0.0, overwrite=True)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_reuse_keeps_what_would_be_made_again():
    run(COUNTING)
    marker = Path("out/dataset.json").stat().st_ino
    run(COUNTING, reuse=True)
    assert Path("out/dataset.json").stat().st_ino == marker
    _, said = run(COUNTING, reuse=True, train_on="all")
    assert any("prepared again, because train_on was assistant and is all" in line for line in said)


def test_rows_that_were_made_by_other_rules_are_made_again(monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(prepare, "RULES", 1)
        run(COUNTING)
    _, said = run(COUNTING, reuse=True)
    assert any("prepared again, because rules was 1 and is 2" in line for line in said)


def test_bad_rows_are_told_together_and_nothing_is_made():
    rows = [*COUNTING, *[{"messages": []}] * 15, *[{"messages": TURN[:1]}] * 10]
    with pytest.raises(ValueError, match="25 of 55 rows cannot be used") as told:
        run(rows)
    lines = str(told.value).splitlines()
    assert lines[1].strip() == "15 x no messages. Correct the line."
    assert "10 x no answer: the last message is of user." in lines[2]
    assert lines[3].strip() == "rows.jsonl:31: no messages" and len(lines) == 3 + 20 + 1
    assert lines[-1].strip() == "and 5 more"
    assert sorted(path.name for path in Path().iterdir()) == ["model", "rows.jsonl"]


def test_skipped_rows_are_kept_beside_the_shards():
    path = Path("rows.jsonl")
    path.write_text("{no json\n" + "".join(json.dumps(row) + "\n" for row in [*COUNTING, {"messages": []}]))
    summary, said = run(path, skip_bad=True)
    rejected = [json.loads(line) for line in Path("out/rejected.jsonl").read_text().splitlines()]
    assert [(each["line"], each["row"]) for each in rejected] == [
        (1, {"text": "{no json"}),
        (32, {"messages": []}),
    ]
    assert "rejected.jsonl" in summary["written"] and sum(summary["chat"]["bad_rows"].values()) == 2
    assert any("bad rows left out, and written to rejected.jsonl: 2" in line for line in said)


def test_long_rows_are_dropped_cut_or_refused():
    long = {"prompt": "a", "completion": "b" * 200}
    _, said = run([*COUNTING, long])
    assert any("rows left out, longer than 160 tokens: 1" in line for line in said) and len(texts()) == 29
    with pytest.raises(
        ValueError, match=r"1 of 31 rows .3.2%. are longer than sequence_length 160; the longest has 202"
    ):
        run([*COUNTING, long], "other", too_long="error")
    with pytest.raises(ValueError, match=r"3 of 33 rows .* at most 5% may be dropped"):
        run([*COUNTING, *[long] * 3], "other")
    summary, _ = run([*COUNTING, *[long] * 3], "cut", too_long="truncate")
    assert summary["chat"]["truncated"] == 3 and f"a⟦{'b' * 159}⟧" in texts("cut")
    late = {"prompt": "a" * 200, "completion": "b"}
    summary, said = run([*COUNTING, late], "late", too_long="truncate")
    assert summary["chat"]["without_label"] == 1
    assert any("rows left out that have no label left: 1" in line for line in said)


def test_rows_that_are_all_cut_before_their_answers_are_told_with_the_longest():
    with pytest.raises(
        ValueError,
        match=r"without a label: 30; .* The longest has \d+ tokens: give a longer --sequence-length",
    ):
        run(COUNTING, sequence_length=10, too_long="truncate")


def test_twins_leaks_and_empty_answers_are_told():
    same = {"prompt": "What?", "completion": "That."}
    near = {"prompt": "what ?", "completion": "that"}
    rows = [same, {**near}, same, {"prompt": "x", "completion": " "}, *COUNTING]
    summary, said = run(rows, validation_fraction=0.2)  # the second row is in validation
    chat = summary["chat"]
    assert (chat["duplicates"], chat["leaks"], chat["near_leaks"], chat["empty_answers"]) == (1, 0, 1, 1)
    told = "\n".join(said)
    assert "rows that stand there already: 1 (first: rows.jsonl:3 is rows.jsonl:1)" in told
    assert "nearly the same as one of training: 1 (first: rows.jsonl:2)" in told
    assert "rows with an empty answer: 1 (first: rows.jsonl:4)" in told
    summary, said = run([same, same, *COUNTING], "exact", validation_fraction=0.2)
    assert summary["chat"]["leaks"] == summary["chat"]["near_leaks"] == 1
    assert "validation that are the same as one of training: 1" in "\n".join(said)


def test_a_split_that_was_cut_off_asks_for_a_longer_sequence():
    def of_length(count, length):
        return [
            {
                "messages": [
                    {"role": "user", "content": f"{i}" + "q" * length},
                    {"role": "assistant", "content": "a"},
                ]
            }
            for i in range(count)
        ]

    rows = [*of_length(20, 300), *of_length(1, 1)]
    with pytest.raises(ValueError, match="of 20 long rows what is learned was cut off"):
        run(rows[::-1], too_long="truncate", sequence_length=128, validation_fraction=0.05)


def test_rows_without_any_answer_are_refused():
    empty = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " \n"}]}
    with pytest.raises(ValueError, match=r"each of 9 rows has an empty answer .first: .*:1"):
        run([empty] * 9, sequence_length=128, validation_fraction=0.0)
    turn = [{"role": "user", "content": "more"}, {"role": "assistant", "content": "yes"}]
    run([{"messages": empty["messages"] + turn}] * 9, sequence_length=128, validation_fraction=0.0)


def test_a_group_stays_on_one_side():
    rows = [{**row, "who": f"user {i % 6}"} for i, row in enumerate(COUNTING)]
    summary, _ = run(rows, group_by="who", validation_fraction=0.5)
    assert summary["chat"]["groups"] == 6
    sides = [
        {int(text.split("count to ")[1].split("<")[0]) % 6 for text in texts(split=split)}
        for split in ("train", "validation")
    ]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 6
    with pytest.raises(ValueError, match='no key "whom", which --group-by names'):
        run(rows, "other", group_by="whom")
    with pytest.raises(ValueError, match="too few values of who for a validation split"):
        run([{**row, "who": 1} for row in COUNTING], "other", group_by="who")


def test_a_given_template_becomes_the_tokenizers_own():
    write_model(Path("bare"), None)
    with pytest.raises(
        ValueError, match=r"30 x a conversation, and the tokenizer has no chat template. Name one"
    ):
        run(COUNTING, model="bare")
    summary, _ = run(COUNTING, model="bare", chat_template="chatml")
    kept = Path("out/chat_template.jinja").read_text()
    assert "generation %" not in kept and "{% if true %}" in kept and summary["chat"]["template"] == "chatml"
    Path("mine.jinja").write_text(STOCK["qwen2.5"])
    _, said = run(COUNTING, "mine", model="bare", chat_template="mine.jinja")
    assert any("the chat template is that of qwen2.5" in line for line in said)
    with pytest.raises(ValueError, match="--chat-template nothing: no file that can be read"):
        run(COUNTING, "other", chat_template="nothing")


def test_a_tokenizer_may_have_several_templates_and_none_by_default():
    write_model(Path("bare"), None)
    file = Path("bare/tokenizer_config.json")
    values = json.loads(file.read_text())
    values["chat_template"] = [{"name": "rag", "template": STOCK["gemma"]}]
    file.write_text(json.dumps(values))
    Path("bare/additional_chat_templates").mkdir()
    Path("bare/additional_chat_templates/tools.jinja").write_text(STOCK["qwen2.5"])
    with pytest.raises(
        ValueError, match=r"no default chat template. Name one with --chat-template \(rag, tools, chatml"
    ):
        run(COUNTING, model="bare")
    for name in ("rag", "tools"):
        summary, _ = run(COUNTING, name, model="bare", chat_template=name)
        assert summary["chat"]["template"] == f"{name} of bare"
    assert Path("rag/chat_template.jinja").read_text() == STOCK["gemma"]


def test_columns_may_have_commas_and_signs_of_equality():
    rows = [{"my,question": f"{i}", "a=b": "yes"} for i in range(30)]
    words = ["data", "prepare", str(write_rows(Path("rows.jsonl"), rows)), "out", "--tokenizer", "model"]
    assert main([*words, "--columns", '{"prompt": "my,question", "completion": "a=b"}']) == 0
    assert len(texts()) > 20


def test_a_named_template_whose_markers_are_no_tokens_is_refused(capfd):
    """Its answers would end with no token; a file is taken as it is, and warned of."""
    write_model(Path("bare"), None)
    file = Path("bare/tokenizer.json")
    values = json.loads(file.read_text())
    values["added_tokens"] = [
        each
        for each in values["added_tokens"]
        if "im_" not in each["content"] and "eot" not in each["content"]
    ]
    file.write_text(json.dumps(values))
    for name, missing in (("chatml", "<|im_start|>, <|im_end|>"), ("llama3", "<|eot_id|>")):
        words = rf"the template {name} writes {re.escape(missing)}, which the tokenizer of bare does not have"
        with pytest.raises(ValueError, match=words):
            run(COUNTING, model="bare", chat_template=name)
    assert not Path("out").exists()
    run(COUNTING, model="bare", chat_template="plain")
    Path("mine.jinja").write_text(NAMED["chatml"])
    _, said = run(COUNTING, "mine", model="bare", chat_template="mine.jinja")
    assert any("warning: rows with answers that no end token follows: 30" in line for line in said)


def test_the_date_is_pinned_and_told():
    write_model(Path("llama"), STOCK["llama-3.2"])
    _, said = run(COUNTING, model="llama", date=datetime.date(2030, 2, 1))
    assert "Today Date: 01 Feb 2030" in texts()[0]
    assert any("was told 2030-02-01" in line for line in said)


def test_a_template_that_raises_refuses_its_rows():
    write_model(Path("gemma"), STOCK["gemma"])
    with pytest.raises(ValueError, match="1 x the chat template refuses it: System role not supported"):
        run([*COUNTING, {"messages": SYSTEM}], model="gemma")


def test_packed_and_unpacked_rows_have_one_loss(tiny, composed):
    """Through the real model in fp32: the same sums in another order, 1e-5."""
    rows = [*COUNTING, {"messages": TURNS_TWO}, {"text": "some text"}]
    found = {}
    for packing in ("bfd", "none"):
        summary, _ = run(rows, packing, packing=packing, validation_fraction=0.5)
        values = {
            "data.path": packing,
            "data.sequence_length": 160,
            "model.vocab_size": summary["vocab_size"],
        }
        values |= {"model.max_position_embeddings": 160, "run.dir": f"run-{packing}"}
        values |= {"data.validation": {"every": 1, "batches": None}}
        made = composed(tiny(precision="fp32", **values), isa=None)
        found[packing] = made.trainer.validator.run()
    packed, alone = found["bfd"], found["none"]
    assert packed.tokens == alone.tokens > 300
    assert packed.loss == pytest.approx(alone.loss, rel=1e-5)


def test_the_template_that_data_was_rendered_with_is_the_runs():
    write_model(Path("other"), STOCK["gemma"])
    for template, expected in ((None, STOCK["gemma"]), ("chatml", without_generation(NAMED["chatml"]))):
        run(COUNTING, model="other", chat_template=template, overwrite=Path("out").exists())
        side = choose_side_files(DataConfig(path="out", sequence_length=160), Path("other"), None)
        assert stock_template(side) == expected


COMMAND = ["data", "prepare", "rows.jsonl", "out", "--tokenizer", "model"]


def test_the_command_knows_chats_by_their_keys(capsys):
    write_rows(Path("rows.jsonl"), COUNTING)
    assert main([*COMMAND, "--validation", "0.1", "--sequence-length", "160"]) == 0
    out = capsys.readouterr().out
    assert "out: 27 train rows, 3 validation rows" in out and "30 rows (30 alpaca) in" in out
    assert "train with data: {path: out, sequence_length: 160}" in out
    assert main(["data", "show", "out", "-n", "2", "--split", "validation"]) == 0
    out = capsys.readouterr().out
    assert out.count("--- row") == 2 and "<|im_start|>assistant\n⟦" in out and "trained, in sequence 0" in out


def test_columns_are_renamed_on_the_command_line(capsys):
    Path("rows.csv").write_text("question,answer\n" + "".join(f"q{i},a{i}\n" for i in range(5)))
    command = ["data", "prepare", "rows.csv", "out", "--tokenizer", "model"]
    assert main([*command, "--columns", "instruction=question,output=answer", "--sequence-length", "64"]) == 0
    assert any("⟦a3<|im_end|>⟧" in text for text in texts())
    assert main([*command, "--columns", "question", "--overwrite"]) == 2
    assert main([*command, "--columns", "ask=question", "--overwrite"]) == 2
    assert "columns: 'ask' is none of ours: messages," in capsys.readouterr().err


def test_text_rows_are_a_stream_unless_a_length_is_given(capsys):
    write_rows(Path("rows.jsonl"), [{"text": f"text {i}"} for i in range(10)])
    assert main(COMMAND) == 0 and open_source("out").row_length is None
    assert main(["data", "show", "out", "-n", "1"]) == 0
    assert "⟦text 0<|endoftext|>⟧" in capsys.readouterr().out
    assert main([*COMMAND, "--sequence-length", "32", "--overwrite"]) == 0
    assert open_source("out").row_length == 32


@pytest.mark.parametrize(
    ("content", "options", "why"),
    [
        ("{no json\n", ["--train-on", "assistant"], "1 x not JSON"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}]}\n',
            [],
            "roles in a wrong order: assistant at the beg",
        ),
        ('{"messages": []}\n', ["--chat-template", "bad.jinja"], "bad.jinja: no chat template, jinja2 says"),
        ('{"messages": []}\n', ["--text-key", "body", "--packing", "bfd"], "--text-key is for text"),
        ('{"messages": []}\n', ["--date", "today"], "--date today: is no date"),
        ('{"messages": []}\n', ["--too-long", "error"], "no messages"),
    ],
)
def test_bad_input_is_one_error_and_status_2(capsys, content, options, why):
    Path("rows.jsonl").write_text(content)
    Path("bad.jinja").write_text("{% for %}")
    assert main([*COMMAND, *options]) == 2
    assert why in capsys.readouterr().err and not Path("out").exists()


def test_chats_without_a_tokenizer_are_refused(capsys):
    write_rows(Path("rows.jsonl"), COUNTING)
    assert main(["data", "prepare", "rows.jsonl", "out"]) == 2
    assert "need the model's tokenizer. Name its folder with --tokenizer" in capsys.readouterr().err


def test_half_of_a_surrogate_pair_in_what_a_template_writes_is_a_bad_row():
    write_model(
        Path("reasons"),
        "{% for m in messages %}{{ m.role }}{{ m.reasoning_content }}{{ m.content }}{% endfor %}",
    )
    answer = {"role": "assistant", "content": "A model.", "reasoning_content": "\ud800"}
    with pytest.raises(ValueError, match="1 of 1 rows cannot be used") as refused:
        run([{"messages": [TURN[0], answer]}], model="reasons", validation_fraction=0.0)
    assert "holds half of a surrogate pair. Take it out." in str(refused.value)
