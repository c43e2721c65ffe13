"""The leaves of a config of MindFormers, what became of each, and the config of ours that they make."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from mindmoe.errors import UserError

Fate = Literal["kept", "renamed", "dropped", "lost"]
_FLOAT = re.compile(r"[0-9]+\.?[0-9]*[eE][-+]?[0-9]+|[0-9]+\.[0-9]+")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a key.

    Attributes:
        key: dotted path in the file.
        value: its value there.
        fate: kept under its name, renamed, dropped without an effect, or lost.
        target: dotted path of ours, where there is one.
        note: why.
    """

    key: str
    value: Any
    fate: Fate
    target: str = ""
    note: str = ""


@dataclass(slots=True)
class Import:
    """A config in the making, and the rows told so far."""

    leaves: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of these keys that the file has."""
        return next((self.leaves[key] for key in keys if self.leaves.get(key) is not None), default)

    def number(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of these keys that the file has, as a number; None stays None.

        Raises:
            UserError: it is no number.
        """
        value = self.get(*keys, default=default)
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError):
            raise UserError(f"{keys[0]}={value!r} is no number", "correct it in the file") from None

    def whole(self, *keys: str, default: Any = None) -> Any:
        """Like `number`, for whole numbers."""
        value = self.number(*keys, default=default)
        if value is not None and not value.is_integer():
            raise UserError(f"{keys[0]}={value} is no whole number", "correct it in the file")
        return None if value is None else int(value)

    def set(self, target: str, value: Any) -> None:
        """Sets a key of ours."""
        section = self.config
        *path, last = target.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value

    def take(self, key: str, target: str, value: Any = None, note: str = "") -> None:
        """Carries a key of the file over, if it is there; its own value by default."""
        if key not in self.leaves or any(row.key == key for row in self.rows):
            return
        found = self.leaves[key]
        value = found if value is None else value
        self.set(target, value)
        same = key.rpartition(".")[2] == target.rpartition(".")[2] and value == found
        self.rows.append(Row(key, found, "kept" if same else "renamed", target, note))

    def tell(self, key: str, fate: Fate, note: str, target: str = "") -> None:
        """Says what became of a key, unless that is told already."""
        if key in self.leaves and all(row.key != key for row in self.rows):
            self.rows.append(Row(key, self.leaves[key], fate, target, note))


def leaves_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf by its dotted path; entries of a list of mappings are told apart by their `type`, or their place."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves_of(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and node and all(isinstance(item, dict) for item in node):
        for place, item in enumerate(node):
            yield from leaves_of(item, f"{prefix}.{item.get('type', place)}")
    else:
        yield prefix, number_of(node)


def number_of(value: Any) -> Any:
    """The value, with text such as `1e-8` as the number that MindFormers' own parser makes of it."""
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return float(value)
    return value


def whole_of(value: Any, what: str) -> int:
    """An entry of a list as a whole number."""
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UserError(f"{what} holds {value!r}, which is no whole number", "correct it in the file") from None
