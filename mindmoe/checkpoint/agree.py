"""What ranks must agree on while they load: which step, and whether all of them could read it."""

from collections.abc import Callable
from typing import Protocol

from mindmoe.host.errors import CheckpointError

_FINE, _FAILED = "+", "-"  # what a shared text begins with


class Agreement(Protocol):
    """Every rank calls the same methods in the same order; each returns the same value on all of them."""

    rank: int

    def share(self, text: str) -> str:
        """The text of rank 0."""

    def worst(self, level: int) -> int:
        """The greatest level of any rank, 0 to 2."""


class Alone:
    """One process agrees with itself."""

    rank = 0

    def share(self, text: str) -> str:
        """The text."""
        return text

    def worst(self, level: int) -> int:
        """The level."""
        return level


def from_rank_0(agree: Agreement, what: Callable[[], str]) -> str:
    """The result of `what`, run on rank 0 alone, on every rank.

    Raises:
        CheckpointError: it raised one there; no rank is left waiting.
    """
    error = None
    text = ""
    if agree.rank == 0:
        try:
            text = _FINE + what()
        except CheckpointError as raised:
            text, error = _FAILED + raised.message, raised
    text = agree.share(text)
    if text.startswith(_FAILED):
        raise error or CheckpointError(f"rank 0: {text.removeprefix(_FAILED)}", "see its message")
    return text.removeprefix(_FINE)
