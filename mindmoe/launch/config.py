"""How worker processes are started with msrun."""

from pydantic import Field, NonNegativeInt

from mindmoe.schema import Seconds, Section


class LaunchConfig(Section):
    """`port` 0 takes a free one; `timeout` 0 sets no bound on the run; `threads` 0 divides the cores among ranks.

    Durations are in seconds or carry a unit (`30s`, `20min`); `cluster_timeout` bounds the start of all workers.
    """

    port: int = Field(0, ge=0, le=65535)
    timeout: Seconds = Field(0.0, ge=0.0, json_schema_extra={"type": ["number", "string"]})
    cluster_timeout: Seconds = Field(600.0, gt=0.0, json_schema_extra={"type": ["number", "string"]})
    threads: NonNegativeInt = 0
