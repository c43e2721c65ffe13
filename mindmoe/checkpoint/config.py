"""When checkpoints are written and how many are kept."""

from pydantic import NonNegativeInt, PositiveInt

from mindmoe.schema import ByteSize, Section


class CheckpointConfig(Section):
    """`every` 0 saves only at the end and on a signal; `keep_last` newest complete steps survive."""

    every: NonNegativeInt = 100
    keep_last: PositiveInt = 2
    min_free: ByteSize = 256 * 2**20
