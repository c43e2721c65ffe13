"""Opening and replacing files that somebody else may have put there.

A file of a user, of a stranger or of another node may be a pipe that never ends, a device, a folder, a link, larger
than the memory or unreadable. Whatever it is, it is opened here, so that the answer is a sentence and never a hang or a
stack trace.

Paths that a user names are read through links: caches and mounted volumes are made of them. What is written or removed,
and every path taken from the content of a file, follows none.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mindmoe.host.errors import UserError

SMALL = 10**6  # [bytes], what a file that people write by hand may have


class FileError(UserError):
    """A file that cannot be read, and what to do. The error of the system, if there was one, is its cause."""


class FileMissing(FileError):
    """A file that is not there."""


def shown(text: str, limit: int = 60) -> str:
    """The text as it may stand in a message: on one line, at most `limit` characters, control characters escaped."""
    short = text if len(text) <= limit else text[: limit - 3] + "..."
    return short if short and short.isprintable() else repr(short)


def printable(text: str) -> str:
    """The text with its line breaks as it may go to a terminal: other control characters are escaped."""
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """A regular file, open for reading; never waits for a pipe or a device.

    Args:
        path: the file.
        follow: whether its name may be a link. Its parent folders may be in either case.

    Raises:
        FileMissing: there is nothing of that name.
        FileError: it is no regular file, or may not be read.
    """
    name = shown(str(path), 300)
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer; on a regular file the flag does nothing.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except FileNotFoundError:
        dangling = os.path.islink(path)
        raise FileMissing(
            f"{name} {'is a link to nothing' if dangling else 'does not exist'}", "check the path"
        ) from None
    except ValueError:  # a NUL character
        raise FileError(f"{name} is no path", "check the path") from None
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise FileError(
                f"{name} is a link, and links are not followed here", "put the file itself there"
            ) from error
        raise FileError(f"{name} cannot be read: {error.strerror}", _remedy(error)) from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise FileError(f"{name} is {what}", "give the path of a file")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_bytes(path: Path, limit: int = SMALL, *, follow: bool = True) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        FileMissing, FileError: as `open_regular`, or it is larger, or the disk fails.
    """
    with open_regular(path, follow=follow) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise FileError(f"{shown(str(path), 300)} cannot be read: {error.strerror}", _remedy(error)) from error
    if len(data) > limit:
        raise FileError(f"{shown(str(path), 300)} is larger than {limit} bytes", "give the file that belongs here")
    return data


def read_text(path: Path, limit: int = SMALL, *, follow: bool = True) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Raises:
        FileMissing, FileError: as `read_bytes`, or it is not UTF-8.
    """
    data = read_bytes(path, limit, follow=follow)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"0x{data[error.start]:02x}"
        raise FileError(f"{shown(str(path), 300)}:{line}: byte {byte} is not UTF-8", "save the file as UTF-8") from None


def replace_file(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Puts a small file in place as a whole; readers see the old content or the new, and a link there is replaced.

    Args:
        path: the file.
        content: text is written as UTF-8.
        mode: its permissions, less those that the umask takes.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        aside.unlink()
    fd = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def open_append(path: Path) -> BinaryIO:
    """A regular file open for appending, created if missing; unbuffered, so that every write is one line in the file.

    Raises:
        OSError: it is a link or no regular file, or cannot be written.
    """
    flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return os.fdopen(fd, "ab", buffering=0)


def _remedy(error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return "give this user permission to read it"
        case errno.EIO:
            return "check the disk, or restore the file from a copy"
        case _:
            return "check the path"
