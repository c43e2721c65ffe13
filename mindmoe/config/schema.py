"""The base class of every config section, and the types of numbers that sections use.

A section is a frozen pydantic model: unknown keys, wrong types and out-of-range values are refused, and
`mindmoe config schema` renders the same classes as a JSON Schema for editors.

Every number has two bounds, those of what will hold it: int32 for counts and sizes, fp32 for what enters the
arithmetic of a step, where a positive number must also not be so small that it becomes 0. A number that scales
activations, losses or time has tighter ones, beyond which no run survives; they are wide of anything in use.
"""

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

INT32_MAX = 2**31 - 1
FP32_MAX = 3.4028234663852886e38
FP32_TINY = 1.1754943508222875e-38  # the smallest that is not denormal, which processors may take for 0

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


class StoredRecord(BaseModel):
    """An entry of a file that mindmoe writes and reads again: frozen, strict, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Section(StoredRecord):
    """A config section: its numbers have bounds, those of the type that will hold them."""


def _with_unit(value: Any, units: dict[str, float], what: str) -> float:
    """The value in base units; a bare number is already in base units."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{what} must be a number or a number with a unit ({', '.join(units)})")
    if isinstance(value, (int, float)) and math.isfinite(value):
        return value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]+)\s*", str(value))
    if not match or match[2] not in units:
        raise ValueError(f"{value!r} is not a {what}: write a number with one of the units {', '.join(units)}")
    result = float(match[1]) * units[match[2]]
    if not math.isfinite(result):
        raise ValueError(f"{value!r} is too large for a {what}")
    return result


def _whole(size: float) -> int:
    if 0.0 < abs(size) < 1.0 or math.copysign(1.0, size) < 0.0 == size:
        raise ValueError("a size in bytes must be 0 or at least 1: write a whole number")
    return int(size)


def _held_by_fp32(value: float) -> float:
    if 0.0 < abs(value) < FP32_TINY:
        raise PydanticCustomError("below_fp32", f"be 0 or at least {FP32_TINY:.3g}, for fp32 holds nothing between")
    if value == 0.0 and math.copysign(1.0, value) < 0.0:
        raise PydanticCustomError("below_fp32", "not be minus zero")
    return value


def _no_instant(value: float) -> float:
    if 0.0 < value < 1.0:
        raise PydanticCustomError("instant", "be 0 or at least 1 s")
    return value


_Fp32 = AfterValidator(_held_by_fp32)

PositiveInt32 = Annotated[int, Field(gt=0, le=INT32_MAX)]

Width = Annotated[int, Field(gt=0, le=2**20)]
"""A side of a weight, or how many of something a layer has; no device holds the weights that a larger one makes."""

NonNegativeInt32 = Annotated[int, Field(ge=0, le=INT32_MAX)]

NonNegativeInt64 = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""What may be more than int32 holds, such as tokens of a data set; 0 allowed."""

Threads = Annotated[int, Field(ge=0, le=1024)]
"""Threads or processes on one machine; no machine has more cores. 0 leaves the choice."""

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]

Fp32 = Annotated[float, Field(ge=-FP32_MAX, le=FP32_MAX), _Fp32]

PositiveFp32 = Annotated[float, Field(gt=0.0, le=FP32_MAX), _Fp32]

NonNegativeFp32 = Annotated[float, Field(ge=0.0, le=FP32_MAX), _Fp32]

Coefficient = Annotated[float, Field(ge=0.0, le=1e4), _Fp32]
"""The weight of a term in a sum; 0 switches it off."""

Scale = Annotated[float, Field(ge=1e-6, le=1e6)]
"""What multiplies or divides activations."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0), _Fp32]

Share = Annotated[float, Field(ge=1e-6, le=1.0)]
"""A part that is not nothing."""

Decay = Annotated[float, Field(ge=0.0, le=1.0 - 1e-6), _Fp32]
"""The weight of the past in a running mean; 1 - decay is a divisor, which fp32 must tell from 0."""

Epsilon = Annotated[float, Field(ge=1e-30, le=1.0)]
"""What keeps a divisor from 0."""

_YEAR = 366 * 86400.0
_AS_WRITTEN: dict[str, Any] = {"type": ["number", "string"]}

ByteSize = Annotated[
    int,
    Field(ge=0, le=2**63 - 1, json_schema_extra={"type": ["integer", "string"]}),
    BeforeValidator(lambda v: _whole(_with_unit(v, _BYTES, "size in bytes"))),
]
"""[bytes], written as a number or as `512MiB`, `10GB`, ..."""

_Duration = BeforeValidator(lambda v: float(_with_unit(v, _SECONDS, "duration")))

Seconds = Annotated[float, Field(ge=0.0, le=_YEAR, json_schema_extra=_AS_WRITTEN), _Fp32, _Duration]
"""[s], written as a number or as `500ms`, `30s`, `2h`, ...; a year at most."""

Timeout = Annotated[float, Field(ge=1.0, le=_YEAR, json_schema_extra=_AS_WRITTEN), _Duration]
"""[s], the longest that is waited; below a second nothing ends in time."""

TimeoutOrZero = Annotated[Seconds, AfterValidator(_no_instant)]
"""A timeout, or 0 for none."""
