"""`data.mixture` and `data.stages`: what they mean, what of them is refused, and that they are saved as they were given."""

import pytest

from cktrain.config_file import load_config, save_config
from cktrain.training_data import mixture_of

A_AND_B = [{"path": "x/a"}, {"path": "b"}]


def values(data, **run):
    model = {"family": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return {
        "run": {"dir": "runs/x", "steps": 4} | run,
        "model": model | {"intermediate_size": 8, "vocab_size": 300},
        "data": {"sequence_length": 10} | data,
        "batch": {"micro_batch_size": 2, "global_batch_size": 2},
    }


def test_parts_are_called_by_the_last_part_of_their_paths_or_by_their_name():
    mixture = [{"path": "data/web/", "weight": 3}, {"path": "data/code", "weight": 1.5, "name": "python"}]
    data = load_config(values({"mixture": mixture})).data
    assert data.parts == {"web": "data/web/", "python": "data/code"}
    assert data.shares_of_stages == [(None, [3.0, 1.5])]


def test_stages_end_with_the_sequence_that_reaches_their_tokens(tmp_path):
    stages = [
        {"until_tokens": 95, "weights": {"a": 1}},
        {"until_tokens": 200, "weights": {"a": 1, "b": 1}},
        {"weights": {"b": 2}},
    ]
    config = load_config(values({"mixture": A_AND_B, "stages": stages}))
    mixture = mixture_of(config.data)
    assert [stage.until for stage in mixture.stages] == [10, 20, None]
    assert [stage.weights for stage in mixture.stages] == [(1.0, 0.0), (1.0, 1.0), (0.0, 2.0)]
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mixture": []}, r"data: mixture has no part\. Give"),
        ({"mixture": [{"path": "a", "weight": 0}]}, r"data\.mixture\.0\.weight: .*greater than 0, found 0"),
        ({"mixture": [{"path": "a", "weight": -1}]}, r"data\.mixture\.0\.weight: .*greater than 0, found -1"),
        ({"mixture": [{"path": "a", "weight": float("nan")}]}, r"mixture\.0\.weight: .*found nan"),
        (
            {"mixture": [{"path": "a", "weight": float("inf")}]},
            r"mixture\.0\.weight: inf is no finite number",
        ),
        ({"mixture": [{"path": "a", "weight": "much"}]}, r"mixture\.0\.weight: .*valid number, found 'much'"),
        ({"mixture": [{"weight": 1}]}, r"data\.mixture\.0\.path: missing"),
        ({"mixture": [{"path": "a", "wieght": 1}]}, r"mixture\.0\.wieght: unknown key\. Did you mean"),
        ({"mixture": "a"}, r"data\.mixture: .*valid list"),
        ({"mixture": [{"path": "a"}]}, "mixture says no weight of a"),
        (
            {"mixture": [{"path": "a", "weight": 1}, {"path": "./a/", "weight": 1}]},
            r"mixture has \./a/ twice",
        ),
        (
            {"mixture": [{"path": "x/a", "weight": 1}, {"path": "y/a", "weight": 1}]},
            "mixture calls both x/a and y/a a",
        ),
        ({"mixture": A_AND_B, "path": "c"}, "path c and mixture both say what is trained on"),
        ({"mixture": A_AND_B, "train": "c.jsonl"}, r"mixture and train c\.jsonl both say"),
        ({"path": "a", "stages": [{"weights": {"a": 1}}]}, "stages are of a mixture"),
        (
            {"mixture": [{"path": "a", "weight": 1}], "stages": [{"weights": {"a": 1}}]},
            "gives a the weight 1, and stages say weights, too",
        ),
        ({"mixture": A_AND_B, "stages": []}, "stages are none"),
        (
            {"mixture": A_AND_B, "stages": [{"until_tokens": 9, "weights": {"a": 1, "b": 1}}]},
            "stages end with until_tokens 9, and nothing says what follows",
        ),
        (
            {"mixture": A_AND_B, "stages": [{"weights": {"a": 1}}, {"weights": {"b": 1}}]},
            "stage 1 of 2 has no end",
        ),
        (
            {
                "mixture": A_AND_B,
                "stages": [
                    {"until_tokens": 9, "weights": {"a": 1}},
                    {"until_tokens": 9, "weights": {"b": 1}},
                    {"weights": {"b": 1}},
                ],
            },
            "until_tokens 9 follows 9",
        ),
        (
            {"mixture": A_AND_B, "stages": [{"weights": {"a": 1, "c": 1}}]},
            "stages name 'c', which is no part of the mixture. It has a, b",
        ),
        ({"mixture": A_AND_B, "stages": [{"weights": {"a": 1}}]}, "no stage reads b of the mixture"),
        ({"mixture": A_AND_B, "stages": [{"weights": {}}]}, r"data\.stages\.0\.weights: .*at least 1 item"),
        (
            {"mixture": A_AND_B, "stages": [{"weights": {"a": 1, "b": 0}}]},
            r"data\.stages\.0\.weights\.b: .*greater than 0",
        ),
        (
            {"mixture": [{"path": "a", "weight": 1}], "validation": {"times_per_epoch": 2}},
            r"data\.validation\.times_per_epoch: the parts of data\.mixture have epochs of their own",
        ),
    ],
)
def test_what_a_mixture_cannot_be(data, message):
    with pytest.raises(ValueError, match=message):
        load_config(values(data))


def test_a_mixture_has_no_epochs():
    with pytest.raises(ValueError, match=r"run\.epochs: the parts of data\.mixture have epochs of their own"):
        load_config(values({"mixture": [{"path": "a", "weight": 1}]}, steps=None, epochs=1.0))
