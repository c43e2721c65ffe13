"""A random order without a stored list: a keyed bijection of 0 .. n-1, evaluated position by position.

A generalised Feistel network on Z_a x Z_b with a * b just above n, where each round adds a keyed hash of one
half to the other; the few images beyond n - 1 are sent through again until they fall inside (cycle walking).
Source: Black and Rogaway, Ciphers with arbitrary finite domains (CT-RSA 2002), methods 2 and 3.
"""

import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, the increment of SplitMix64
_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit numbers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix` of every element; array arithmetic in u64 wraps silently."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Permutation:
    """The permutation of range(n) that belongs to a key; its whole state is `n` and eight round keys.

    Args:
        n: size of the domain, 1 to 2**62.
        key: any non-negative integers, e.g. (seed, set, epoch); each combination gives its own order.
    """

    def __init__(self, n: int, *key: int):
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"n={n} is not between 1 and 2**62")
        self.n = n
        self._a = math.isqrt(n - 1) + 1  # ceil(sqrt(n))
        # a * b is at least n and exceeds it by less than a, so few images fall outside.
        self._b = -(-n // self._a)
        state = 0
        for part in key:
            # Each part is mixed in turn, so that (1, 2) and (2, 1) give different orders.
            state = _mix((state + _GOLDEN + _mix(part & _MASK)) & _MASK)
        self._keys = [np.uint64(_mix((state + _GOLDEN * (i + 1)) & _MASK)) for i in range(_ROUNDS)]

    def __call__(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each position goes.

        Args:
            index: (k,) positions in range(n).

        Returns:
            (k,) int64, distinct for distinct positions.
        """
        image = self._network(np.asarray(index).astype(np.uint64))
        # It ends: the network permutes a finite set, so whoever walks on from inside comes back inside.
        while (outside := image >= self.n).any():
            image[outside] = self._network(image[outside])
        return image.astype(np.int64)

    def _network(self, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The Feistel network: a bijection of range(a * b)."""
        a, b = np.uint64(self._a), np.uint64(self._b)
        # Adding a function of the other half can be undone, so every round is a bijection, whatever the function.
        left, right = value // b, value % b
        for i, key in enumerate(self._keys):
            if i % 2 == 0:
                left = (left + _mix_array(right ^ key) % a) % a
            else:
                right = (right + _mix_array(left ^ key) % b) % b
        return left * b + right
