"""Makes `each_sibling` importable from the tests beside it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=[False, True], ids=["pynative", "graph"])
def graph(request: pytest.FixtureRequest) -> bool:
    """Whether an op is compiled."""
    return request.param
