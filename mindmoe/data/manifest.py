"""dataset.json, the last file that `mindmoe data prepare` writes: its presence says that the folder is whole."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mindmoe.config.schema import INT32_MAX, NonNegativeInt64, PositiveInt32, Section
from mindmoe.data.files import write_json
from mindmoe.host import strict_json
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileMissing, shown

FILE_NAME = "dataset.json"
STAGING = ".partial"  # the folder everything is written in before it gets its name
VERSION = 1
_MAX_FILE = 1 << 24  # [bytes]


class SplitStats(Section):
    """What one split holds; `bytes` is its text in UTF-8, without the end-of-document tokens."""

    documents: NonNegativeInt64
    tokens: NonNegativeInt64
    bytes: NonNegativeInt64


class DatasetManifest(Section):
    """Everything about a token folder that its .idx files do not say.

    `tokenizer` and `tokenizer_digest` (SHA-256) name the tokenizer file beside it. `quarantined` counts the records
    that were refused, `lost` the places where a part of a file was lost. `settings` and `inputs` (a digest of names,
    sizes and change times) decide whether a later `prepare` would do the same work again.
    """

    version: PositiveInt32 = VERSION
    vocab_size: PositiveInt32
    eod_id: int = Field(ge=-1, le=INT32_MAX)
    dtype: str = Field(pattern=r"^(uint16|int32)$")
    tokenizer: str = Field(pattern=r"^tokenizer\.(model|json|tiktoken)$")
    tokenizer_digest: str = Field(pattern="^[0-9a-f]{64}$")
    splits: dict[Annotated[str, Field(pattern=r"^(train|valid)$")], SplitStats]
    quarantined: NonNegativeInt64
    lost: NonNegativeInt64 = 0
    empty: NonNegativeInt64
    sources: list[str]
    settings: dict[str, Any]
    inputs: str

    def save(self, folder: Path) -> None:
        """Writes the manifest into a folder, atomically and durably."""
        write_json(folder / FILE_NAME, self.model_dump())


def load_manifest(folder: Path) -> DatasetManifest | None:
    """The manifest of a token folder, None if it has none.

    Raises:
        UserError: the file is unreadable, damaged or of a newer version.
    """
    path = folder / FILE_NAME
    name = str(path)
    try:
        value = strict_json.read(path, _MAX_FILE)
    except FileMissing:
        return None
    if isinstance(value, dict) and isinstance(version := value.get("version"), int) and version > VERSION:
        raise UserError(f"{shown(name, 300)} has version {version}, this program knows {VERSION}", "update mindmoe")
    return strict_json.checked(DatasetManifest, value, name)
