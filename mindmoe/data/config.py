"""Where tokens come from, and how raw text becomes tokens."""

from typing import Any, Literal

from pydantic import Field, field_validator

from mindmoe.config.schema import ByteSize, Decay, NonNegativeInt64, PositiveInt32, Section, Seed, Threads


class SourceConfig(Section):
    """One token set: a folder written by `mindmoe data prepare`, or the prefix of a Megatron .bin/.idx pair."""

    path: str = Field(min_length=1)
    weight: float = Field(1.0, ge=1e-15, le=1e15)


def _or_paths(schema: dict[str, Any]) -> None:
    """Adds the short forms to the JSON Schema of `sources`."""
    path = {"type": "string", "minLength": 1}
    schema["anyOf"] = [
        path,
        {
            "type": schema.pop("type"),
            "minItems": schema.pop("minItems"),
            "items": {"anyOf": [path, schema.pop("items")]},
        },
    ]


class DataConfig(Section):
    """The training mixture and the held-out set.

    `sources` accepts a path, a list of paths, or a list of {path, weight}. `valid` and `tokenizer` default
    to those of the first source's folder. `document_attention: true` keeps attention inside documents.
    `on_change` says what happens where the files behind a source are not those that a checkpoint was trained on:
    `refuse` to continue it, or `accept` them and record that.
    """

    sources: list[SourceConfig] = Field(min_length=1, json_schema_extra=_or_paths)
    valid: str | None = Field(None, min_length=1)
    tokenizer: str | None = Field(None, min_length=1)
    document_attention: bool = False
    on_change: Literal["refuse", "accept"] = "refuse"
    seed: Seed = 0

    @field_validator("sources", mode="before")
    @classmethod
    def _accept_paths(cls, value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, (str, dict, SourceConfig)) for item in items):
            raise ValueError("must be a path, a list of paths, or a list of {path, weight}: write data/my-tokens")
        return [{"path": item} if isinstance(item, str) else item for item in items]


class PrepareConfig(Section):
    """`mindmoe data prepare`: raw text to a token folder. What each key means stands in cli/data.py."""

    tokenizer: str = "train"
    vocab_size: PositiveInt32 = 4096
    tokenizer_bytes: ByteSize = Field(16 * 2**20, gt=0)
    valid_fraction: Decay = 0.02
    text_key: str = "text"
    workers: Threads = 0
    max_bad: NonNegativeInt64 = 100
    max_documents: NonNegativeInt64 = 0
    append_eod: bool = True
    seed: Seed = 0
    format: Literal["auto", "txt", "jsonl", "parquet"] = "auto"
