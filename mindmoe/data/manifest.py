"""dataset.json, the last file that `mindmoe data prepare` writes: its presence says that the folder is whole."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from mindmoe.data.files import write_json
from mindmoe.errors import UserError
from mindmoe.schema import Section

FILE_NAME = "dataset.json"
STAGING = ".partial"  # the folder everything is written in before it gets its name
VERSION = 1


class SplitStats(Section):
    """What one split holds; `bytes` is its text in UTF-8, without the end-of-document tokens."""

    documents: NonNegativeInt
    tokens: NonNegativeInt
    bytes: NonNegativeInt


class Manifest(Section):
    """Everything about a token folder that its .idx files do not say.

    `tokenizer` and `tokenizer_digest` (SHA-256) name the tokenizer file beside it. `settings` and `inputs` (a
    digest of names, sizes and change times) decide whether a later `prepare` would do the same work again.
    """

    version: PositiveInt = VERSION
    vocab_size: PositiveInt
    eod_id: int = Field(ge=-1)
    dtype: str
    tokenizer: str
    tokenizer_digest: str
    splits: dict[str, SplitStats]
    quarantined: NonNegativeInt
    empty: NonNegativeInt
    sources: list[str]
    settings: dict[str, Any]
    inputs: str

    def save(self, folder: Path) -> None:
        """Writes the manifest into a folder, atomically and durably."""
        write_json(folder / FILE_NAME, self.model_dump())


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of a token folder, None if it has none.

    Raises:
        UserError: the file is damaged or of a newer version.
    """
    path = folder / FILE_NAME
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is unreadable ({error})", "delete the folder and prepare it again") from None
    if isinstance(value, dict) and isinstance(version := value.get("version"), int) and version > VERSION:
        raise UserError(f"{path} has version {version}, this program knows {VERSION}", "update mindmoe")
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise UserError(f"{path}: {field}: {first['msg']}", "delete the folder and prepare it again") from None
