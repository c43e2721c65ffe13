"""How worker processes are started with msrun."""

from typing import Annotated

from pydantic import Field, StringConstraints

from mindmoe.config.schema import PositiveInt32, Seconds, Section, Threads, Timeout, TimeoutOrZero

_WORD = r"^[A-Za-z0-9._:/@+-]{1,200}$"


class SlurmConfig(Section):
    """What sites set differently: `gres` such as `npu:8`, `time` such as `7-00:00:00`, `options` taken as they are."""

    partition: str | None = Field(None, pattern=_WORD)
    account: str | None = Field(None, pattern=_WORD)
    time: str | None = Field(None, pattern=r"^[0-9:-]{1,20}$")
    gres: str | None = Field(None, pattern=_WORD)
    options: list[Annotated[str, StringConstraints(pattern=r"^--[A-Za-z0-9][ -~]{0,200}$")]] = []


class KubernetesConfig(Section):
    """The pods: `claim` is the volume that all nodes share, mounted at `mount`, and must hold the run's folders.

    `device` is the resource that the device plugin offers; `cpus` and `memory` are those of a node.
    """

    image: str = Field(pattern=_WORD)
    claim: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")
    mount: str = Field(pattern=r"^/[A-Za-z0-9._/-]*$")
    namespace: str = Field("default", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    queue: str = Field("default", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    device: str = Field("huawei.com/Ascend910", pattern=_WORD)
    cpus: PositiveInt32 = 64
    memory: str = Field("256Gi", pattern=r"^[1-9][0-9]{0,7}(Mi|Gi|Ti)$")


class LaunchConfig(Section):
    """`port` 0 takes a free one; `timeout` 0 sets no bound on the run; `threads` 0 divides the cores among ranks.

    Durations are in seconds or carry a unit (`30s`, `20min`); `cluster_timeout` bounds the start of all workers. When
    no rank enters or leaves a phase of its step for `hang_timeout`, the run hangs and is ended; a phase that a rank
    enters for the first time may take `compile_timeout`, because it compiles. `hang_timeout` 0 watches for no hang.

    A run that fails is started again from its newest valid checkpoint, `backoff` later and twice as late each time,
    until `restarts` starts in a row have brought no newer checkpoint. Between nodes, one that gives no sign of life for
    `node_timeout` is lost, and `interface` is the network interface that nodes are reached at; null leaves the choice
    to the system. `hardware` is what `parallel: auto` plans for: a name that `mindmoe plan --hardware` knows, or a file
    of the same form as those under `plan/hardware`.
    """

    port: int = Field(0, ge=0, le=65535)
    timeout: TimeoutOrZero = 0.0
    cluster_timeout: Timeout = 600.0
    hang_timeout: TimeoutOrZero = 600.0
    compile_timeout: Timeout = 3600.0
    restarts: int = Field(0, ge=0, le=1000)
    backoff: Seconds = 10.0
    node_timeout: Timeout = 60.0
    interface: str | None = Field(None, pattern=r"^[A-Za-z0-9@._=:-]{1,64}$")
    threads: Threads = 0
    hardware: str = Field("ascend-910b2", min_length=1)
    slurm: SlurmConfig = SlurmConfig()
    kubernetes: KubernetesConfig | None = None
