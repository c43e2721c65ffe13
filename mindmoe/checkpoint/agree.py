"""What ranks must agree on while they load: which step, and whether all of them could read it."""

from typing import Protocol


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
