"""The grid that a tuner searches (dry)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindmoe.lab.tune.qubo import encoding

Levels = tuple[int, ...]
"""A point: the number of the level of each variable."""


@dataclass(frozen=True, slots=True)
class Space:
    """Variables by config key, each with its levels."""

    variables: tuple[tuple[str, tuple[float, ...]], ...]

    @classmethod
    def of(cls, levels: Mapping[str, Sequence[float]]) -> "Space":
        """The space of a config section."""
        return cls(tuple((key, tuple(values)) for key, values in levels.items()))

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of each variable."""
        return tuple((len(values) - 1).bit_length() for _, values in self.variables)

    @property
    def size(self) -> int:
        """Number of points."""
        return 2 ** sum(self.bits)

    @property
    def matrix(self) -> np.ndarray:
        """A (m, n) of u = A x."""
        return encoding(self.bits)

    def levels_of(self, state: int) -> Levels:
        """The point of a state of bits."""
        levels = []
        for width in self.bits:
            levels.append(state & (2**width - 1))
            state >>= width
        return tuple(levels)

    def state_of(self, levels: Levels) -> int:
        """The state of bits of a point."""
        state, shift = 0, 0
        for level, width in zip(levels, self.bits, strict=True):
            state |= level << shift
            shift += width
        return state

    def unit(self, levels: Levels) -> np.ndarray:
        """The point as u (m) in [0, 1]: places on the grid, not values, so that geometric grids are even."""
        return np.array([level / (2.0**width - 1.0) for level, width in zip(levels, self.bits, strict=True)])

    def settings(self, levels: Levels) -> dict[str, float]:
        """The point as values by config key."""
        return {key: values[level] for (key, values), level in zip(self.variables, levels, strict=True)}

    def nearest(self, settings: Mapping[str, float]) -> Levels:
        """The point closest to values by config key."""
        return tuple(int(np.argmin([abs(value - settings[key]) for value in values])) for key, values in self.variables)
