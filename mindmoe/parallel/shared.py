"""Collectives of ranks that share a host, through memory that they share, on the CPU backend.

MindSpore's all-reduce there moves 0.3 GB/s, all of it processor time. The ops of the pack (kernels/cpu/src/shared.cc)
copy and add at the speed of the caches.
"""

import ctypes
import logging
import mmap
import os
import secrets
from collections.abc import Callable

import numpy as np
from mindspore import Tensor

from mindmoe.host.errors import UserError
from mindmoe.ops.cpu.pack import load, settings
from mindmoe.parallel.groups import Group

log = logging.getLogger(__name__)
MIN_BYTES = 1 << 15  # below, MindSpore's own collective takes no longer
_SLOT = 1 << 18  # elements of a rank's slot: those of two ranks stay in the caches
_LINE = 64  # bytes of a line of the cache, as in the ops: one for each counter
_WORD = 22  # bits of a number that fp32 carries exactly; process ids have as many


class Shared:
    """The collectives of one group whose ranks have mapped the same memory.

    Args:
        group: where.
        memory: the mapping, which lives as long as this.
    """

    def __init__(self, group: Group, memory: mmap.mmap):
        self.memory = memory  # the ops know its address only
        # the first settings of every op: where the memory is, and how it is divided
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.room, pack = (address, group.size, group.index, _SLOT), load()
        self.settings = settings(*self.room)
        shapes: dict[str, Callable[..., list[int]]] = {
            "all_reduce": lambda x, _: x,
            "all_gather": lambda x, _: [group.size, *x],
            "reduce_scatter": lambda x, _: x[1:],
            "all_to_all": lambda x, _: x,
        }
        # The results' sizes depend on the group, so ops of different groups are different variants.
        self.ops = {
            verb: pack.op(f"shared_{verb}", shape, lambda x, _: x, variant=group.name) for verb, shape in shapes.items()
        }
        self.exchange = pack.op(
            "shared_all_to_all_v",
            lambda x, _, rows: [rows[0], *x[1:]],
            lambda x, *_: x,
            variant=group.name,
        )

    def __call__(self, verb: str, x: Tensor) -> Tensor:
        """A verb of composed.Composed on x fp32, as it is described there."""
        return self.ops[verb](x.contiguous(), self.settings)

    def all_to_all_v(self, x: Tensor, sent: list[int], rows: int) -> Tensor:
        """Rows of x (R, ...) fp32 to all ranks: the first sum(sent), in order of their target.

        Args:
            x: at least one row.
            sent: rows for each rank.
            rows: of the result, at least one and at least as many as arrive.

        Returns:
            (rows, ...) what arrived in order of the source, then zeros.
        """
        # The last tensor is there for its shape, from which the number of rows is inferred.
        return self.exchange(x.contiguous(), settings(*self.room, *sent), Tensor(np.zeros(rows, np.int32)))


def join(group: Group, total: Callable[[np.ndarray], np.ndarray]) -> Shared | None:
    """Maps one memory in all ranks of a group, which call it together; None, everywhere, where they cannot.

    The memory has no name and goes with the last process. The first rank makes it, and the others find it among that
    process's open files, and a random word in it that tells it from another host's.

    Args:
        group: the ranks.
        total: the sum over the group of a host array in fp32.
    """
    memory, fd, words = None, -1, np.zeros(5, np.float32)
    if group.index == 0:
        try:
            # a rank whose pack does not load says so here, and all do without
            load()
            fd, memory = _made(group.size)
            # The first line of the memory, which the ops leave alone, holds a random word; it goes to the others in
            # fp32, in parts that are exact there.
            token = secrets.randbits(3 * _WORD)
            memory[:8] = (token & (1 << 64) - 1).to_bytes(8, "little")
            parts = [token >> _WORD * i & (1 << _WORD) - 1 for i in range(3)]
            words = np.array([os.getpid(), fd, *parts], np.float32)
        except (OSError, UserError) as error:
            log.info("ranks %s share no memory: %s", group.ranks, error)
    # All others pass zeros, so the sum is what the first rank says; a pid of 0 says that it has no memory.
    pid, file, *parts = (int(word) for word in total(words))
    if group.index and pid:
        token = sum(part << _WORD * i for i, part in enumerate(parts)) & (1 << 64) - 1
        memory = _found(pid, file, group.size, token)
        if memory is None:
            log.info("ranks %s share no memory: rank %d does not see that of its first one", group.ranks, group.index)
    # One rank without is enough for all to do without. The sum is a barrier too: the first rank may close its file
    # after it, for by then all have opened theirs.
    everybody = total(np.array([float(memory is not None)], np.float32))[0] == group.size
    if fd >= 0:
        os.close(fd)
    if memory is None or not everybody:
        return None
    log.info("collectives of ranks %s go through shared memory, from %d kB", group.ranks, MIN_BYTES >> 10)
    return Shared(group, memory)


def _bytes(ranks: int) -> int:
    # Room of shared.cc: token, arrivals and sleepers, a counter for each rank, then two slots for each, used in turn
    return (3 + ranks) * _LINE + 2 * ranks * _SLOT * 4


def _made(ranks: int) -> tuple[int, mmap.mmap]:
    """A file without a name, and its mapping; zeros."""
    # the other ranks open it by its number among this process's files
    fd = os.memfd_create("mindmoe")
    try:
        os.posix_fallocate(fd, 0, _bytes(ranks))  # now or never: a page that is missing later ends the process
        return fd, mmap.mmap(fd, _bytes(ranks))
    except OSError:
        os.close(fd)
        raise


def _found(pid: int, file: int, ranks: int, token: int) -> mmap.mmap | None:
    """The mapping of what another process made, if it is that."""
    try:
        load()
        with open(f"/proc/{pid}/fd/{file}", "r+b") as shared:
            # in another container the pid may be somebody else's: size and token tell
            if os.fstat(shared.fileno()).st_size != _bytes(ranks):
                return None
            memory = mmap.mmap(shared.fileno(), _bytes(ranks))
    except (OSError, UserError):
        return None
    return memory if memory[:8] == token.to_bytes(8, "little") else None
