"""What the three kinds of tokenizers have in common before any of it is trusted; tokenizer.py builds on it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mindmoe.host.errors import UserError
from mindmoe.host.files import shown

# Names of the token that separates documents, the most specific first.
EOD_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eod|>",
    "<|eos|>",
    "</s>",
    "<eos>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)


class Vocabulary(Protocol):
    """A tokenizer library with one file loaded.

    Attributes:
        has_piece: (V,) whether an id stands for something; V is one more than the largest id.
        eod_id: the end-of-document token, -1 if there is none.
    """

    has_piece: NDArray[np.bool_]
    eod_id: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with nothing added before or behind."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids that all have a piece; bytes that are no UTF-8 become U+FFFD."""

    def count_bytes(self, ids: NDArray[np.int64], starts: NDArray[np.int64]) -> int:
        """The bytes of text that ids stand for.

        Args:
            ids: (n,) ids that have a piece, and -1, which counts nothing; so do control tokens.
            starts: (documents,) where in `ids` documents begin, rising from 0.
        """


class ByteTable:
    """The bytes of each token, for tokenizers whose text is that of the tokens one after the other.

    Args:
        inside: (V,) bytes of each token.
        first: (V,) the same at the beginning of a document.
    """

    def __init__(self, inside: Sequence[int], first: Sequence[int]):
        self._inside = np.array([*inside, 0], np.int64)  # what -1 counts stands at the end
        self._more_at_start = np.array([*first, 0], np.int64) - self._inside

    def count(self, ids: NDArray[np.int64], starts: NDArray[np.int64]) -> int:
        """See `Vocabulary.count_bytes`."""
        # -1 indexes the last entry, which counts nothing.
        return int(self._inside[ids].sum() + self._more_at_start[ids[starts]].sum())


@contextmanager
def guarded(message: str, error_type: type[UserError], remedy: str) -> Iterator[None]:
    """Turns whatever a tokenizer library raises into an error that begins with `message`."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        lines = str(error).strip().splitlines()
        raise error_type(f"{message} ({shown(lines[0] if lines else type(error).__name__, 200)})", remedy) from None


def package_missing(path: Path, package: str, extra: str) -> UserError:
    """What to say when a tokenizer cannot be read for want of its library."""
    return UserError(f"reading {shown(str(path), 300)} needs the package {package}", f"pip install 'mindmoe[{extra}]'")
