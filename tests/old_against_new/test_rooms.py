"""Lines are counted by the room that a file stands in."""

import pytest
from rooms import lines_by_room, room_of, table


@pytest.mark.parametrize(
    "path, room",
    [
        ("cktrain/nn/head.py", "cktrain/nn"),
        ("cktrain/config.py", "cktrain, its own files"),
        ("cython_kernels/csrc/gemm.h", "cython_kernels"),
        ("tests/cktrain/nn/test_linear.py", "tests"),
    ],
)
def test_a_room_is_a_folder_of_cktrain_or_a_top_folder(path, room):
    assert room_of(path) == room


def test_files_and_lines_are_added_by_room_and_tests_are_left_out_of_the_sum():
    old = lines_by_room("a1:cktrain/nn/x.py:10\na1:cktrain/nn/y.py:5\na1:tests/z.py:100\n")
    new = lines_by_room("b2:cktrain/nn/x.py:9\nb2:cktrain/hf/w.py:20\nb2:tests/z.py:100\n")
    assert old["cktrain/nn"] == (2, 15)
    assert table(old, new).splitlines()[2:] == [
        "| cktrain/hf | 0 | 0 | 1 | 20 | +20 |",
        "| cktrain/nn | 2 | 15 | 1 | 9 | -6 |",
        "| tests | 1 | 100 | 1 | 100 | +0 |",
        "| all but tests | 2 | 15 | 2 | 29 | +14 |",
    ]
