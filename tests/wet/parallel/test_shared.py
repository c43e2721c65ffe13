"""Who may share memory, and that everybody agrees about it; two threads stand for two ranks."""

import os
import threading

import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.parallel import shared
from mindmoe.parallel.groups import Group


def both(spoil=lambda index, words: words) -> list:
    """What `join` gives each of two ranks; `spoil` changes what a rank hears."""
    met, lock, found = threading.Barrier(2, timeout=200), threading.Lock(), [None, None]
    summed: dict[int, np.ndarray] = {}

    def total_of(index: int):
        calls = iter(range(9))

        def total(values: np.ndarray) -> np.ndarray:
            call = next(calls)
            with lock:
                summed[call] = summed.get(call, np.zeros_like(values)) + values
            met.wait()
            return spoil(index, summed[call].copy())

        return total

    def rank(index: int) -> None:
        group = Group(axis="dp", name="pair", ranks=(0, 1), index=index)
        found[index] = shared.join(group, total_of(index))

    before = len(os.listdir("/proc/self/fd"))
    threads = [threading.Thread(target=rank, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if found == [None, None]:
        assert len(os.listdir("/proc/self/fd")) == before  # nothing stays behind
    return found


def test_two_ranks_map_the_same_memory():
    first, second = both()
    first.memory[100:104] = b"here"
    assert second.memory[100:104] == b"here"


# what the second rank hears of the first: process, file, and three parts of the random word
@pytest.mark.parametrize("change", [(1e9, 0, 0, 0, 0), (0, 1e6, 0, 0, 0), (0, 0, 1, 0, 0)], ids=["pid", "file", "word"])
def test_a_second_rank_that_sees_something_else(change):
    assert both(lambda index, words: words + change if index and len(words) == 5 else words) == [None, None]


@pytest.mark.parametrize("where", [(shared, "load"), (shared.os, "posix_fallocate"), (shared.mmap, "mmap")])
def test_a_first_rank_that_cannot(monkeypatch, where):
    def refuse(*_):
        raise UserError("no compiler", "install one") if where[1] == "load" else OSError("no memory")

    monkeypatch.setattr(*where, refuse)
    assert both() == [None, None]
