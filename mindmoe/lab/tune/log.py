"""Logs of searches: one JSON object a line, appended while something runs (dry)."""

from pathlib import Path
from typing import TypeVar

from mindmoe.host import strict_json
from mindmoe.host.files import FileMissing, read_bytes, replace_file

_LIMIT = 64 * 2**20  # [bytes]

T = TypeVar("T")


def read_log(path: Path, form: type[T], *, follow: bool = False, cut: bool = False) -> list[T]:
    """The records of a log, none if there is no file; a last line that a kill tore is left out.

    Args:
        path: the file.
        form: what every record must be.
        follow: whether its name may be a link, as that of a file which a user names.
        cut: whether a torn last line is taken out of the file too.

    Raises:
        FileError: it cannot be read.
        JsonError: a whole line is no such record; the message tells its number.
    """
    try:
        data = read_bytes(path, _LIMIT, follow=follow)
    except FileMissing:
        return []
    *lines, torn = data.split(b"\n")
    if cut and torn:
        replace_file(path, data[: len(data) - len(torn)])
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        found.append(strict_json.checked(form, strict_json.parse(line, where), where))
    return found
