"""A process to be killed: `python -m mindmoe.checkpoint.torture.child CONTENDER ROOT`.

For each line it reads it forks a child that resumes, saves the same step once more and goes on for ever. The child
prints its process id, then each step once it is acknowledged; when it is dead, the parent prints `dead`.
"""

import os
import sys
from pathlib import Path

from mindmoe.checkpoint.torture.contenders import CONTENDERS, Contender
from mindmoe.checkpoint.torture.state import plain


def say(text: object) -> None:
    """Prints a line in one system call, so that a kill cannot tear it."""
    os.write(1, f"{text}\n".encode())


def save_for_ever(contender: Contender, root: Path) -> None:
    """Resumes and saves until it is killed."""
    say(os.getpid())
    found = contender.find(root)
    step = found[0] if found else 1
    while True:
        contender.save(root, step, plain(step))
        say(step)
        step += 1


def main(name: str, root: Path) -> None:
    """Serves until the input ends."""
    contender = CONTENDERS[name]()
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            try:
                save_for_ever(contender, root)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
