"""Validation errors as one line each: where, key, value, rule, remedy.

Checks inside config classes raise ValueError with one line per problem, each beginning with the offending
`key=value` (relative to the class) and reading `key=value must ...: remedy`; the keys named in it are looked up
in the tree to find the line.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mindmoe.config.plugins import Elsewhere
from mindmoe.config.strict_yaml import MAX_PROBLEMS, Node, resolve_scalar
from mindmoe.config.synonyms import SYNONYMS
from mindmoe.host.files import shown

_NAMED_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*)=")

Path = tuple[str | int, ...]


def describe(cls: type[BaseModel], root: Node, errors: Sequence[ErrorDetails]) -> list[str]:
    """One line per problem of a tree that is no valid `cls`; `errors` is what pydantic's `errors()` returns."""
    groups: dict[Path, list[Any]] = {}
    branches = set()  # paths where a union failed: pydantic reports each branch on its own
    for item in errors:
        path, is_branch = _path(root, item)
        groups.setdefault(path, []).append(item)
        if is_branch:
            branches.add(path)
    hidden = branches & {path[:length] for path in groups for length in range(len(path))}
    lines: list[str] = []
    for path, items in groups.items():
        if path in hidden:  # a longer path says more precisely what is wrong in the branch that was meant
            continue
        if len(lines) >= MAX_PROBLEMS:  # close matches for thousands of keys would take seconds
            lines.append(f"{root.where}: more errors follow: mend those above first")
            break
        lines += _lines(cls, root, path, items)
    return lines


def located(root: Node, section: Path, problem: str) -> str:
    """`where: section.problem`, for a problem line of a check; `where` is of the first key it names that is set."""
    where = _nearest(root, section).where
    for name in _NAMED_KEY.findall(problem):
        path = (*section, *name.split("."))
        if _exists(root, path):
            where = _nearest(root, path).where
            break
    text = f"{_dotted(section)}{'.' if section else ''}{problem}"
    setting = where.removeprefix("override ")  # an override names key and value already
    return f"{where}: {text.removeprefix(f'{setting} ') if setting != where else text}"


def _lines(cls: type[BaseModel], root: Node, path: Path, items: list[Any]) -> list[str]:
    kind, name, node = items[0]["type"], _dotted(path), _nearest(root, path)
    if kind == "extra_forbidden":
        return [f"{_place(node, name)}: unknown key{_suggestion(cls, root, path)}"]
    if kind == "missing":
        return [f"{node.where}: {name}: missing: add it"]
    if kind == "value_error" and isinstance(node.value, dict):
        return [located(root, path, line) for line in str(items[0]["ctx"]["error"]).split("\n")]
    if kind == "value_error":
        return [f"{_place(node, name)}: {items[0]['ctx']['error']}"]
    parts = [_rule(item, node) for item in items]
    rules = " or ".join(dict.fromkeys(rule for rule, _ in parts))
    remedy = next((remedy for _, remedy in parts if remedy), "change it")
    return [f"{_place(node, f'{name}={_value(node)}')}: must {rules}: {remedy}"]


def _rule(item: Any, node: Node) -> tuple[str, str]:
    """What the value must do or be, and the remedy."""
    kind, ctx, value = item["type"], item.get("ctx", {}), node.value
    none = "give it a value, or remove the key" if value is None else ""
    match kind:
        case "greater_than":
            return f"be greater than {_bound(ctx['gt'])}", "raise it"
        case "greater_than_equal":
            return f"be at least {_bound(ctx['ge'])}", "raise it"
        case "less_than":
            return f"be less than {_bound(ctx['lt'])}", "lower it"
        case "less_than_equal":
            return f"be at most {_bound(ctx['le'])}", "lower it"
        case "int_type":
            if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
                return "be a whole number", f"write {int(value)}"
            return "be a whole number", none or _unquote(node, "a whole number")
        case "float_type" | "finite_number":
            return "be a finite number", none or _unquote(node, "a number")
        case "bool_type":
            meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(node.text.lower())
            return "be true or false", f"write {meant}" if meant else none or "write true or false"
        case "string_type":
            scalar = not isinstance(value, (list, dict))
            return "be text", none or ("put it in quotes" if scalar else "write it as plain text")
        case "union_tag_invalid":
            close = get_close_matches(str(ctx["tag"])[:60], ctx["expected_tags"].replace("'", "").split(", "), 1, 0.5)
            rule = f"have a type that is one of {ctx['expected_tags'].replace(chr(39), '')}"
            return rule, f"did you mean {close[0]}?" if close else "change its type"
        case "literal_error":
            choices = re.findall("'([^']*)'", ctx["expected"])
            close = get_close_matches(node.text[:60], choices, 1, 0.5)
            return f"be {ctx['expected'].replace(chr(39), '')}", f"did you mean {close[0]}?" if close else ""
        case "model_type" | "dict_type" | "model_attributes_type":
            return "be a section of keys", none or "indent its keys below it"
        case "list_type":
            return "be a list", "write [...]"
        case "too_short" | "string_too_short":
            return "not be empty", "give it a value"
        case "too_long" | "string_too_long":
            return f"have at most {ctx['max_length']} entries or characters", "shorten it"
        case "string_pattern_mismatch":
            return f"match {ctx['pattern']}", "use only the characters of the pattern"
        case _:
            return item["msg"][:1].lower() + item["msg"][1:], ""


def _bound(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"


def _unquote(node: Node, what: str) -> str:
    """The remedy for text where a number belongs."""
    quoted = isinstance(node.value, str) and isinstance(resolve_scalar(node.value), (int, float))
    return "remove the quotes" if quoted else f"write {what}"


def _suggestion(cls: type[BaseModel], root: Node, path: Path) -> str:
    """The nearest known key: of that very name elsewhere, so called by others, or a sibling of similar name."""
    section = _section_at(cls, root, path[:-1])
    if section is None or len(name := str(path[-1])) > 60:
        return ": remove it"
    elsewhere = [known for known in _known_keys(cls) if known.rpartition(".")[2] == name]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    spelt, siblings = name.lower().replace("-", "_"), list(section.model_fields)
    known = SYNONYMS.get(spelt)
    if known is not None and known in _known_keys(cls):
        return f"; did you mean {known}?"
    close = get_close_matches(spelt, siblings, 1, 0.5)
    if close:
        return f"; did you mean {_dotted((*path[:-1], close[0]))}?"
    return f": remove it, known here are {', '.join(siblings)}"


def _section_at(cls: type[BaseModel], root: Node, path: Path) -> type[BaseModel] | None:
    """The config class of the section at `path`."""
    section: type[BaseModel] | None = cls
    for place, part in enumerate(path):
        if isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            section = _section_of(field, _nearest(root, path[: place + 1])) if field else None
    return section


def _section_of(field: FieldInfo, node: Node | None = None) -> type[BaseModel] | None:
    """The config class of a field; where that depends on the value, the one of `node`."""
    return _section_in(field.annotation, field.metadata, node)


def _section_in(annotation: Any, rules: Sequence[Any], node: Node | None) -> type[BaseModel] | None:
    """The config class inside an annotation such as `list[SourceConfig]` or `MoeConfig | None`."""
    for rule in rules:
        if isinstance(rule, Elsewhere):
            entries = node.value if node is not None and isinstance(node.value, dict) else {}
            with suppress(ValueError):
                return rule.section({key: child.value for key, child in entries.items()})
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    more = getattr(annotation, "__metadata__", ())
    return next((found for arg in get_args(annotation) if (found := _section_in(arg, more, node))), None)


@cache
def _known_keys(cls: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    found = []
    for name, field in cls.model_fields.items():
        found.append(prefix + name)
        if section := _section_of(field):
            found += _known_keys(section, f"{prefix}{name}.")
    return tuple(found)


def _path(root: Node, item: Any) -> tuple[Path, bool]:
    """The path of an error in the tree, and whether pydantic's location holds more (the tag of a union branch)."""
    node: Node | None = root
    path: list[str | int] = []
    skipped = False
    for position, part in enumerate(item["loc"]):
        child = _child(node, part) if node else None
        if child is not None:
            node = child
        elif item["type"] != "missing" or position < len(item["loc"]) - 1:
            skipped = True
            continue
        path.append(part)
    return tuple(path), skipped


def _child(node: Node, part: str | int) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, list) and str(part).isdigit() and int(part) < len(node.value):
        return node.value[int(part)]
    return None


def _nearest(root: Node, path: Path) -> Node:
    """The node at `path`, or its nearest ancestor that exists."""
    node = root
    for part in path:
        child = _child(node, part)
        if child is None:
            return node
        node = child
    return node


def _exists(root: Node, path: Path) -> bool:
    return not path or ((child := _child(root, path[0])) is not None and _exists(child, path[1:]))


def _place(node: Node, key: str) -> str:
    """`where: key`, without the key when `where` is the override that set it."""
    return node.where if node.where.startswith(f"override {key.partition('=')[0]}=") else f"{node.where}: {key}"


def _value(node: Node) -> str:
    if isinstance(node.value, (dict, list)):
        return "{...}" if isinstance(node.value, dict) else "[...]"
    if isinstance(node.value, str):
        return repr(node.text if len(node.text) <= 60 else node.text[:57] + "...")
    return node.text


def _dotted(path: Path) -> str:
    return ".".join(shown(str(part)) for part in path)
