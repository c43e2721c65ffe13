"""What the tests without MindSpore share."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def running() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts programs that print a line once they are ready, and kills them after the test."""
    started = []

    def running(program: str, *arguments: str, **variables: str) -> subprocess.Popen:
        command = [sys.executable, "-c", program, *arguments]
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    yield running
    for process in started:
        process.kill()
        process.wait()
