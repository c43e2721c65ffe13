"""Routers by the `type` of their section: those of this package, and those that other packages bring (dry)."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

from pydantic_core import PydanticKnownError

from mindmoe.config.plugins import DYNAMIC_ROUTER, ROUTERS, Elsewhere, find, installed
from mindmoe.host.errors import UserError
from mindmoe.moe.router.base import Router
from mindmoe.moe.router.expert_choice import ExpertChoice
from mindmoe.moe.router.moge import Moge
from mindmoe.moe.router.top_p import TopP
from mindmoe.moe.router.topk import TopK

_BUILT_IN: dict[str, type[Router] | str] = {
    "static": TopK,
    "moge": Moge,
    "top_p": TopP,
    "expert_choice": ExpertChoice,
    "dmr": DYNAMIC_ROUTER,  # by name: the core does not import the lab
}
DEFAULT = "static"


def router_types() -> list[str]:
    """All types that a run file may name here."""
    return [*_BUILT_IN, *(name for name in installed(ROUTERS) if name not in _BUILT_IN)]


def router_class(tag: str) -> type[Router]:
    """The class of the routers of a type.

    Raises:
        UserError: it cannot be loaded, or is no router of that type.
        KeyError: there is no such type.
    """
    # Built-in types win over entry points of the same name.
    if tag in _BUILT_IN:
        known = _BUILT_IN[tag]
        found: Any = find(known) if isinstance(known, str) else known
        return found
    point = installed(ROUTERS)[tag]
    where = f"router.type={tag} of {point.dist.name if point.dist is not None else point.value}"
    try:
        found = point.load()
    except Exception as error:  # whatever the code of others raises
        raise UserError(f"{where} cannot be loaded: {error!r}", "mend or remove that package") from error
    if not (isinstance(found, type) and issubclass(found, Router)):
        raise UserError(f"{where} is no mindmoe.moe.router.base.Router", "mend or remove that package")
    if found.build is Router.build:
        raise UserError(f"{where} has no `build`, so it routes nothing", "mend or remove that package")
    return found


class RouterTypes(Elsewhere):
    """The section of any router; `type` says which, `static` where it is not written."""

    def section(self, value: Any) -> type[Router]:
        """The class that `type` names."""
        tag = value.get("type", DEFAULT)
        if not isinstance(tag, str) or tag not in router_types():
            names = ", ".join(repr(name) for name in router_types())
            # The error that pydantic raises for a tagged union, so that it is told in the same words.
            context = {"discriminator": "type", "tag": str(tag), "expected_tags": names}
            raise PydanticKnownError("union_tag_invalid", context)
        return router_class(tag)

    def sections(self) -> Iterator[type[Router]]:
        """All that can be loaded."""
        for tag in router_types():
            # A package that does not load must not hide all others.
            with suppress(UserError):
                yield router_class(tag)


AnyRouter = Annotated[Router, RouterTypes()]
