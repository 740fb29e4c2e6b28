"""Stop strings in a text that comes in pieces, whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.generation.stop_strings import StopStrings


def whole(text: str, stops: list[str]) -> str:
    """The text up to the stop string whose end comes first, of several the longest."""
    for end in range(1, len(text) + 1):
        fitting = [stop for stop in stops if text[:end].endswith(stop)]
        if fitting:
            return text[: end - max(map(len, fitting))]
    return text


def pushed(pieces: list[str], stops: list[str]) -> str:
    filter_ = StopStrings(stops)
    return "".join(map(filter_.push, pieces)) + filter_.finish()


@given(
    st.lists(st.text("ab\n", max_size=5), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_pieces_change_nothing(pieces, stops):
    assert pushed(pieces, stops) == whole("".join(pieces), stops)


def test_only_what_may_begin_a_stop_string_is_held_back():
    stops = StopStrings(["\nUser:", "###"])
    assert [stops.push(piece) for piece in ("a", "b\n", "Us", "x#", "#", ".")] == [
        "a", "b", "", "\nUsx", "", "##."
    ]  # fmt: skip
    assert stops.found is None and stops.push("y##") == "y" and stops.finish() == "##"
    stops = StopStrings(["\nUser:", "###"])
    assert [stops.push(piece) for piece in ("a#", "## b", "c")] == ["a", "", ""]
    assert stops.found == "###" and stops.finish() == ""


@pytest.mark.parametrize("bad", ["end", [""], ["a", ""]])
def test_stop_strings_that_are_none(bad):
    with pytest.raises(ValueError, match="give a list of strings that are not empty"):
        StopStrings(bad)
