"""Values come out of a JSON text as they stand in it, wherever its blocks are cut, and every other text is NotJson."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.data.json_values import JsonValues, NotJson

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def blocks(text, size):
    return iter([text[at : at + size] for at in range(0, len(text), size)])


@given(st.lists(values, max_size=4), st.integers(1, 9), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_the_values_of_an_array_or_of_a_row_of_objects(found, size, indent, spaced):
    text = json.dumps(found, indent=indent, ensure_ascii=False)
    assert [value for _, value in JsonValues(blocks(text, size))] == found
    objects = [{"text": value} for value in found]
    text = (" \r\n" if spaced else "").join(json.dumps(one, indent=indent) for one in objects)
    assert [value for _, value in JsonValues(blocks(text, size))] == objects


@given(st.text(alphabet='[]{},:"a1 \n\\', max_size=12), st.integers(1, 4))
def test_any_text_is_values_or_an_error(text, size):
    try:
        list(JsonValues(blocks(text, size)))
    except NotJson as error:
        assert 1 <= error.line <= 1 + text.count("\n")


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_line_on_which_a_value_begins(size):
    text = '\n[\n{"text":\n 1},\n\n{"text": 2}\n]\n3'
    assert [line for line, _ in JsonValues(blocks(text, size))] == [3, 6, 8]
    with pytest.raises(NotJson) as error:
        list(JsonValues(blocks(text + "\n\n!", size)))
    assert error.value.line == 10
