"""What the core knows by name alone: sections, routers and functions that live in the lab or in other packages (dry).

The core imports none of them. A name is looked up when a config or a command asks for it, so that a run that uses none
works without them.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from mindmoe.config.schema import Section
from mindmoe.host.errors import UserError

ROUTERS = "mindmoe.routers"
"""Entry points of this group are routers, by the `type` of their section (docs/add-a-router.md)."""

DYNAMIC_ROUTER = "mindmoe.lab.dmr.config:Dmr"
ONLINE_TUNING = "mindmoe.lab.tune.config:OnlineConfig"
FLIGHT_RECORDER = "mindmoe.lab.flight.trace:write_trace"


def find(reference: str) -> Any:
    """What `package.module:name` says.

    Raises:
        UserError: it cannot be imported here.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{reference} cannot be loaded: {error}", "install what it belongs to") from error


def installed(group: str) -> Mapping[str, EntryPoint]:
    """Entry points of other packages by name; the first of a name counts, as it does when modules are imported."""
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in reversed(tuple(entry_points(group=group)))}


class Beside(Protocol):
    """What runs beside the steps of a training run; every rank calls it alike."""

    def before(self, step: int) -> None:
        """What must happen before a step (from 0)."""

    def after(self, step: int, loss: float, cv: float, seconds: float) -> None:
        """Takes note of a step: its loss, the mean coefficient of variation of the experts' load, and its time [s]."""

    def close(self) -> None:
        """Ends it."""


class Companion(Section):
    """A section of a run file for something that runs beside training, from outside the core."""

    def changes(self, key: str) -> bool:
        """Whether it changes that key of the run file while a run goes on."""
        return False

    def run_problems(self, moe: Any, optim: Any) -> Iterator[str]:
        """What does not fit those sections of the run."""
        yield from ()

    def start(self, config: Any, step: Any, groups: Any, start: int) -> Beside:
        """Begins it, for a run that goes on from step `start`."""
        raise NotImplementedError


class Elsewhere(ABC):
    """Annotates a section of a config whose class is found when a value of it is read."""

    @abstractmethod
    def section(self, value: Any) -> type[Section]:
        """The class of a value.

        Raises:
            ValueError: there is none, with a remedy.
        """

    @abstractmethod
    def sections(self) -> Iterator[type[Section]]:
        """All classes that there are here."""

    def validated(self, value: Any) -> Section:
        """A section as it is, or made of a mapping."""
        if isinstance(value, Section):
            return value
        if not isinstance(value, Mapping):
            raise PydanticKnownError("model_type", {"class_name": "section"})
        try:
            cls = self.section(value)
        except UserError as error:
            raise ValueError(str(error)) from error
        return cls.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Checks a value by its own class, and writes it as that class does."""
        write: Callable[[Section], Any] = lambda section: section.model_dump()  # noqa: E731
        return core_schema.no_info_plain_validator_function(
            self.validated, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """One of all sections that there are here."""
        known = [handler(cls.__pydantic_core_schema__) for cls in self.sections()]
        return known[0] if len(known) == 1 else {"oneOf": known} if known else {"type": "object"}


class Named(Elsewhere):
    """A section of one class that lives outside the core."""

    def __init__(self, reference: str):
        self.reference = reference

    def section(self, value: Any) -> type[Section]:
        """That class."""
        return self._found()

    def sections(self) -> Iterator[type[Section]]:
        """That class."""
        with suppress(UserError):
            yield self._found()

    def _found(self) -> type[Section]:
        found: type[Section] = find(self.reference)
        return found
