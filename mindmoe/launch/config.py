"""How worker processes are started with msrun."""

from pydantic import Field, NonNegativeInt

from mindmoe.schema import Seconds, Section


class LaunchConfig(Section):
    """`port` 0 takes a free one; `timeout` 0 sets no bound on the run; `threads` 0 divides the cores among ranks.

    Durations are in seconds or carry a unit (`30s`, `20min`); `cluster_timeout` bounds the start of all workers. When
    no rank enters or leaves a phase of its step for `hang_timeout`, the run hangs and is ended; a phase that a rank
    enters for the first time may take `compile_timeout`, because it compiles. `hang_timeout` 0 watches for no hang.
    """

    port: int = Field(0, ge=0, le=65535)
    timeout: Seconds = Field(0.0, ge=0.0, json_schema_extra={"type": ["number", "string"]})
    cluster_timeout: Seconds = Field(600.0, gt=0.0, json_schema_extra={"type": ["number", "string"]})
    hang_timeout: Seconds = Field(600.0, ge=0.0, json_schema_extra={"type": ["number", "string"]})
    compile_timeout: Seconds = Field(3600.0, gt=0.0, json_schema_extra={"type": ["number", "string"]})
    threads: NonNegativeInt = 0
