"""The base class of every config section, and the unit types that sections use.

A section is a frozen pydantic model: unknown keys, wrong types and out-of-range values are
refused, and `mindmoe config schema` renders the same classes as a JSON Schema for editors.
"""

import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

_BYTES = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Section(BaseModel):
    """A config section: frozen, strict, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _with_unit(value: Any, units: dict[str, float], what: str) -> float:
    """The value in base units; a bare number is already in base units."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{what} must be a number or a number with a unit ({', '.join(units)})")
    if isinstance(value, (int, float)):
        return value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]+)\s*", value)
    if not match or match[2] not in units:
        raise ValueError(f"{value!r} is not a {what}: write a number with one of the units {', '.join(units)}")
    result = float(match[1]) * units[match[2]]
    if not math.isfinite(result):
        raise ValueError(f"{value!r} is too large for a {what}")
    return result


ByteSize = Annotated[int, BeforeValidator(lambda v: int(_with_unit(v, _BYTES, "size in bytes")))]
"""[bytes], written as a number or as `512MiB`, `10GB`, ..."""

Seconds = Annotated[float, BeforeValidator(lambda v: float(_with_unit(v, _SECONDS, "duration")))]
"""[s], written as a number or as `500ms`, `30s`, `2h`, ..."""
