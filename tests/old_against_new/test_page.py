"""The page of a comparison: its sections, and what is added to one that is there."""

from pathlib import Path

from findings import Finding
from page import add_to_page, as_page
from sides import Side
from step_time import Speed

SIDES = Side("old", "aaa", *[Path()] * 3), Side("new", "bbb", *[Path()] * 3)


def test_parts_that_are_compared_later_are_a_section_of_the_same_page(tmp_path):
    page = tmp_path / "result.md"
    found = [
        Finding("a", "losses", "same"),
        Finding("b", "losses", "different", "step 3"),
        Finding("c", "losses", "same"),
    ]
    add_to_page(page, as_page(SIDES, found, [], 60.0))
    add_to_page(page, as_page(SIDES, [], [Speed("demo", 10.0, 10.1, 1.01, 0.02, 15)], 30.0))
    lines = page.read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# aaa against bbb", "## aaa against bbb"]
    assert "| b | losses | different | step 3 |" in lines and "| losses | a; c |" in lines
    assert lines[-1] == "| demo | 10.00 | 10.10 | 1.0100 | 2.00 % | 15 | within spread |"
    assert lines.count("| the same | cases |") == 1
