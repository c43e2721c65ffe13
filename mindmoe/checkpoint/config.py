"""When checkpoints are written, where, and how many are kept."""

from typing import Literal

from pydantic import Field

from mindmoe.config.schema import ByteSize, NonNegativeInt32, PositiveInt32, Section, Timeout


class DurableConfig(Section):
    """A second, safer home of checkpoints: a folder on another disk, or `s3://bucket/prefix`.

    Saved steps that are a multiple of `every` are copied to `path`/<name of the run> in the background and verified
    there; `keep_last` of them stay. `endpoint` is the URL of an S3-compatible service that is not Amazon's.
    """

    path: str = Field(min_length=1)
    every: PositiveInt32 = 1000
    keep_last: PositiveInt32 = 2
    endpoint: str | None = None


class CheckpointConfig(Section):
    """A step survives if any of the `keep_` rules wants it, or a file PINNED lies in its folder.

    `every` 0 saves only at the end and on a signal. `keep_every` keeps multiples of a number of steps for good,
    `keep_best` the ones with the lowest held-out loss measured at them; 0 switches either off. `background` saves
    while training goes on. `on_failure` says whether a save that failed stops the run. `timeout` is the longest that
    ranks wait for each other in a save. `min_free` is in bytes or carries a unit (`256MiB`), `timeout` in seconds or
    with one (`30min`).
    """

    every: NonNegativeInt32 = 100
    keep_last: PositiveInt32 = 2
    keep_every: NonNegativeInt32 = 0
    keep_best: NonNegativeInt32 = 0
    background: bool = True
    on_failure: Literal["stop", "continue"] = "stop"
    timeout: Timeout = 1800.0
    min_free: ByteSize = 256 * 2**20
    durable: DurableConfig | None = None
