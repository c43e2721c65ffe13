"""When checkpoints are written and how many are kept."""

from pydantic import Field, NonNegativeInt, PositiveInt

from mindmoe.schema import ByteSize, Section


class CheckpointConfig(Section):
    """`every` 0 saves only at the end and on a signal; `keep_last` newest complete steps survive.

    `min_free` is in bytes or carries a unit (`256MiB`).
    """

    every: NonNegativeInt = 100
    keep_last: PositiveInt = 2
    min_free: ByteSize = Field(256 * 2**20, ge=0, json_schema_extra={"type": ["integer", "string"]})
