"""Writes encoded documents into the training and the held-out set."""

from pathlib import Path

import numpy as np

from mindmoe.data.encode import EncodedDocument
from mindmoe.data.indexed import IndexedWriter
from mindmoe.data.manifest import SplitStats
from mindmoe.host.errors import UserError


class SplitWriter:
    """Sends each document to `train` or `valid` by its draw, and keeps the counts.

    A small corpus may have no document whose draw falls below the fraction. So as long as `valid` is empty, the
    document with the lowest draw so far is held back, and at the end it becomes the held-out set.

    Args:
        folder: where the pairs are written.
        dtype: of the tokens.
        valid_fraction: share of the documents to hold out; with 0 there is no `valid` pair.
    """

    def __init__(self, folder: Path, dtype: np.dtype, valid_fraction: float):
        self._fraction = valid_fraction
        names = ["train", "valid"] if valid_fraction > 0 else ["train"]
        self._writers = {name: IndexedWriter(folder / name, dtype) for name in names}
        self._documents = dict.fromkeys(names, 0)
        self._bytes = dict.fromkeys(names, 0)
        self._held: EncodedDocument | None = None

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return sum(self._documents.values()) + (self._held is not None)

    @property
    def num_tokens(self) -> int:
        """Tokens written so far."""
        return sum(writer.num_tokens for writer in self._writers.values())

    def add(self, document: EncodedDocument) -> None:
        """Writes a document, or holds it back."""
        # A document that is below the fraction makes the stand-in unnecessary: it goes to `train` after all.
        if document.draw < self._fraction:
            self._write("valid", document)
            self._release("train")
        elif self._fraction > 0 and not self._documents["valid"]:
            if self._held is None or document.draw < self._held.draw:
                # The lower draw is held; what was held before, if anything, is written.
                document, self._held = self._held or document, document
                if document is self._held:
                    return
            self._write("train", document)
        else:
            self._write("train", document)

    def _release(self, name: str) -> None:
        if self._held is not None:
            self._write(name, self._held)
            self._held = None

    def _write(self, name: str, document: EncodedDocument) -> None:
        self._writers[name].add_document([document.tokens])
        self._documents[name] += 1
        self._bytes[name] += document.num_bytes

    def commit(self) -> dict[str, SplitStats]:
        """Makes the pairs durable and returns what they hold.

        Raises:
            UserError: a split would be empty.
        """
        # Only held still if no draw fell below the fraction.
        self._release("valid")
        if not self._documents["train"] or not all(self._documents.values()):
            raise UserError(
                f"{self.num_documents} documents cannot be split into train and valid "
                f"with valid_fraction={self._fraction}",
                "give more documents (a text file is one document), or change valid_fraction; 0 writes no held-out set",
            )
        for writer in self._writers.values():
            writer.commit()
        return {
            name: SplitStats(documents=self._documents[name], tokens=writer.num_tokens, bytes=self._bytes[name])
            for name, writer in self._writers.items()
        }

    def abort(self) -> None:
        """Removes what was written."""
        for writer in self._writers.values():
            writer.abort()
