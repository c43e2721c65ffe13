"""A program to be killed: `python saver.py ROOT` forks, for each line it reads, a child that saves for ever.

The child prints its process id, then each step once it is acknowledged; when it is dead, the parent prints `dead`.
"""

import os
import sys
from pathlib import Path

from mindmoe.checkpoint import store
from mindmoe.checkpoint.retention import Retention
from mindmoe.checkpoint.torture.state import is_state, meta, state

__all__ = ["is_state", "meta", "state"]


def say(text: object) -> None:
    """Prints a line in one system call, so that a kill cannot tear it."""
    os.write(1, f"{text}\n".encode())


def save_for_ever(root: Path) -> None:
    """Resumes, saves the same step once more, and goes on."""
    say(os.getpid())
    own = meta(store.claim(root))
    found = store.newest_valid(root)
    step = found.manifest.step if found else 1
    while True:
        store.save(root, step, state(step), own, Retention(keep_last=2), 0)
        say(step)
        step += 1


if __name__ == "__main__":
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            save_for_ever(Path(sys.argv[1]))
        os.waitpid(child, 0)
        say("dead")
