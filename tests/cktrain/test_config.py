"""The configuration file: what is accepted, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from cktrain.config import Config
from cktrain.config_file import load_config, save_config
from cktrain.config_reference import reference
from cktrain.models import FAMILIES, parse_model
from cktrain.models.family import FromFolder

GOOD = """\
run: {dir: runs/x, steps: 10}
model: {family: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4,
        intermediate_size: 64, vocab_size: 100}
data: {path: tokens.bin, sequence_length: 16}
batch: {micro_batch_size: 2, global_batch_size: 4}
optimizer:
  lr: 3e-4
"""


@pytest.fixture
def config_of(tmp_path):
    def load(text: str, *overrides: str) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return load


def test_a_number_without_a_point_is_a_number(config_of):
    assert config_of(GOOD).optimizer.lr == 3e-4


def test_saved_configurations_read_back_equal(config_of, tmp_path):
    config = config_of(
        GOOD, "schedule.name=wsd", "optimizer.betas=[0.8, 0.9]", "data.validation.batches=null"
    )
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["checkpoint"]["keep"] == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ("  lr: 3e-4", "  lrr: 3e-4"),
            r"run.yaml:7: optimizer.lrr: unknown key. Did you mean 'optimizer.lr'\?",
        ),
        (("optimizer:", "optimiser:"), r"run.yaml:6: optimiser: unknown key. Did you mean 'optimizer'\?"),
        (("vocab_size: 100", "vocab_size: many"), r"run.yaml:3: model.vocab_size: .*integer, found 'many'"),
        (("  lr: 3e-4", "  lr: yes"), r"run.yaml:7: optimizer.lr: .*number, found 'yes'"),
        (("steps: 10", "steps: 0"), r"run.yaml:1: run.steps: .*greater than 0, found 0"),
        (("steps: 10", "steps: 1.5"), r"run.yaml:1: run.steps: .*integer, found 1.5"),
        ((", vocab_size: 100", ""), r"run.yaml:2: model.vocab_size: missing. A fresh llama needs it"),
        (("data: {path: tokens.bin, ", "data: {"), r"run.yaml:4: data: nothing says what is trained on"),
        (
            ("path: tokens.bin", "path: tokens.bin, train: chat.jsonl"),
            r"run.yaml:4: data: path tokens.bin and train chat.jsonl both say what is trained on. Give one",
        ),
        (
            ("path: tokens.bin", "path: tokens.bin, packing: none, validation: 0.1"),
            r"run.yaml:4: data: packing, validation.fraction: how rows of train become .*, and path tokens.bin is prepared",
        ),
        (
            ("path: tokens.bin", "train: chat.jsonl"),
            r"data.train is written by the tokenizer and chat template of model.from_pretrained, which is not given",
        ),
        (
            ("path: tokens.bin", "train: chat.jsonl, dtype: uint16"),
            r"run.yaml:4: data: dtype is of a raw .bin, and train chat.jsonl has rows",
        ),
        (
            ("path: tokens.bin", "train: chat.jsonl, validation: held out.jsonl"),
            r"data: validation is 'held out.jsonl', and takes a share .* cktrain data prepare 'held out.jsonl' HELD_OUT",
        ),
        (
            ("path: tokens.bin", "train: chat.jsonl, validation: 0.7"),
            r"run.yaml:4: data.validation.fraction: .* 0.5, found 0.7",
        ),
        (
            ("hidden_size: 32", "hidden_size: 30"),
            r"hidden_size 30 is not a multiple of num_attention_heads 4",
        ),
        (
            ("num_attention_heads: 4", "num_attention_heads: 4, num_key_value_heads: 3"),
            r"4 is not a multiple of .* 3",
        ),
        (
            ("family: llama", "family: gpt2, qk_norm: true"),
            r"run.yaml:2: model.qk_norm: gpt2 has no qk_norm, gemma and llama have. Remove it, or set another family",
        ),
        (
            ("family: llama", "family: gpt2, rope_theta: 2.0"),
            r"gpt2 has no rope_theta, gemma .* llama .*have",
        ),
        (("family: llama", "activation_function: gelu"), r"llama has no activation_function, gpt2 has"),
        (
            ("family: llama", "family: qwen3"),
            r"run.yaml:2: model.family: there is no family 'qwen3'. qwen3 is a model of family llama",
        ),
        (
            ("family: llama", "family: 3"),
            r"model.family: there is no family '3'. Use one of gemma, gpt2, .*llama",
        ),
        (
            ("family: llama", "hiden_size: 32"),
            r"model.hiden_size: unknown key. Did you mean 'model.hidden_size'",
        ),
        (
            ("global_batch_size: 4", "global_batch_size: 5"),
            r"run.yaml:5: batch: global_batch_size 5 .* micro_batch_size 2",
        ),
        (
            ("global_batch_size: 4", "global_batch_size: 4, gradient_accumulation_steps: 2"),
            r"run.yaml:5: batch: global_batch_size 4 and gradient_accumulation_steps 2 both say",
        ),
        (
            (", global_batch_size: 4", ""),
            r"run.yaml:5: batch: nothing says how many sequences a step has. Give",
        ),
        (
            ("micro_batch_size: 2, global_batch_size: 4", "gradient_accumulation_steps: 4"),
            r"run.yaml:5: batch: gradient_accumulation_steps 4 are of a micro_batch_size that is given",
        ),
        (
            ("micro_batch_size: 2", "micro_batch_size: automatic"),
            r"run.yaml:5: batch.micro_batch_size: 'automatic' is no size. Give a number of 1 or more, or auto",
        ),
        (("micro_batch_size: 2", "micro_batch_size: 0"), r"run.yaml:5: batch.micro_batch_size: 0 is no size"),
        (
            ("  lr: 3e-4", "  lr: 3e-4\n  lr: 1e-4"),
            r"run.yaml:8: optimizer.lr: the key stands twice \(first at .*:7\)",
        ),
        (("run: {", "run: ["), r"run.yaml:\d+: not valid YAML"),
        (
            ("family: llama, hidden_size: 32", "from_pretrained: x"),
            r"run.yaml:3: model.vocab_size: from_pretrained takes the architecture from its config.json. Remove",
        ),
    ],
)
def test_each_mistake_is_named_with_its_line(config_of, change, message):
    old, new = change
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        config_of(GOOD.replace(old, new))


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.lr", "expected key.path=value"),
        ("optimizer.rl=1", "--set optimizer.rl=1: optimizer.rl: unknown key. Did you mean 'optimizer.lr'"),
        ("optimizer.lr.x=1", "optimizer.lr is not a block"),
        ("run.steps=abc", "--set run.steps=abc: run.steps: .*integer"),
    ],
)
def test_overrides_go_through_the_same_checks(config_of, override, message):
    with pytest.raises(ValueError, match=message):
        config_of(GOOD, override)
    assert config_of(GOOD, "run.steps=77").run.steps == 77


def test_a_file_that_no_run_wrote_keeps_its_bytes(config_of, tmp_path, caplog):
    config = config_of(GOOD)
    path = tmp_path / "config.yaml"
    for number, text in enumerate([f"# my notes\n{GOOD}", "a: {"]):
        path.write_text(text)
        save_config(config, path)
        assert tmp_path.joinpath("config.yaml.before" + ".1" * number).read_text() == text
        assert load_config(path) == config
    assert "was not written by a run: it is" in caplog.text
    save_config(config, path)
    assert len(list(tmp_path.glob("config.yaml.before*"))) == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.yaml: it cannot be read: No such file"):
        load_config(tmp_path / "nothing.yaml")


def test_the_reference_page_is_what_the_code_says():
    page = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
    assert page.read_text() == reference(), "run: python -m cktrain.config_reference > docs/configuration.md"


def test_keys_of_other_families_that_say_nothing_are_left_out(config_of):
    """Older versions wrote every family's keys into a run's config.yaml."""
    gpt2 = config_of(GOOD.replace("family: llama", "family: gpt2, qk_norm: false, rope_theta: 10000.0"))
    assert gpt2.model.family == "gpt2" and not hasattr(gpt2.model, "qk_norm")
    llama = config_of(GOOD.replace("family: llama", "layer_norm_epsilon: 1e-5"))
    assert llama.model == config_of(GOOD).model


def test_every_key_is_documented():
    def undocumented(section, path=""):
        for name, field in section.model_fields.items():
            kinds = [
                kind for kind in get_args(field.annotation) or [field.annotation] if kind is not NoneType
            ]
            if all(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
                for kind in kinds:
                    yield from undocumented(kind, f"{path}{name}.")
            elif not field.description and name not in ("model", "family"):
                yield path + name

    sections = (Config, FromFolder, *(family.config for family in FAMILIES.values()))
    assert [key for section in sections for key in undocumented(section)] == []


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"run.yaml:1: a run is a mapping of blocks .*, found an empty file. Start from"),
        ("# nothing\n---\n", "found an empty file"),
        ("null\n", "found an empty file"),
        ("- run\n- model\n", "found list"),
        ("run\n", "found str"),
        ("2024-01-01", "found str"),
        ("run: &a [*a]\n", "run.yaml:1: nested deeper than 32 levels. Does an alias stand inside itself"),
        ("a: &a {b: *a}\n", "Does an alias stand inside itself"),
        ("a: &a\n  <<: *a\n", "Does an alias stand inside itself"),
        (BOMB, r"run.yaml:\d+: more than 20,000 values"),
        ("a: " + "[" * 5000, "run.yaml:1: not valid YAML: nested deeper than 32 levels"),
        ("{a: " * 5000, "nested deeper than 32 levels"),
        ("run: {dir: a}\nrun: {dir: b}\n", r"run.yaml:2: run: the key stands twice \(first at .*run.yaml:1\)"),
        ("run:\n\tdir: x\n", "run.yaml:2: .*Indent with spaces, not with a tab"),
        ("run:\n  dir: x\n  steps:\u00a06\n", r"not valid YAML: .*Line 3 has an invisible character .U.00A0. in column 9"),
        ("run:\n  st\u200beps: 3\n", r"run.yaml:2: a key holds an invisible character \(U\+200B\): 'st\\u200beps'"),
        ("run: {dir: x}\n---\nrun: {dir: y}\n", "run.yaml:2: not valid YAML: a second document begins"),
        ("run: \x07bell\n", "may not stand in YAML"),
        ("run: !!python/object/apply:os.system ['true']\n", "run.yaml:1: not valid YAML: could not determine a constructor"),
        ("run: {steps: !!int many}\n", "not valid YAML"),
        ("run: {steps: !!timestamp 2024-13-45}\n", "not valid YAML"),
        ("run: {steps: " + "9" * 5000 + "}\n", "not valid YAML: Exceeds the limit"),
        ("? [a, b]\n: 1\n", "run.yaml:1: a key is a sequence. Keys are words"),
        ("? {a: b}\n: 1\n", "a key is a mapping"),
        ("~: 1\n", "None is no key|unknown key"),
        ("5: 1\n", "5 is no key|unknown key"),
        ("run: *unknown\n", "run.yaml:1: not valid YAML: found undefined alias"),
        ("run: {dir: 'x}\n", "not valid YAML"),
        ("run: 5\n", "run.yaml:1: run: a block of keys belongs here, found 5"),
        ("run:\n", "run.yaml:1: run: a block of keys belongs here, found None"),
        ("run.steps: 5\n", "run.yaml:1: run.steps: unknown key. Write it as a block: run: {steps: …}"),
    ],
)  # fmt: skip
def test_whatever_the_file_holds_it_is_named(config_of, text, message):
    with pytest.raises(ValueError, match=message):
        config_of(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (b"run: {dir: caf\xe9}", "not UTF-8 text"),
        (b"\x00\x01", "a binary file"),
        (b"# long\n" * 200_000, "more than the 1,048,576 bytes"),
    ],
)
def test_bytes_that_are_no_configuration(tmp_path, data, message):
    (tmp_path / "run.yaml").write_bytes(data)
    with pytest.raises(ValueError, match=rf"run.yaml: it .*{message}"):
        load_config(tmp_path / "run.yaml")


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_config(tmp_path / "run.yaml").run.dir == "runs/x"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=1e-3", 1e-3), ("optimizer.lr=1E-3", 1e-3), ("optimizer.lr=1.e-3", 1e-3), ("optimizer.lr=.5", 0.5),
        ("optimizer.lr=+.5", 0.5), ("optimizer.lr=1_0.5", 10.5), ("optimizer.lr=1", 1.0),
        ("run.steps=1_000", 1000), ("run.steps=0x10", 16), ("run.steps=0o17", 15), ("run.steps=0b11", 3),
        ("data.shuffle=TRUE", True), ("data.shuffle=False", False),
        ("data.validation.batches=~", None), ("data.validation.batches=", None), ("data.validation.batches=null", None),
        ("run.dir=2024", "2024"), ("run.dir=010", "010"), ("run.dir=1:30", "1:30"), ("run.dir=2024-01-01", "2024-01-01"),
        ("run.dir=a: b", "a: b"), ("run.dir=a #b", "a #b"), ("run.dir=#x", "#x"), ("run.dir=[x]", "[x]"),
        ("run.dir=m, v2", "m, v2"),
        ("run.dir=yes", "yes"), ("run.dir=*x", "*x"), ("run.dir=-x", "-x"), ("run.dir=!x", "!x"), ("run.dir=a=b", "a=b"),
        ('run.dir="a b"', "a b"), ("run.dir=it's", "it's"), ("run.dir=café", "café"), ("run.dir=x/", "x/"),
        ("comm.device=null", None), ("checkpoint.resume=none", "none"), ("precision=fp32", "fp32"),
    ],
)  # fmt: skip
def test_what_a_person_means_is_what_is_read(config_of, override, value):
    config = config_of(GOOD, override)
    found = config
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.steps=010", "found '010'. Write 10, without quotes and leading zeros"),
        ("run.steps=1:30", "integer, found '1:30'. Write a number"),
        ("run.steps=2024-01-01", "integer, found '2024-01-01'"),
        ("run.steps=1e3", r"integer, found 1000.0. Write 1000$"),
        ("run.steps='10'", "found '10'. Write 10, without quotes"),
        ("run.steps=~", "nothing says how long it is"),
        ("run.steps=true", "integer, found True"),
        ("run.steps=[1]", r"integer, found \[1\]"),
        ("run.steps==", "integer, found '='"),
        ("run.steps=1e999", "integer, found inf"),
        ("run.steps=99999999999999999999", "more than 2\\^53"),
        ("run.seed=-1", "greater than or equal to 0"),
        ("data.shuffle=yes", "boolean, found 'yes'. Write true"),
        ("data.shuffle=off", "boolean, found 'off'. Write false"),
        ("data.shuffle=1", "boolean, found 1. Write true"),
        ("optimizer.lr=.inf", "inf is no finite number"),
        ("optimizer.lr=1e999", "inf is no finite number"),
        ("optimizer.lr=.nan", "found nan"),
        ("optimizer.lr=inf", "number, found 'inf'"),
        ("optimizer.lr=-1e-3", "greater than or equal to 0"),
        ("optimizer.lr=1e300", "infinite in fp32"),
        ("optimizer.eps=.inf", "inf is no finite number"),
        ("optimizer.eps=0", "greater than 0"),
        ("optimizer.eps=1e-300", "0 in fp32"),
        ("optimizer.betas=[0.9, 1.0]", "less than 1"),
        ("optimizer.betas=[.nan, 0.9]", "found nan"),
        ("optimizer.betas=[0.9]", "at least 2"),
        ("optimizer.betas=0.9", "valid list"),
        ("optimizer.weight_decay=-0.1", "greater than or equal to 0"),
        ("optimizer.weight_decay=.inf", "no finite number"),
        ("optimizer.momentum=1", "less than 1"),
        ("optimizer.clip_grad_norm=-1", "greater than or equal to 0"),
        ("optimizer.clip_grad_norm=.inf", "no finite number"),
        ("model.rms_norm_eps=-1", "greater than 0"),
        ("model.rms_norm_eps=.nan", "found nan"),
        ("model.rms_norm_eps=0", "greater than 0"),
        ("model.rope_theta=0", "greater than 0"),
        ("model.rope_theta=-10000.0", "greater than 0"),
        ("model.rope_theta=.inf", "no finite number"),
        ("model.initializer_range=-0.02", "greater than or equal to 0"),
        ("model.initializer_range=.inf", "no finite number"),
        ("model.vocab_size=0", "greater than 0"),
        ("model.vocab_size=3000000000", "more than 2\\^31 - 1"),
        ("model.num_hidden_layers=1000000", "less than or equal to 100000"),
        ("model.intermediate_size=2000000000", None),
        ("model.hidden_size=2000000000", "more than 2\\^40 elements"),
        ("model.hidden_size=32.0", "integer, found 32.0. Write 32"),
        ("data.sequence_length=2000000000", "tokens at once"),
        ("schedule.min_lr_ratio=2", "less than or equal to 1"),
        ("schedule.min_lr_ratio=.nan", "found nan"),
        ("schedule.warmup_steps=11", "warmup_steps 11 is more than run.steps 10"),
        ("comm.timeout_s=0", "greater than 0"),
        ("comm.timeout_s=.inf", "less than or equal to 31622400"),
        ("comm.timeout_s=1e300", "less than or equal to 31622400"),
        ("launch.threads=0", "greater than 0"),
        ("launch.threads=100000000", "less than or equal to 8192"),
        ("launch.end_margin_s=-1", "greater than or equal to 0"),
        ("launch.end_margin_s=.inf", "less than or equal to"),
        ("parallel.tensor=-2", "greater than or equal to -1"),
        ("checkpoint.keep=0", "greater than 0"),
        ("run=5", "a block of keys belongs here, found 5"),
        ("run.dir.x=5", "run.dir is not a block"),
        ("runs.dir=x", "runs: unknown key. Did you mean 'run'"),
        ("run.step=5", "run.step: unknown key. Did you mean 'run.steps'"),
        ("run..steps=5", "run.: unknown key"),
        ("=5", "expected key.path=value"),
        ("run.steps", "expected key.path=value"),
        ("run.dir=", "string, found None"),
        ("run.dir=\0", "NUL byte"),
        ("run.dir=' '", "the path is empty"),
        ("run.dir=$HOME/x", r"begins with \$, and variables are not expanded here"),
        ("run.dir=~nobody-here/x", "whose home folder is not known"),
        ("run.dir=" + "a" * 300, "Shorten it"),
        ("run.dir=" + "a/" * 2100, "Shorten it"),
        ("run.dir=\ud800", "no file name can hold"),
    ],
)  # fmt: skip
def test_what_no_run_can_have_is_refused(config_of, override, message):
    if message is None:
        assert config_of(GOOD, override)
        return
    with pytest.raises(ValueError, match=message) as caught:
        config_of(GOOD, override)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("decay", [11, 8])
def test_a_schedule_that_does_not_fit_the_run_is_refused(config_of, decay):
    overrides = ["schedule.name=wsd", "schedule.warmup_steps=3", f"schedule.decay_steps={decay}"]
    with pytest.raises(
        ValueError, match=f"warmup_steps 3 and schedule.decay_steps {decay} are more than run.steps 10"
    ):
        config_of(GOOD, *overrides)
    assert config_of(GOOD, *overrides, "schedule.decay_steps=7").schedule.decay_steps == 7


SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 0}, "factor is 0. Give a positive finite number"),
        ({"factor": -2.0}, "factor is -2.0"),
        ({"factor": float("nan")}, "factor is nan"),
        ({"factor": float("inf")}, "factor is inf"),
        ({"factor": "8"}, "factor is '8', and llama3 needs a positive number"),
        ({"factor": True}, "factor is True"),
        ({"factor": None}, "factor is None"),
        ({"low_freq_factor": 4.0}, "high_freq_factor 4.0 is not above low_freq_factor 4.0"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
        ({"factors": 8.0}, "'factors' is no key of rope_type llama3. Did you mean 'factor'"),
        ({"rope_type": "dynamic"}, "rope_type is 'dynamic'. Only default, linear, llama3, yarn, longrope"),
        ({"rope_type": "yarn"}, "'low_freq_factor' is no key of rope_type yarn"),
        (
            {"rope_type": "longrope", "low_freq_factor": None, "high_freq_factor": None, "short_factor": 1.0},
            "short_factor is",
        ),
        (
            {
                "rope_type": "longrope",
                "low_freq_factor": None,
                "high_freq_factor": None,
                "short_factor": [1.0, 0],
                "long_factor": [1.0],
            },
            "short_factor is 0. Give a positive",
        ),
        (
            {
                "rope_type": "longrope",
                "low_freq_factor": None,
                "high_freq_factor": None,
                "short_factor": [1.0, 2.0],
                "long_factor": [1.0],
            },
            "short_factor has 2 numbers and long_factor 1",
        ),
        ({"rope_type": ["llama3"]}, "rope_type is"),
        ({"rope_type": None}, "rope_type is None"),
    ],
)
def test_rope_scaling_has_the_numbers_that_its_kind_needs(config_of, change, message):
    import json

    good = "model.rope_scaling=" + json.dumps(SCALED)
    assert config_of(GOOD, good).model.rope_scaling == SCALED
    bad = json.dumps(SCALED | change).replace("NaN", ".nan").replace("Infinity", ".inf")
    with pytest.raises(ValueError, match=message):
        config_of(GOOD, f"model.rope_scaling={bad}")


@pytest.mark.parametrize(
    "name",
    ["1e-3", "1_000", "010", "0o17", "1:30", "yes", "null", "~x", "a: b", "#x", "café", "x\ny", "2024-01-01", "m, v2", " a ",
     "- x", "*a", "&a", "'", '"', "=", "<<", "\udce9", "😀", "NO", ".inf", "0x_", "{a}"],
)  # fmt: skip
def test_any_text_that_is_saved_reads_back_equal(config_of, tmp_path, name):
    config = config_of(GOOD)
    config = config.model_copy(update={"comm": config.comm.model_copy(update={"interface": name})})
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    if "\udce9" not in name:
        assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["comm"]["interface"] == name


def test_a_home_is_expanded_in_every_path_key(config_of, monkeypatch):
    monkeypatch.setenv("HOME", "/h/ada")
    keys = ("run.dir", "data.path", "data.validation.path", "comm.table", "checkpoint.resume")
    config = config_of(GOOD, *(f"{key}=~/x" for key in keys))
    for key in keys:
        found = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == "/h/ada/x", key
    assert parse_model({"from_pretrained": "~/hf"}).from_pretrained == "/h/ada/hf"


@pytest.mark.parametrize(
    "block, key, value", [("optimizer", "lr", -1), ("optimizer", "rate", 1), ("nothing", "x", 1)]
)
def test_an_error_in_a_mapping_says_that_it_is_the_configuration(tiny, block, key, value):
    values = tiny().model_dump(mode="json")
    with pytest.raises(ValueError, match=rf"^the configuration: {block}"):
        load_config({**values, block: {**values.get(block, {}), key: value}})
