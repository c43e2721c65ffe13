"""How worker processes are started with msrun."""

from pydantic import NonNegativeInt

from mindmoe.schema import Seconds, Section


class LaunchConfig(Section):
    """`port` 0 takes a free one; `timeout` 0 sets no bound on the run; `threads` 0 divides the cores among ranks."""

    port: NonNegativeInt = 0
    timeout: Seconds = 0.0
    cluster_timeout: Seconds = 600.0
    threads: NonNegativeInt = 0
