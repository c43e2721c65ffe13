"""The few file operations a checkpoint is made of, in the form that survives a power loss.

A file is durable after fsync of the file; its name after fsync of the folder that holds it. Everything that
the store publishes goes through these functions, so that the crash tests can record the real system calls.
Permissions are those that the umask leaves; whoever shares runs with others sets it.
"""

import errno
import fcntl
import mmap
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from mindmoe.host.errors import CheckpointError

TEMPORARY = ".tmp-"  # names with this prefix are unfinished and may be removed
PAGE = 4096  # [bytes], what direct writes are aligned to
_HUGE = 2**21  # [bytes], a huge page
_MAX_WRITE = 2**28  # [bytes] written in one call: between calls the disk waits for this thread to get its turn
_NO_SPACE = "free space on that disk, lower checkpoint.keep_last, or move output_dir"
_NO_ACCESS = "give this user write permission, or set output_dir to a folder it may write"
_REMEDIES = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: _NO_ACCESS,
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EIO: "check the disk (dmesg, smartctl) and move output_dir to a healthy one",
    errno.ENOTDIR: "set output_dir to a folder; part of this path is a file",
    errno.ENAMETOOLONG: "choose a shorter path",
}


@contextmanager
def reported(doing: str) -> Iterator[None]:
    """Turns an OSError inside the block into a CheckpointError that says what was being done and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "see the system error; earlier checkpoints are untouched")
        where = f" ({error.filename})" if error.filename else ""
        raise CheckpointError(f"cannot {doing}: {error.strerror or error}{where}", remedy) from error


def write_all(fd: int, data: bytes | memoryview, position: int = 0) -> None:
    """Writes every byte at a position [bytes]; a write may be short when the disk fills or a signal arrives."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view[:_MAX_WRITE], position)
        position, view = position + written, view[written:]


def write_pages(fd: int, data: memoryview, position: int) -> None:
    """Writes whole pages past the page cache where the file system allows it, otherwise as `write_all` does.

    On the way through the cache a large file costs a second copy in memory and, measured, most of the speed.

    Args:
        fd: the file.
        data: page-aligned in memory, whole pages.
        position: a multiple of PAGE [bytes].
    """
    if not data:
        return
    try:
        with _past_the_cache(fd):
            write_all(fd, data, position)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a file system without O_DIRECT, or with larger pages, answers
            raise
        write_all(fd, data, position)


@contextmanager
def _past_the_cache(fd: int) -> Iterator[None]:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def aligned(size: int, position: int = 0, *, lasting: bool = False) -> memoryview:
    """Memory to be filled from, or written to, a position [bytes] of a file: the two agree modulo PAGE.

    Memory that is `lasting`, and large, is asked for in huge pages: measured, direct writes from it are a third faster,
    because the disk gets fewer and longer pieces. What is used once is not: the kernel may have to move other pages to
    make room for huge ones, which took up to twice the time of a load.
    """
    if size < 2 * _HUGE or not lasting:
        # A page more than is asked for, of which the part that agrees with `position` is used.
        room = np.empty(size + PAGE, np.uint8)
        start = (position - room.ctypes.data) % PAGE
        return room[start : start + size].data
    memory = mmap.mmap(-1, size + PAGE + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # The mapping begins at a page; the next huge page begins `base` bytes later.
    base = -np.frombuffer(memory, np.uint8).ctypes.data % _HUGE
    start = base + position % PAGE
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE, base, (start + size - base) // _HUGE * _HUGE)
    return memoryview(memory)[start : start + size]


def reopen_direct(fd: int) -> int | None:
    """Another descriptor of an open file, for reads past the page cache; None where that is not possible."""
    try:
        # By descriptor, not by name: the same file, even if another has taken its name by now.
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # no O_DIRECT on this file system, or no /proc
        return None


def read_pages(fd: int, view: memoryview, position: int) -> int:
    """Fills memory from a file past the page cache, in one read; returns how many bytes came.

    The first and the last page of the range belong to `view` in part only, so they are read aside.

    Args:
        fd: from `reopen_direct`.
        view: memory from `aligned`; nothing is read if it is another.
        position: where to read [bytes].

    Raises:
        OSError: the disk refused, other than for the alignment of the read.
    """
    # Bytes in front of the first page border in the range, and behind the last one.
    head, tail = -position % PAGE, (position + len(view)) % PAGE
    if (np.frombuffer(view, np.uint8).ctypes.data - position) % PAGE or len(view) < head + tail:
        return 0
    edges = aligned(2 * PAGE, 0)
    first, inner, last = edges[:PAGE], view[head : len(view) - tail], edges[PAGE:]
    before = PAGE - head if head else 0
    # Pages at both ends go to memory of their own, what lies between straight to its place.
    parts = [first] * bool(head) + [inner] * bool(inner) + [last] * bool(tail)
    try:
        got = os.preadv(fd, parts, position - before) - before
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 0
    if got < head + len(inner):
        return 0  # interrupted: the caller reads again
    view[:head] = first[before:] if head else b""
    # The file ends inside the last page or the read was cut short: the tail is left to the caller.
    if got < len(view):
        return head + len(inner)
    view[len(view) - tail :] = last[:tail]
    return len(view)


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """A descriptor of a file that did not exist before; on leaving without an error it is fsynced."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: Path, data: bytes) -> None:
    """Creates a durable file; its name is durable only after `sync_dir` of the parent."""
    with new_file(path) as fd:
        write_all(fd, data)


def sync_file(path: Path) -> None:
    """Makes the content of a file durable that another library wrote."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_dir(path: Path) -> None:
    """Makes the names inside a folder durable: creations, renames and removals."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dirs(path: Path) -> None:
    """Creates a folder and its missing parents durably."""
    missing = [path]
    while not missing[-1].exists():
        missing.append(missing[-1].parent)
    # From the top down; the last of `missing` is the one that exists.
    for folder in reversed(missing[:-1]):
        try:
            os.mkdir(folder)
        except FileExistsError:  # another rank was faster
            continue
        sync_dir(folder.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a small file atomically and durably."""
    # Named after the process: two that write at once do not write into one file.
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        write_new(temporary, data)
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def remove(path: Path) -> None:
    """Removes a file, a folder, or a link but not what it leads to; one that is already gone is fine."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
