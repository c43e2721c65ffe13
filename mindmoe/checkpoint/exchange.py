"""Messages between the ranks of one save, through the shared folder.

Collectives cannot be used here: the writer runs beside training, which has collectives of its own under way. A
message is a small file that appears whole, by a rename; every wait has a deadline.
"""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mindmoe.checkpoint import disk
from mindmoe.host import files, strict_json
from mindmoe.host.errors import CheckpointError, UserError

_POLL = 0.02  # [s]
_MAX_MESSAGE = 2**28  # [bytes]; a rank tells of every box that it holds


class Exchange:
    """The message folder of one generation of writers.

    Args:
        root: the checkpoint folder.
        generation: of the writer, equal on all ranks; the next `store.claim` removes the folder.
        rank: this rank.
        world: number of ranks.
        timeout: longest wait for another rank [s].
    """

    def __init__(self, root: Path, generation: str, rank: int, world: int, timeout: float):
        self.rank, self.world, self.timeout = rank, world, timeout
        self.folder = root / f"{disk.TEMPORARY}ranks-{generation}"
        with disk.reported(f"exchange messages in {root}"):
            disk.make_dirs(self.folder)

    def send(self, topic: str, message: Any) -> None:
        """Leaves a message of this rank for the others.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        with disk.reported(f"write to {self.folder}"):
            files.replace_file(self._path(topic, self.rank), json.dumps(message))

    def received(self, topic: str, rank: int) -> Any:
        """The message of a rank, None if there is none yet.

        Raises:
            CheckpointError: it cannot be read, or is none.
        """
        try:
            return strict_json.read(self._path(topic, rank), _MAX_MESSAGE, follow=False)
        except files.FileMissing:
            return None
        except UserError as error:
            raise CheckpointError(error.message, error.remedy) from error

    def wait(self, topic: str, rank: int, started: float, *, or_topic: str = "", patience: float = 1.0) -> Any:
        """The message of a rank.

        Args:
            topic: what it is about.
            rank: who sends it.
            started: `time.monotonic()` when the waiting began; the timeout counts from there.
            or_topic: another topic that ends the waiting.
            patience: multiple of the timeout to wait.

        Raises:
            CheckpointError: it did not come in time.
        """
        while (message := self.received(topic, rank)) is None:
            # Rank 0 may have given up before it began: its outcome then comes in the place of the beginning.
            if or_topic and (message := self.received(or_topic, rank)) is not None:
                return message
            self._pause(topic, [rank], started, patience)
        return message

    def gather(self, topic: str, ranks: Iterable[int], started: float) -> dict[int, Any]:
        """The messages of several ranks; as soon as one reports an error, what has come by then.

        Raises:
            CheckpointError: they did not come in time.
        """
        messages: dict[int, Any] = {}
        missing = list(ranks)
        while missing:
            for rank in missing:
                if (message := self.received(topic, rank)) is not None:
                    messages[rank] = message
                    # The save has failed already: there is no use in waiting for the others.
                    if "error" in message:
                        return messages
            missing = [rank for rank in missing if rank not in messages]
            if missing:
                self._pause(topic, missing, started)
        return messages

    def _pause(self, topic: str, ranks: list[int], started: float, patience: float = 1.0) -> None:
        """Sleeps a moment. Raises CheckpointError once the time is up."""
        if time.monotonic() - started > self.timeout * patience:
            who = f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} have"
            raise CheckpointError(
                f"{who} sent no word about {topic} for {self.timeout * patience:.0f} s (checkpoint.timeout)",
                "see whether it lives and how full and fast its disk is; the next save is tried anew",
            )
        time.sleep(_POLL)

    def forget(self, topic: str) -> None:
        """Removes the messages of a topic; one that stays does no harm, and is no reason to call a save failed."""
        for rank in range(self.world):
            with suppress(OSError):
                self._path(topic, rank).unlink()

    def _path(self, topic: str, rank: int) -> Path:
        return self.folder / f"{topic}-{rank}.json"
