"""Strict YAML with positions: the surface of every config file and command-line override.

PyYAML's parser supplies the events; the tree is built here because its own loader follows YAML 1.1, where
`1e-5` is a string, `no` is false, `12:30:45` is 45045 and the last of two equal keys wins in silence. Scalars
follow the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema) with two deviations: `1_000` is a
number, and infinities and NaN stay strings, since no setting may be either. Bounds on size, depth, aliases and
nodes keep any input, hostile or not, within a fraction of a second.

ruamel.yaml would not spare the tree: it follows 1.2, but makes dates and infinities, takes merge keys, stops at the
first of several mistakes, bounds nothing, and without a parser in C needs 5 s where libyaml needs 0.2.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from mindmoe.host.errors import ConfigError
from mindmoe.host.files import read_text, shown

MAX_DEPTH = 64
MAX_ALIASES = 100
MAX_NODES = 5_000  # after expansion of aliases: what makes an alias bomb harmless
MAX_PROBLEMS = 50  # more of them say no more
_MAX_DIGITS = 64  # longer digit strings are no setting, and int() is quadratic in them

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(?:[0-9]+|[0-9]{1,3}(?:_[0-9]{3})+)")
_PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")

# libyaml parses 1 MB in about 10 ms; the pure Python parser is the slower twin where libyaml is absent.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands.

    Args:
        value: a scalar, a list of nodes, or a mapping of nodes.
        where: `file:line` of the value, of its key inside a mapping; or the override that set it.
        text: a scalar as the user wrote it, to be shown in messages.
    """

    value: Scalar | list["Node"] | dict[str, "Node"]
    where: str
    text: str = ""

    @property
    def children(self) -> list["Node"]:
        """The values inside a list or a mapping."""
        if isinstance(self.value, dict):
            return list(self.value.values())
        return self.value if isinstance(self.value, list) else []


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document: its root (None when empty) and the mistakes that did not stop the parser."""

    root: Node | None
    problems: list[str] = field(default_factory=list)


def resolve_scalar(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if len(text) <= _MAX_DIGITS:
        if _INT.fullmatch(text):
            return int(text)
        if _PREFIXED.fullmatch(text):
            return int(text, 0)
        if _FLOAT.fullmatch(text) and isfinite(float(text)):
            return float(text)
    return text


def plain(node: Node) -> Any:
    """The node as plain Python data, without positions."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def size(node: Node) -> int:
    """The number of values in the tree, aliases expanded."""
    return 1 + sum(map(size, node.children))


def load(path: Path) -> Any:
    """The plain value of a YAML file that is no config of a run, such as a description of hardware.

    Raises:
        FileError: it cannot be read.
        ConfigError: everything that is wrong with it.
    """
    document = parse(read_text(path), shown(str(path), 300))
    if document.problems:
        raise ConfigError(document.problems)
    return plain(document.root) if document.root else None


def parse(text: str, source: str, *, lines: bool = True) -> Document:
    """The document in `text`.

    Args:
        text: YAML of at most `files.SMALL` bytes.
        source: the name to put before line numbers, usually the file.
        lines: whether positions carry line numbers (an override has none).

    Raises:
        ConfigError: a mistake after which the rest cannot be read: syntax, or a bound exceeded.
    """
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise ConfigError(
            [
                f"{f'{source}:{line}' if lines else source}: character U+{ord(bad[0]):04X} "
                "is not allowed in YAML: remove it"
            ]
        )
    return _Builder(text, source, lines).document()


class _Builder:
    """Builds the tree of one document from parser events; lives for one `parse`."""

    def __init__(self, text: str, source: str, lines: bool):
        self._text, self._source, self._lines = text, source, lines
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        self._anchors: dict[str, tuple[Node, int] | None] = {}  # None while the anchored node is still open
        self._aliases = 0
        self._nodes = 0
        self._problems: list[str] = []

    def document(self) -> Document:
        root = None
        try:
            for event in self._events:
                if isinstance(event, yaml.DocumentStartEvent):
                    if root is not None:
                        self._report(event, "a second document starts here: keep one document per file")
                        break
                    root = self._node(next(self._events), 0)
        except yaml.MarkedYAMLError as error:
            raise self._fatal(error.problem_mark or error.context_mark, self._syntax(error)) from None
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            # The pure Python parser lets int() and chr() fail on absurd directives and escapes.
            raise self._fatal(None, f"not valid YAML: {error}") from None
        return Document(root, self._problems)

    def _node(self, event: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._fatal(event.start_mark, f"nested deeper than {MAX_DEPTH} levels: flatten it")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        if event.tag is not None:
            self._report(event, f"tag {shown(event.tag)} is not allowed: remove it")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        before = self._nodes
        self._count(event, 1)
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(self._sequence(depth), self._where(event.start_mark))
        else:
            node = Node(self._mapping(depth), self._where(event.start_mark))
        if event.anchor is not None:
            self._anchors[event.anchor] = (node, self._nodes - before)
        return node

    def _scalar(self, event: Any) -> Node:
        if "\0" in event.value:
            self._report(event, "a NUL character is not allowed: remove it")
        value = resolve_scalar(event.value) if event.implicit[0] else event.value
        return Node(value, self._where(event.start_mark), "null" if value is None else event.value)

    def _sequence(self, depth: int) -> list[Node]:
        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key, value = self._node(event, depth + 1), self._node(next(self._events), depth + 1)
            value = Node(value.value, self._where(event.start_mark), value.text)
            if not isinstance(event, yaml.ScalarEvent):
                self._report(event, "a key must be plain text: write `key: value`")
            elif event.value == "<<":
                self._report(event, "merge keys (<<) are not YAML 1.2: write the keys out or use include")
            elif event.value in entries:
                first = entries[event.value].where
                self._report(event, f"duplicate key {shown(key.text)}: it stands at {first} already; keep one")
            else:
                entries[event.value] = value
        return entries

    def _alias(self, event: Any, depth: int) -> Node:
        name = f"alias *{shown(event.anchor)}"
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise self._fatal(event.start_mark, f"more than {MAX_ALIASES} aliases: write the values out")
        if event.anchor not in self._anchors:
            raise self._fatal(event.start_mark, f"{name} has no anchor before it: quote the value, or add the anchor")
        anchored = self._anchors[event.anchor]
        if anchored is None:
            raise self._fatal(event.start_mark, f"{name} contains itself: write the value out")
        node, size = anchored
        self._count(event, size)
        if depth + _height(node) > MAX_DEPTH:
            raise self._fatal(event.start_mark, f"nested deeper than {MAX_DEPTH} levels by {name}: flatten it")
        return node

    def _count(self, event: Any, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self._fatal(event.start_mark, f"more than {MAX_NODES} values: give a config file, not a data file")

    def _where(self, mark: Any) -> str:
        return f"{self._source}:{mark.line + 1}" if self._lines and mark is not None else self._source

    def _report(self, event: Any, problem: str) -> None:
        if len(self._problems) == MAX_PROBLEMS:
            raise self._fatal(event.start_mark, "more errors follow: mend those above first")
        self._problems.append(f"{self._where(event.start_mark)}: {problem}")

    def _fatal(self, mark: Any, problem: str) -> ConfigError:
        return ConfigError([*self._problems, f"{self._where(mark)}: {problem}"])

    def _syntax(self, error: yaml.MarkedYAMLError) -> str:
        mark = error.problem_mark
        remedy = "check the indentation, colons and quotes here and just above"
        if mark is not None:
            rows = self._text.splitlines()
            if mark.line < len(rows) and rows[mark.line][mark.column :].startswith("\t"):
                remedy = "indent with spaces, not tabs"
        if not self._lines:
            remedy = "put the value in quotes"
        context = f" {error.context}" if error.context else ""
        return f"not valid YAML: {error.problem}{context}: {remedy}"


def _height(node: Node) -> int:
    """The number of levels below the node."""
    return max((1 + _height(child) for child in node.children), default=0)


class _Dumper(yaml.SafeDumper):
    """Block style without aliases, lists of scalars on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: _Dumper, text: str) -> yaml.Node:
    # PyYAML quotes what YAML 1.1 would misread; the core schema reads more texts as numbers (1e5).
    quoted = "'" if not isinstance(resolve_scalar(text), str) else None
    # Only double quotes carry every character: PyYAML writes U+0085 into plain text, where it is a line break.
    style = quoted if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(dumper: _Dumper, items: list[Any]) -> yaml.Node:
    flow = not any(isinstance(item, (dict, list)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(list, _represent_list)


def dump(data: dict[str, Any]) -> str:
    """The mapping as YAML in its own key order, a blank line around each top-level section; `parse` reads it back."""
    blocks = []
    for key, value in data.items():
        text = yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        blocks.append(f"\n{text}" if isinstance(value, dict) else text)
    return "".join(blocks).lstrip("\n")
