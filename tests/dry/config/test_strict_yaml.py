"""The YAML surface: YAML 1.2 scalars, positions, and bounds that no input gets past."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mindmoe.config import strict_yaml
from mindmoe.config.strict_yaml import MAX_ALIASES, MAX_DEPTH, MAX_NODES, dump, parse, plain, resolve_scalar
from mindmoe.host.errors import ConfigError

CALLS = 150_000  # many keys make 80,000, everything else fewer


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both parsers: the pure Python one serves where PyYAML was built without libyaml."""
    loader = {"libyaml": yaml.CSafeLoader, "python": yaml.SafeLoader}[request.param]
    monkeypatch.setattr(strict_yaml, "_Loader", loader)
    yield


def _fails(text: str) -> list[str]:
    """The problems of a text, whether they stop the parser or not."""
    try:
        return parse(text, "f").problems
    except ConfigError as error:
        return error.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("+1.5e+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("3", 3),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", 1000),
        ("12_000_000", 12_000_000),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_plain_scalars_are_values(text: str, value: object) -> None:
    found = resolve_scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *("yes", "no", "on", "off", "y", "n", "12:30:45", "2026-01-02", "10_24", "1_0000", "_1", "1_", "1e", "e5"),
        *(".", "-", "0b11", "0x", "0o8", "1.2.3", "1e999", "-1e999", ".inf", "-.inf", ".nan", "9" * 65, "tRue", "NONE"),
        *("\u0661", "1 000", "<<", "="),
    ],
)
def test_other_plain_scalars_stay_text(text: str) -> None:
    assert resolve_scalar(text) == text


def test_quoted_and_block_scalars_are_text(parser: None) -> None:
    document = parse("a: '1'\nb: \"true\"\nc: |\n  5\nd: >-\n  null\n", "f")
    assert document.root is not None
    assert plain(document.root) == {"a": "1", "b": "true", "c": "5\n", "d": "null"}


def test_a_value_in_a_mapping_stands_at_its_key(parser: None) -> None:
    root = parse("# comment\na:\n  b:\n    [1,\n     2]\n  c: x\n", "run.yaml").root
    assert root is not None and isinstance(root.value, dict)
    section = root.value["a"]
    assert isinstance(section.value, dict)
    assert section.where == "run.yaml:2"
    assert section.value["b"].where == "run.yaml:3"
    assert [item.where for item in section.value["b"].children] == ["run.yaml:4", "run.yaml:5"]
    assert section.value["c"].where == "run.yaml:6"


def test_an_alias_stands_where_it_is_used(parser: None) -> None:
    root = parse("a: &x {k: 1}\nb: *x\n", "f").root
    assert root is not None and isinstance(root.value, dict)
    assert plain(root) == {"a": {"k": 1}, "b": {"k": 1}}
    assert root.value["b"].where == "f:2"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3: duplicate key a: it stands at f:1 already; keep one"),
        ("a: {b: 1,\n b: 2}\n", "f:2: duplicate key b: it stands at f:1 already; keep one"),
        ("a: 1\n'a': 2\n", "f:2: duplicate key a: it stands at f:1 already; keep one"),
        ("a: !!float 3\n", "f:1: tag tag:yaml.org,2002:float is not allowed: remove it"),
        ("a: !!python/name:os.system\n", "f:1: tag tag:yaml.org,2002:python/name:os.system is not allowed: remove it"),
        ("a: !custom [1]\n", "f:1: tag !custom is not allowed: remove it"),
        ("a: &x {k: 1}\nb:\n  <<: *x\n", "f:3: merge keys (<<) are not YAML 1.2: write the keys out or use include"),
        ("[a, b]: 1\n", "f:1: a key must be plain text: write `key: value`"),
        ('a: "x\\0y"\n', "f:1: a NUL character is not allowed: remove it"),
        ("a: 1\n---\nb: 2\n", "f:2: a second document starts here: keep one document per file"),
        ("a: *x\n", "f:1: alias *x has no anchor before it: quote the value, or add the anchor"),
        ("a: &x [1, *x]\n", "f:1: alias *x contains itself: write the value out"),
        ("a: 1\nb: \x07\n", "f:2: character U+0007 is not allowed in YAML: remove it"),
        ("a: 1\n\ud800: 2\n", "f:2: character U+D800 is not allowed in YAML: remove it"),
    ],
)
def test_mistakes_name_their_line(parser: None, text: str, problem: str) -> None:
    assert _fails(text) == [problem]


def test_syntax_errors_name_their_line_and_a_remedy(parser: None) -> None:
    [tab] = _fails("a:\n  b: 1\n\tc: 2\n")
    assert tab.startswith("f:3: not valid YAML: ") and tab.endswith("indent with spaces, not tabs")
    [colon] = _fails("a: 1\nb: c: d\n")
    assert colon.startswith("f:2: not valid YAML: mapping values are not allowed")
    [bracket] = _fails("a: [1, 2\nb: 3\n")
    assert bracket.startswith("f:2: not valid YAML: ")


@pytest.mark.parametrize("text", ["%YAML 1." + "1" * 5000 + "\n--- a", '"\\UFFFFFFFF"', "%YAML 7.0\n--- a", "&a &b c"])
def test_what_the_python_parser_chokes_on_is_a_config_error(parser: None, text: str) -> None:
    assert _fails(text)[0].startswith("f")


def test_earlier_mistakes_are_told_with_a_fatal_one(parser: None) -> None:
    assert [line[:4] for line in _fails("a: 1\na: 2\nb: [\n")] == ["f:2:", "f:4:"]


@pytest.mark.parametrize("text", ["", "   \n\n", "# only a comment\n", "---\n"])
def test_an_empty_document_has_no_value(parser: None, text: str) -> None:
    root = parse(text, "f").root
    assert root is None or root.value is None


def _nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_depth_bound_is_exact(parser: None) -> None:
    assert _fails(_nested(MAX_DEPTH + 1)) == []  # the root stands at depth 0
    assert _fails(_nested(MAX_DEPTH + 2)) == [f"f:1: nested deeper than {MAX_DEPTH} levels: flatten it"]


def test_depth_is_bounded_through_aliases_too(parser: None) -> None:
    half = MAX_DEPTH // 2
    # The value of b stands at depth 1, the alias `wraps` deeper, and the anchored value is half - 1 levels high.
    for wraps, fits in ((half, True), (half + 1, False)):
        problems = _fails(f"a: &a {_nested(half)}\nb: {'[' * wraps}*a{']' * wraps}\n")
        expected = [] if fits else [f"f:2: nested deeper than {MAX_DEPTH} levels by alias *a: flatten it"]
        assert problems == expected


def test_alias_bound_is_exact(parser: None) -> None:
    assert _fails(f"a: &a x\nb: [{', '.join(['*a'] * MAX_ALIASES)}]\n") == []
    problem = f"f:2: more than {MAX_ALIASES} aliases: write the values out"
    assert _fails(f"a: &a x\nb: [{', '.join(['*a'] * (MAX_ALIASES + 1))}]\n") == [problem]


def test_an_alias_bomb_is_refused_by_its_expanded_size(parser: None) -> None:
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11)]
    [problem] = _fails("\n".join(rows))
    assert problem.endswith(f"more than {MAX_NODES} values: give a config file, not a data file")


def test_node_bound_is_exact(parser: None) -> None:
    assert _fails(f"[{'x, ' * (MAX_NODES - 1)}]") == []
    assert len(_fails(f"[{'x, ' * MAX_NODES}]")) == 1


HOSTILE = {
    "open brackets": "[" * 10**6,
    "open braces": "{" * 10**6,
    "mixed brackets": "[{" * 400_000,
    "dashes": "- " * 400_000,
    "question marks": "? " * 400_000,
    "colons": ": " * 400_000,
    "spaces": " " * 10**6,
    "comment": "#" * 10**6,
    "comments": "#\n" * 500_000,
    "carriage returns": "\r" * 10**6,
    "long text": "a: " + "x " * 490_000,
    "long key": "a" * 10**6 + ": 1",
    "long number": "a: " + "9" * 10**6,
    "grouped number": "a: 1" + "_000" * 240_000,
    "long exponent": "a: 1e" + "9" * 10**6,
    "escapes": 'a: "' + "\\x41" * 240_000 + '"',
    "folded": "a: " + "b\n  " * 240_000,
    "block text": "a: |\n" + " x\n" * 300_000,
    "long tag": "a: !<" + "x" * 900_000 + "> 1",
    "long anchor": "a: &" + "x" * 900_000 + " 1",
    "tag directives": "%TAG !a! b\n" * 90_000,
    "unknown directives": "%FOO bar\n" * 100_000,
    "documents": "---\n" * 250_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(80_000)),
    "one key again": "a: 1\n" * 200_000,
    "tags": "[" + "!x 1," * 150_000 + "]",
    "long lines without a value": ("a " * 500 + "\n") * 900,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_takes_a_bounded_number_of_calls(work: Any, name: str) -> None:
    with work() as done:
        _fails(HOSTILE[name])
    assert done.calls < CALLS


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
_scalars = st.none() | st.booleans() | st.integers(-(10**60), 10**60) | st.floats(allow_nan=False, allow_infinity=False)
_spellings = st.sampled_from(["1e5", "1_000", "no", "null", "~", "12:30:45", "0x1f", ".5", "true", "", " a", "a: b"])


@given(
    st.dictionaries(
        _texts.filter(lambda key: key != "<<"),
        st.recursive(
            _scalars | _texts | _spellings,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            max_leaves=8,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_dump_reads_back_equal(data: dict[str, object]) -> None:
    document = parse(dump(data), "f")
    assert document.problems == []
    assert document.root is not None
    assert plain(document.root) == data
    assert repr(plain(document.root)) == repr(data)  # 1 and 1.0 and True are equal but not the same
