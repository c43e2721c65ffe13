"""What `ckpt verify` found, remembered beside the steps for as long as their files stay as they were."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash
from pydantic import TypeAdapter

from mindmoe.checkpoint.folder import list_steps
from mindmoe.checkpoint.retention import PIN
from mindmoe.host import strict_json
from mindmoe.host.errors import UserError
from mindmoe.host.files import replace_file

FILE = "VERIFIED.json"  # in the checkpoint folder; it belongs to no step


@dataclass(frozen=True, kw_only=True, slots=True)
class StepVerdict:
    """What was found: how many `problems`, when [s since 1970], and of which `files`, by their fingerprint."""

    files: str
    problems: int
    time: float


def fingerprint(folder: Path) -> str:
    """One word for the files of a step as the system describes them; empty where it does not.

    Size, times of change and inode of every file but a pin count: whoever writes to one changes its word, and so does
    whoever sets its time back.
    """
    try:
        with os.scandir(folder) as found:
            files = [(file.name, file.stat(follow_symlinks=False)) for file in found if file.name != PIN]
    except OSError:
        return ""
    facts = [(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) for name, status in files]
    return xxhash.xxh3_128_hexdigest(repr(sorted(facts)).encode())


def remember(folder: Path, files: str, problems: Sequence[str]) -> None:
    """Keeps what was found of a step, and drops what was of steps that have gone; a folder of others is left as it is.

    Args:
        folder: of the step.
        files: its fingerprint before it was read.
        problems: what is wrong with it.
    """
    root = folder.parent
    known = {name: verdict for name, verdict in _read(root).items() if (root / name).exists()}
    known[folder.name] = StepVerdict(files=files, problems=len(problems), time=time.time())
    # What was found has been printed; that it cannot be kept, as in a folder of others, is no failure.
    with suppress(OSError):
        replace_file(root / FILE, _adapter().dump_json(known, indent=1))


def recall(root: Path) -> dict[str, StepVerdict]:
    """What is known of the steps of a folder whose files are still those that were verified, by their names."""
    known = _read(root)
    names = (path.name for path in list_steps(root) if path.name in known)
    return {name: known[name] for name in names if known[name].files == fingerprint(root / name) != ""}


def _read(root: Path) -> dict[str, StepVerdict]:
    """Everything that was remembered; nothing if that cannot be read."""
    try:
        return strict_json.checked(dict[str, StepVerdict], strict_json.read(root / FILE, follow=False), FILE)
    except UserError:
        return {}


def _adapter() -> TypeAdapter[dict[str, StepVerdict]]:
    return TypeAdapter(dict[str, StepVerdict])
