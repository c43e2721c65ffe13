"""A small run under any layout."""

from collections.abc import Callable

import pytest

from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig
from mindmoe.equiv.layouts import parse_layout
from mindmoe.parallel.mesh import Mesh

Laid = tuple[RunConfig, Mesh]


@pytest.fixture(scope="session")
def laid(root) -> Callable[..., Laid]:
    """Maps the words of a layout, and overrides, to a resolved run and its mesh."""

    def laid(layout: str, *words: str) -> Laid:
        small = ["model.vocab_size=384", "moe.dispatch.capacity_chunk=8"] if "moe=null" not in words else []
        run = load_config(root / "configs" / "equiv.yaml", [*small, *words])
        found = parse_layout(layout, run)
        return found.config, Mesh.build(found.config.parallel, found.world)

    return laid
