"""A small valid config, and a writer of config files."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

VALID = """\
name: tiny
model:
  vocab_size: 64
  hidden_size: 16
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 4
  intermediate_size: 16
  max_position_embeddings: 32
moe:
  num_experts: 8
  num_experts_per_tok: 2
train:
  steps: 10
  seq_length: 8
  global_batch_size: 4
  micro_batch_size: 2
optim:
  warmup_steps: 1
data:
  sources: data/tokens
"""

Write = Callable[..., str]

HANG = 2.0  # [s] of processor time; the largest sections take a tenth of it


@pytest.fixture
def valid() -> str:
    """A config that is valid as it stands; its lines are counted on by golden messages."""
    return VALID


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file below the test's working directory and returns its path, relative as a user would give it."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str | bytes, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return write_file


class Work:
    """Counts the calls made inside a `with` block, of Python functions and from Python into C.

    Their number is the same on an idle and on a busy machine. What C code does by itself is not in it: a pattern that
    goes over a long text again and again is one call. So the block must also end before HANG, which nothing does that
    is more than linear in a file of the largest size.
    """

    calls = 0

    def __enter__(self) -> "Work":
        self.before, self.start = sys.getprofile(), time.process_time()
        sys.setprofile(self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        sys.setprofile(self.before)
        assert kind or time.process_time() - self.start < HANG

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        self.calls += event in ("call", "c_call")


@pytest.fixture(scope="session")
def work() -> type[Work]:
    """What counts calls."""
    return Work
