"""What the comparison of two commits calls the same, and how it names what is not."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from findings import compare_bytes, compare_files, compare_metrics, compare_tensors, compare_text
from stored import digests, newest_checkpoint, read_metrics, read_tensors


def lines(*losses: float | None) -> list[dict]:
    """A run's metrics, with times that no comparison may look at."""
    return [
        {"step": step, "loss": loss, "grad_norm": 1.0, "lr": 0.1, "tokens": 8 * step, "tps": 100.0 / step}
        for step, loss in enumerate(losses, 1)
    ]


def test_equal_losses_are_the_same_whatever_the_times():
    old, new = lines(3.0, 2.5, 2.25), lines(3.0, 2.5, 2.25)
    for line in new:
        line |= {"tps": 1.0, "memory_bytes": 7}
    finding = compare_metrics("a", old, new, 3)
    assert finding.verdict == "same" and not finding.is_worse
    assert "2.25" in finding.detail


def test_the_first_step_whose_bits_differ_is_named_with_both_values():
    one_bit_up = math.nextafter(2.5, 3.0)
    finding = compare_metrics("a", lines(3.0, 2.5, 2.0), lines(3.0, one_bit_up, 1.0), 3)
    assert finding.is_worse
    assert finding.detail == f"step 2: loss 2.5, now {one_bit_up!r}"


@pytest.mark.parametrize("field", ["grad_norm", "lr", "tokens"])
def test_every_determined_field_counts(field):
    old, new = lines(3.0, 2.5), lines(3.0, 2.5)
    new[1][field] = 9
    assert compare_metrics("a", old, new, 2).detail.startswith(f"step 2: {field} ")


def test_a_validation_loss_counts():
    old = [*lines(3.0), {"step": 1, "val_loss": 3.5, "bits_per_byte": 2.0}]
    new = [*lines(3.0), {"step": 1, "val_loss": 3.25, "bits_per_byte": 2.0}]
    assert compare_metrics("a", old, new, 1).detail == "step 1: val_loss 3.5, now 3.25"
    assert "val_loss 3.5, now 'missing'" in compare_metrics("a", old, lines(3.0), 1).detail


def test_missing_steps_are_found_on_one_side_and_on_both():
    one = compare_metrics("a", lines(3.0, 2.5), lines(3.0), 2)
    assert one.verdict == "different" and one.detail == "step 2: loss 2.5, now 'missing'"
    assert compare_metrics("a", lines(3.0), lines(3.0, 2.5), 2).is_worse
    both = compare_metrics("a", lines(3.0), lines(3.0), 2)
    assert both.verdict == "failed" and "1 steps" in both.detail


def test_nan_equals_itself_bit_by_bit_and_zero_has_a_sign():
    other_nan = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]
    assert not compare_metrics("a", lines(math.nan), lines(math.nan), 1).is_worse
    assert not compare_metrics("a", lines(None), lines(None), 1).is_worse  # as metrics.jsonl writes it
    assert compare_metrics("a", lines(math.nan), lines(other_nan), 1).is_worse
    assert compare_metrics("a", lines(0.0), lines(-0.0), 1).is_worse


def test_tensors_are_compared_by_their_bits():
    old = {"w": np.array([[1.0, np.nan], [0.0, 4.0]], np.float32), "b": np.zeros(2, np.float32)}
    same = {name: tensor.copy() for name, tensor in old.items()}
    assert compare_tensors("a", "weights", old, same).verdict == "same"
    new = {**same, "w": np.array([[1.0, np.nan], [-0.0, 5.0]], np.float32)}
    finding = compare_tensors("a", "weights", old, new)
    assert finding.detail == "1 of 2 tensors: w in 2 of 4 elements, first 2: 0.0, now -0.0"


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, "w is missing now"),
        ({"w": np.zeros(4, np.float32), "v": np.zeros(1, np.float32)}, "v is new"),
        ({"w": np.zeros((2, 2), np.float32)}, "w is float32 (4,), now float32 (2, 2)"),
        ({"w": np.zeros(4, np.float64)}, "w is float32 (4,), now float64 (4,)"),
    ],
)
def test_names_shapes_and_types_of_tensors_count(change, said):
    finding = compare_tensors("a", "weights", {"w": np.zeros(4, np.float32)}, change)
    assert finding.is_worse and finding.detail.endswith(said)


def test_files_texts_and_bytes():
    assert compare_files("a", "export", {"x": "1"}, {"x": "1"}).verdict == "same"
    assert compare_files("a", "export", {"x": "1"}, {"x": "2"}).detail == "x differs"
    assert compare_files("a", "export", {"x": "1"}, {}).detail == "x is missing now"
    assert compare_files("a", "export", {}, {}).is_worse
    assert compare_text("a", "text", "def f", "def f").verdict == "same"
    assert compare_text("a", "text", "def f", "def g").detail == "character 4: 'f', now 'g'"
    assert compare_text("a", "text", "def f", "def").is_worse
    less = compare_bytes("a", "arenas", {"x": 10, "y": 5}, {"x": 10, "z": 3})
    assert (less.verdict, less.is_worse) == ("fewer", False) and "y 5, now 0" in less.detail
    more = compare_bytes("a", "arenas", {"x": 10}, {"x": 11})
    assert more.is_worse and more.detail == "10, now 11; x 10, now 11"
    assert compare_bytes("a", "arenas", {}, {}).is_worse


def write(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file of fp32 tensors."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_checkpoint_is_the_same_however_it_is_cut(tmp_path):
    whole, vector = np.arange(24, dtype=np.float32).reshape(6, 4), np.arange(5, dtype=np.float32)
    (one := tmp_path / "one").mkdir()
    (two := tmp_path / "two").mkdir()
    write(one / "rank0.safetensors", {"param.w[0:6,0:4]": whole, "param.b[0:5]": vector, "step": vector[:1]})
    write(two / "rank0.safetensors", {"param.w[0:6,0:1]": whole[:, :1].copy(), "param.b[2:5]": vector[2:]})
    rest = {"param.w[0:2,1:4]": whole[:2, 1:].copy(), "param.w[2:6,1:4]": whole[2:, 1:].copy()}
    write(two / "rank1.safetensors", {**rest, "param.b[0:2]": vector[:2], "step": vector[:1]})
    old, new = read_tensors(one), read_tensors(two)
    assert list(old) == ["param.b", "param.w", "step"]
    np.testing.assert_array_equal(old["param.w"], whole)
    assert compare_tensors("a", "weights", old, new).verdict == "same"
    (two / "rank1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"param\.b: 2 elements are in no block"):
        read_tensors(two)


def test_the_newest_complete_checkpoint_and_the_lines_of_a_run_are_read(tmp_path):
    for step, complete in ((9, True), (10, True), (11, False)):
        (folder := tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        if complete:
            (folder / "COMPLETE").touch()
    assert newest_checkpoint(tmp_path).name == "step-00000010"
    exact = 0.1 + 0.2
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(exact, 1e-300)))
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [exact, 1e-300]
    assert list(digests(tmp_path / "checkpoints")) == [f"step-{s:08d}/COMPLETE" for s in (9, 10)]
