"""The leaves of a config of MindFormers, what became of each, and the config of ours that they make."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from mindmoe.host.errors import UserError
from mindmoe.host.files import shown

Fate = Literal["kept", "renamed", "dropped", "lost"]
_FLOAT = re.compile(r"[0-9]+\.?[0-9]*[eE][-+]?[0-9]+|[0-9]+\.[0-9]+")
_LARGEST = 3.4028234663852886e38  # of fp32
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


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
    """A config in the making, and the rows told so far.

    Attributes:
        leaves: value by key; while rules are applied, a key of several names stands under one of them.
        config: ours.
        rows: what became of the keys told so far.
        spelt: how the file writes a key that has another name here.
        assumed: keys that the file leaves out; their values are MindFormers' defaults.
    """

    leaves: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    spelt: dict[str, str] = field(default_factory=dict)
    assumed: set[str] = field(default_factory=set)

    def rename(self, prefix: str, aliases: dict[str, str]) -> None:
        """Puts what stands under another name of a key under the key; a name for what is said already is told."""
        given, self.leaves = self.leaves, {}
        for key, value in given.items():
            short = key.removeprefix(prefix) if key.startswith(prefix) else ""
            known = prefix + aliases[short] if short in aliases else key
            if known not in given and known not in self.leaves:
                self.leaves[known] = value
                self.spelt[known] = key
                continue
            self.leaves[key] = value
            if known == key:
                continue
            other = self.leaves[known] if known in self.leaves else given[known]
            if other == value:
                self.tell(key, "dropped", f"{self.name(known)} says it")
            else:
                self.tell(key, "lost", f"{self.name(known)} says otherwise, and MindFormers refuses both")

    def assume(self, prefix: str, defaults: dict[str, Any]) -> None:
        """Fills in what the file leaves out."""
        for key, value in defaults.items():
            if self.leaves.get(prefix + key) is None:
                self.leaves[prefix + key] = value
                self.assumed.add(prefix + key)

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of these keys that the file has."""
        return next((self.leaves[key] for key in keys if self.leaves.get(key) is not None), default)

    def number(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of these keys that the file has, as a number; None stays None.

        Raises:
            UserError: it is no number.
        """
        value = self.get(*keys, default=default)
        if value is None or (type(number := number_of(value)) in (int, float) and abs(number) <= _LARGEST):
            return None if value is None else float(number)
        raise UserError(f"{keys[0]}={shown(repr(value))} is no number that fits", "correct it in the file")

    def whole(self, *keys: str, default: Any = None) -> Any:
        """Like `number`, for whole numbers."""
        value = self.number(*keys, default=default)
        if value is not None and not (value.is_integer() and abs(value) < 2**53):
            raise UserError(f"{keys[0]}={value} is no whole number that fits", "correct it in the file")
        return None if value is None else int(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Whether a switch is on; what is neither true nor false is told as lost, and the default taken."""
        value = self.get(key, default=default)
        if isinstance(value, str) and value.lower() in _WORDS:  # YAML 1.1 reads these words as what they mean
            return _WORDS[value.lower()]
        if isinstance(value, bool):
            return value
        self.tell(key, "lost", f"it is neither true nor false: {str(default).lower()} is taken")
        return default

    def choose(self, key: str, target: str, choices: dict[Any, Any], otherwise: Any) -> Any:
        """Carries one of a closed list of values over; any other is told as lost, and `otherwise` taken."""
        value = self.get(key)
        if isinstance(value, str | int) and value in choices:
            self.set(target, choices[value])  # also where the key is told already
            self.take(key, target, choices[value])
            return choices[value]
        self.set(target, otherwise)
        names = ", ".join(str(choice) for choice in choices)
        self.tell(key, "lost", f"mindmoe has {names}, not {shown(str(value))}: {otherwise} is taken", target)
        return otherwise

    def set(self, target: str, value: Any) -> None:
        """Sets a key of ours."""
        section = self.config
        *path, last = target.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value

    def take(self, key: str, target: str, value: Any = None, note: str = "") -> None:
        """Carries a key of the file over, if it is there; its own value by default."""
        if key not in self.leaves or any(row.key == self.name(key) for row in self.rows):
            return
        found = self.leaves[key]
        value = found if value is None else value
        if value is None:
            return self.tell(key, "dropped", "null: as if it were left out")
        self.set(target, value)
        same = key.rpartition(".")[2] == target.rpartition(".")[2] and value == found
        fate: Fate = "kept" if same and key not in self.spelt else "renamed"
        self.rows.append(Row(self.name(key), found, fate, target, self._said(key, note)))
        return None

    def tell(self, key: str, fate: Fate, note: str, target: str = "") -> None:
        """Says what became of a key, unless that is told already."""
        if key in self.leaves and all(row.key != self.name(key) for row in self.rows):
            self.rows.append(Row(self.name(key), self.leaves[key], fate, target, self._said(key, note)))

    def name(self, key: str) -> str:
        """The key as the file has it."""
        return self.spelt.get(key, key)

    def _said(self, key: str, note: str) -> str:
        left_out = f"left out: MindFormers takes {shown(str(self.leaves[key]))}" if key in self.assumed else ""
        return "; ".join(part for part in (left_out, note) if part)


def leaves_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf by its dotted path; entries of a list of mappings are told apart by their `type`, or their place."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves_of(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and node and all(isinstance(item, dict) for item in node):
        kinds = [item.get("type") for item in node]
        for place, (item, kind) in enumerate(zip(node, kinds, strict=True)):
            alone = isinstance(kind, str) and kinds.count(kind) == 1
            yield from leaves_of(item, f"{prefix}.{kind if alone else place}")
    else:
        yield prefix, number_of(node)


def number_of(value: Any) -> Any:
    """The value, with text such as `1e-8` as the number that MindFormers' own parser makes of it."""
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return float(value)
    return value
