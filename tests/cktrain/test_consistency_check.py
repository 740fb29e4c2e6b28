"""Ranks that are not the same run: what is refused, what is said, who is named."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.consistency_check import check_agreement


def config(**blocks: Any) -> Config:
    values: dict[str, Any] = {
        "run": {"dir": "r", "steps": 2},
        "model": {
            "family": "gpt2",
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "vocab_size": 9,
        },
        "data": {"path": "d", "sequence_length": 4},
        "batch": {"micro_batch_size": 1, "global_batch_size": 3},
    }
    for name, block in blocks.items():
        values[name] = {**values.get(name, {}), **block}
    return Config.model_validate(values)


class Three:
    """A group of three of which this process is rank 0; the others say what they are told to."""

    rank, size = 0, 3

    def __init__(self, *others: tuple[Config, str, str]) -> None:
        self.others = others

    def all_gather_bytes(self, mine: bytes) -> list[bytes]:
        said = [
            {"version": version, "isa": isa, "config": config.model_dump(mode="json")}
            for config, version, isa in self.others
        ]
        return [mine, *(json.dumps(one).encode() for one in said)]


def check(*others: tuple[Config, str, str], own: Config | None = None) -> None:
    group: Group = Three(*others)  # type: ignore[assignment]
    check_agreement(group, own or config(), "1.0", "avx2")


SAME = (config(), "1.0", "avx2")


def test_the_same_on_all(caplog):
    check(SAME, SAME)
    assert caplog.text == ""


def test_another_configuration():
    other = (config(optimizer={"lr": 0.5}), "1.0", "avx2")
    with pytest.raises(
        ValueError, match=r"optimizer.lr is 0.0003 on rank 0-1, 0.5 on rank 2. Give all hosts"
    ) as error:
        check(SAME, other)
    assert len(str(error.value).splitlines()) == 1


def test_a_hosts_own_settings_may_differ():
    own = config(launch={"threads": 3, "progress_core": 7}, comm={"interface": "eth1", "device": "mlx5_1"})
    check(SAME, (own, "1.0", "avx2"))


def test_another_version():
    with pytest.raises(ValueError, match=r"different versions of cktrain: 1.0 on rank 0,2, 1.1 on rank 1"):
        check((config(), "1.1", "avx2"), SAME)


def test_another_instruction_set_is_said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("cktrain"), "propagate", True)
    check(SAME, (config(), "1.0", "avx512bf16"))
    assert "different instruction sets: avx2 on rank 0-1, avx512bf16 on rank 2" in caplog.text


def test_another_instruction_set_is_refused_where_weights_would_drift():
    zero = config(parallel={"zero": 0})
    with pytest.raises(ValueError, match=r"parallel.zero: 0 their weights would drift apart"):
        check((zero, "1.0", "avx2"), (zero, "1.0", "generic"), own=zero)
