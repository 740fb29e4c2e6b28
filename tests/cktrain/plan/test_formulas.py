"""Golden figures: numbers that people know by heart, or can work out on paper."""

from __future__ import annotations

import math

import pytest

from cktrain.plan.formulas import (
    all_reduce_bytes,
    amdahl_ceiling,
    amdahl_speedup,
    bubble_share,
    half_all_reduce_bytes,
    key_value_bytes,
    transfer_seconds,
    zero_bytes,
)


def test_a_70b_model_in_fp16_moves_280_gb_per_all_reduce():
    moved = all_reduce_bytes(70e9 * 2)
    assert moved == 280e9
    assert transfer_seconds(moved, 100e9 / 8) == pytest.approx(22.4)
    assert transfer_seconds(moved, 400e9 / 8) == pytest.approx(5.6)


def test_few_ranks_move_less():
    assert all_reduce_bytes(1000, 1) == 0
    assert all_reduce_bytes(1000, 2) == 1000
    assert all_reduce_bytes(1000, 4) == 1500
    assert half_all_reduce_bytes(1000, 4) == 750
    assert transfer_seconds(1e9, 1e9, calls=10, latency=0.01) == pytest.approx(1.1)


def test_a_70b_model_keeps_327680_bytes_of_keys_and_values_per_token():
    assert key_value_bytes(layers=80, kv_heads=8, head_dim=128, itemsize=2) == 327_680


@pytest.mark.parametrize("serial, ceiling", [(0.10, 10), (0.01, 100), (0.0, math.inf)])
def test_amdahls_ceiling(serial, ceiling):
    assert amdahl_ceiling(serial) == pytest.approx(ceiling)
    assert amdahl_speedup(serial, 1) == 1
    assert amdahl_speedup(serial, 64) == pytest.approx(1 / (serial + (1 - serial) / 64))


def test_the_bubble_of_balanced_stages():
    assert bubble_share(1, 8) == 0
    assert bubble_share(2, 8) == pytest.approx(1 / 9)
    assert bubble_share(4, 4) == pytest.approx(3 / 7)


def test_bytes_per_parameter_under_zero():
    assert zero_bytes(1, 1, 1, bf16_copy=False) == 16
    assert zero_bytes(1, 2, 1, bf16_copy=False) == 12
    assert zero_bytes(1, 4, 1, bf16_copy=True) == 12
    assert zero_bytes(1, 4, 0, bf16_copy=True) == 18
