"""How a command ends: with its exit code, or with one message instead of a stack trace where the user can help it."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from mindmoe.host.errors import UserError
from mindmoe.host.files import shown

_REFUSALS = {
    errno.EACCES: "give this user permission, or name another place",
    errno.EPERM: "give this user permission, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOSPC: "free some space, or name another place",
    errno.EDQUOT: "free some space, or name another place",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOTDIR: "part of this path is a file: name a folder",
    errno.EISDIR: "name a file",
    errno.ELOOP: "its links lead in a circle: name the file itself",
}
"""What the system says of a place that the user chose, with the remedy. Any other error of it is a bug of ours."""


def answered(run: Callable[[], int]) -> int:
    """Runs a command; returns its exit code: 2 for a mistake of the user, 130 when interrupted.

    A reader of the output that has gone (`| head`) ends it without a word, as SIGPIPE would.
    """
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()  # here, where a full disk can still be answered
    except UserError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:
        _give_up_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _say(_refusal(error))
        return 2


def _refusal(error: OSError) -> str:
    """What the system refused, in a sentence. Raises `error` again if the user cannot help it."""
    if error.errno == errno.ENOENT and error.filename is None:
        try:
            os.getcwd()
        except FileNotFoundError:
            return "the working folder has been deleted: change into one that is there"
    if error.errno not in _REFUSALS:
        raise error
    place = "the output" if error.filename is None else shown(os.fsdecode(error.filename), 300)
    if error.filename is None:
        _give_up_output()
    return f"{place}: {error.strerror}: {_REFUSALS[error.errno]}"


def _say(message: str) -> None:
    """Prints a message of the command; what files and arguments bring into it cannot control the terminal."""
    safe = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message)
    print(f"mindmoe: {safe}", file=sys.stderr)


def _give_up_output() -> None:
    """Sends what is still to be printed nowhere; otherwise the interpreter would fail once more as it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
