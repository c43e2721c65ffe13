"""Strict JSON: the surface of every JSON file and message that comes from outside.

Python's own reader takes more than JSON (NaN, lone surrogates, the last of two equal keys) and fails in several ways on
less (a recursion error, an encoding error, digits without end). Here the answer is a value, or one error that names the
file and, where a type decides, the key.
"""

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from mindmoe.host.errors import UserError
from mindmoe.host.files import SMALL, read_bytes, shown

MAX_DEPTH = 64
_MAX_DIGITS = 400  # a number of more digits is none, and int() is quadratic in them
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

T = TypeVar("T")


class JsonError(UserError):
    """Text that is no JSON, or not of the form that belongs there."""


def parse(data: bytes, name: str) -> Any:
    """The value of a JSON text.

    Args:
        data: UTF-8, with or without a byte order mark.
        name: what to call it in messages, usually its path.

    Raises:
        JsonError: no JSON, keys that stand twice in an object, or nested deeper than MAX_DEPTH.
    """
    name = shown(name, 300)

    def refuse(what: str) -> NoReturn:
        raise JsonError(f"{name}: {what}", "restore the file, or write it anew")

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            refuse(f"key {shown(next(key for key in keys if keys.count(key) > 1))} stands twice")
        return found

    def as_int(digits: str) -> int:
        return int(digits) if len(digits) <= _MAX_DIGITS else refuse("a number has too many digits")

    def as_float(digits: str) -> float:
        return number if math.isfinite(number := float(digits)) else refuse(f"{shown(digits)} is too large a number")

    def no_constant(constant: str) -> NoReturn:
        refuse(f"{constant} is no JSON")

    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=as_dict,
            parse_int=as_int,
            parse_float=as_float,
            parse_constant=no_constant,
        )
        if _ESCAPED_SURROGATE.search(data):  # JSON can spell what no text may hold
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        refuse(f"no JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except UnicodeDecodeError as error:
        refuse(f"byte {error.start} is not UTF-8")
    except UnicodeEncodeError:
        refuse("a text holds half of a surrogate pair")
    except RecursionError:
        refuse("nested too deep")
    level, depth = [value], 0
    while level := [inner for item in level if isinstance(item, (dict, list)) for inner in _inside(item)]:
        depth += 1
        if depth > MAX_DEPTH:
            refuse(f"nested deeper than {MAX_DEPTH} levels")
    return value


def read(path: Path, limit: int = SMALL, *, follow: bool = True) -> Any:
    """The value that a JSON file holds.

    Args:
        path: the file.
        limit: how large it may be [bytes].
        follow: whether its name may be a link.

    Raises:
        FileError: it cannot be read.
        JsonError: as `parse`.
    """
    return parse(read_bytes(path, limit, follow=follow), str(path))


def checked(form: type[T], value: Any, name: str) -> T:
    """The value as a `form`: a type, or a model of pydantic.

    Args:
        form: what the value must be, such as `dict[str, int]` or a Section.
        value: what `parse` or `read` returned.
        name: what to call it in messages, usually its path.

    Raises:
        JsonError: names the first key that is of another form.
    """
    try:
        adapter: TypeAdapter[T] = _adapter(form)  # type: ignore[arg-type]
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(shown(str(part)) for part in first["loc"])
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise JsonError(
            f"{shown(name, 300)}: {key + ': ' if key else ''}{message}", "restore the file, or write it anew"
        ) from None


@lru_cache(maxsize=64)
def _adapter(form: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def _inside(item: dict[str, Any] | list[Any]) -> Any:
    return item.values() if isinstance(item, dict) else item
