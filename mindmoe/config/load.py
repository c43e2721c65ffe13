"""From YAML files and overrides to a validated config, and back.

A run file may include other files one level deep (`include: model/gpt-oss-20b.yaml`); it wins over what it
includes, and `key=value` overrides win over both. Every mistake is reported with the file and line it stands at,
all at once.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mindmoe.config import strict_yaml
from mindmoe.config.problems import describe, located
from mindmoe.config.run import RunConfig, cross_problems
from mindmoe.config.schema import Section
from mindmoe.config.strict_yaml import MAX_DEPTH, MAX_NODES, Node, plain, size
from mindmoe.host.errors import ConfigError, UserError
from mindmoe.host.files import read_text, shown

_MAX_INCLUDES = 4
_OVERRIDE_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")

S = TypeVar("S", bound=Section)


def load_config(path: str | Path, overrides: Sequence[str] = (), preset: str | Path | None = None) -> RunConfig:
    """The run that a file and its overrides define.

    Args:
        path: a YAML file.
        preset: a file without includes that wins over it, such as one of configs/router.
        overrides: `a.b.c=value` items; the value is YAML (`null`, `[1, 2]`, `3e-4`) and replaces what was there.

    Raises:
        UserError: the file cannot be read.
        ConfigError: everything that is wrong with its content.
    """
    root, problems = _read_with_includes(Path(path))
    if preset is not None:
        above, more = _read_mapping(Path(preset))
        root, problems = _merge(root, above), problems + more
    root = _apply(overrides, root, problems)
    try:
        run = RunConfig.model_validate(plain(root))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        problems += describe(RunConfig, root, errors)
        broken = {str(item["loc"][0]) if item["loc"] else "" for item in errors}
        if "" not in broken:  # then pydantic stopped before the checks that span sections
            problems += [located(root, (), problem) for problem in cross_problems(_sound_sections(root, broken))]
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return run


def load_section(cls: type[S], overrides: Sequence[str] = (), path: str | Path | None = None) -> S:
    """A section of type `cls` from a file, or its defaults, and `key=value` overrides.

    Raises:
        UserError: the file cannot be read.
        ConfigError: everything that is wrong with its content or the overrides.
    """
    problems: list[str] = []
    root = Node({}, "command line")
    if path is not None:
        root, problems = _read_mapping(Path(path))
    root = _apply(overrides, root, problems)
    try:
        section = cls.model_validate(plain(root))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        raise ConfigError(problems + describe(cls, root, errors)) from None
    if problems:
        raise ConfigError(problems)
    return section


def dump_config(config: Section) -> str:
    """The config as YAML, every key written out, in the order of its classes; it loads back equal."""
    return strict_yaml.dump(config.model_dump())


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay values."""
    if not isinstance(value, dict):
        return {prefix: value}
    items: dict[str, Any] = {}
    for key, inner in value.items():
        items |= flat(inner, f"{prefix}.{key}" if prefix else key)
    return items


def config_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a run file, for editors.

    Nothing but the type of a router is `required` in it: a run file may leave any key to the files that it includes.
    """
    schema = RunConfig.model_json_schema()
    for section in _sections_of(schema):
        tags = [name for name in section.pop("required", ()) if "const" in section["properties"][name]]
        if tags:  # what tells the members of a union apart
            section["required"] = tags
    text = {"type": "string"}
    schema["properties"]["include"] = {
        "title": "Include",
        "description": "Files to start from, relative to this one; later ones win, and this file wins over all.",
        "anyOf": [text, {"type": "array", "items": text, "maxItems": _MAX_INCLUDES}],
    }
    schema["properties"]["parallel"] = {"anyOf": [{"const": "auto"}, schema["properties"]["parallel"]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _sections_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Every part of a JSON Schema that describes a section."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _sections_of(part)


def _read_with_includes(path: Path) -> tuple[Node, list[str]]:
    """The mapping of a run file over those of its includes, and the mistakes that did not stop reading."""
    root, problems = _read_mapping(path)
    entries = dict(_entries(root))
    include = entries.pop("include", None)
    merged, fatal = Node({}, root.where), []
    for node in _include_names(include, problems):
        try:
            below, more = _read_mapping(path.parent / str(node.value))
        except ConfigError as error:
            fatal += error.problems
            continue
        except UserError as error:
            fatal.append(f"{node.where}: include: {error}")
            continue
        problems += more
        if nested := _entries(below).pop("include", None):
            problems.append(f"{nested.where}: include: an included file cannot include: list it in {path} instead")
        merged = _merge(merged, below)
    if fatal:  # with a file missing, whatever else could be said about the whole would mislead
        raise ConfigError(problems + fatal)
    merged = _merge(merged, Node(entries, root.where))
    if size(merged) > MAX_NODES:
        raise ConfigError([*problems, f"{path}: more than {MAX_NODES} values with its includes: give a config file"])
    return merged, problems


def _read_mapping(path: Path) -> tuple[Node, list[str]]:
    document = strict_yaml.parse(read_text(path), str(path))
    root = document.root
    if root is None or root.value is None:
        raise ConfigError([*document.problems, f"{path}: the file is empty: start from a preset under configs/"])
    if not isinstance(root.value, dict):
        raise ConfigError([*document.problems, f"{root.where}: a config must be a mapping: write `key: value` lines"])
    return root, document.problems


def _include_names(include: Node | None, problems: list[str]) -> list[Node]:
    if include is None:
        return []
    nodes = include.value if isinstance(include.value, list) else [include]
    if len(nodes) > _MAX_INCLUDES:
        problems.append(f"{include.where}: include: at most {_MAX_INCLUDES} files can be included: merge some")
    names = [node for node in nodes[:_MAX_INCLUDES] if isinstance(node.value, str) and node.value]
    if len(names) < len(nodes[:_MAX_INCLUDES]):
        problems.append(f"{include.where}: include: must be a path or a list of paths: write include: [model/x.yaml]")
    return names


def _merge(below: Node, above: Node) -> Node:
    """`above` over `below`: mappings merge key by key, anything else is replaced whole."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = _merge(merged[key], node) if key in merged else node
    return Node(merged, above.where)


def _apply(overrides: Sequence[str], root: Node, problems: list[str]) -> Node:
    """The tree with the overrides set in turn; those that cannot be set are added to `problems`."""
    for text in overrides:
        where = f"override {shown(text, 80)}"
        key, equals, value = text.partition("=")
        try:
            if not equals or not _OVERRIDE_KEY.fullmatch(key) or key.count(".") >= MAX_DEPTH:
                raise UserError("an override must be key=value", "write it as optim.lr=3e-4")
            document = strict_yaml.parse(value, where, lines=False)
            problems += document.problems
            if document.root is None:
                raise UserError("there is no value", "write null for none, or '\"\"' for an empty text")
            root = _set(root, key.split("."), document.root, where)
        except ConfigError as error:
            problems += error.problems
        except UserError as error:
            problems.append(f"{where}: {error}")
    return root


def _set(node: Node, keys: list[str], value: Node, where: str, done: str = "") -> Node:
    """A copy of the tree (aliased nodes are shared, so none is changed) with `value` at `keys`."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    path = f"{done}.{key}" if done else key
    if isinstance(node.value, list):
        if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= len(node.value):
            raise UserError(
                f"{done} is a list of {len(node.value)}, it has no entry {shown(key)}",
                f"use an index from 0 to {len(node.value) - 1}, or set {done}=[...]",
            )
        items = list(node.value)
        items[int(key)] = _set(items[int(key)], rest, value, where, path)
        return Node(items, node.where)
    if isinstance(node.value, dict) or node.value is None:
        entries = _entries(node)
        return Node({**entries, key: _set(entries.get(key, Node(None, where)), rest, value, where, path)}, node.where)
    raise UserError(f"{done} is {shown(node.text)}, it has no key {shown(key)}", f"set {done} as a whole")


def _entries(node: Node) -> dict[str, Node]:
    return node.value if isinstance(node.value, dict) else {}


def _sound_sections(root: Node, broken: set[str]) -> dict[str, Any]:
    """The values of the top-level keys that are valid by themselves.

    An absent section has its defaults, unless an unknown key may be the misspelt name of it.
    """
    entries, sections = _entries(root), {}
    misspelt = not broken <= set(RunConfig.model_fields)
    for name, field in RunConfig.model_fields.items():
        if name in entries and name not in broken:
            adapter: TypeAdapter[Any] = TypeAdapter(field.annotation or Any)
            sections[name] = adapter.validate_python(plain(entries[name]))
        elif name not in broken and not misspelt:
            sections[name] = field.get_default()
    return sections
