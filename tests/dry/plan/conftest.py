"""One search of gpt-oss-120b on 512 Ascend 910B2, shared by all tests that look at it."""

import time
from dataclasses import dataclass

import pytest

from mindmoe.plan.document import example_search
from mindmoe.plan.search import SearchResult


@dataclass(frozen=True)
class TimedSearch:
    result: SearchResult
    cpu_s: float


@pytest.fixture(scope="session")
def gpt_oss_512() -> TimedSearch:
    start = time.process_time()
    result = example_search()
    return TimedSearch(result, time.process_time() - start)
