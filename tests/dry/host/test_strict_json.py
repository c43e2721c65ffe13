"""JSON that is not what it should be is refused in one sentence that names the file and the key."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmoe.config.schema import Section
from mindmoe.host.errors import UserError
from mindmoe.host.strict_json import MAX_DEPTH, JsonError, checked, parse, read

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_what_json_writes_is_read_back(value: object) -> None:
    assert parse(json.dumps(value).encode(), "x") == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_one_error(data: bytes) -> None:
    try:
        parse(data, "x.json")
    except UserError as error:
        assert str(error).startswith("x.json: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"a": 1, "a": 2}', "key a stands twice"),
        ("[NaN]", "NaN is no JSON"),
        ("[1e999]", "too large a number"),
        ("9" * 5000, "too many digits"),
        ('["\\ud800"]', "surrogate"),
        ("[" * 100_000, "nested"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested deeper"),
        ("", "line 1, column 1"),
        ("\xfc", "not UTF-8"),
    ],
)
def test_what_is_no_strict_json_is_refused(text: str, said: str) -> None:
    with pytest.raises(JsonError, match=said):
        parse(text.encode("latin-1"), "x.json")


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse(b'"\\ud83d\\ude00"', "x") == "\N{GRINNING FACE}"


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read(tmp_path / "x.json") == [1]


class _Host(Section):
    name: str
    port: int


def test_a_wrong_type_names_the_key() -> None:
    with pytest.raises(JsonError, match=r"^x.json: 1.port: input should be a valid integer"):
        checked(list[_Host], [{"name": "a", "port": 1}, {"name": "b", "port": "2"}], "x.json")
    assert checked(tuple[int, ...], [1, 2], "x") == (1, 2)


@pytest.mark.parametrize("value", [True, 1.5, "1", None, [1]])
def test_only_an_integer_is_one(value: object) -> None:
    with pytest.raises(JsonError):
        checked(int, value, "x")
