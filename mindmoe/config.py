"""RunConfig: one run, composed of each package's section, with the checks that span sections."""

from pydantic import Field, NonNegativeInt

from mindmoe.checkpoint.config import CheckpointConfig
from mindmoe.data.config import DataConfig
from mindmoe.launch.config import LaunchConfig
from mindmoe.model.config import ModelConfig
from mindmoe.moe.config import MoeConfig
from mindmoe.observe.config import ObserveConfig
from mindmoe.optim.config import OptimConfig
from mindmoe.parallel.config import ParallelConfig
from mindmoe.schema import Section
from mindmoe.train.config import TrainConfig


class RunConfig(Section):
    """Everything that defines a run; saved resolved in the run folder, it alone reproduces the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output_dir: str = "runs"
    seed: NonNegativeInt = 0
    model: ModelConfig
    moe: MoeConfig | None = None
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig
    optim: OptimConfig = OptimConfig()
    data: DataConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    observe: ObserveConfig = ObserveConfig()
    launch: LaunchConfig = LaunchConfig()
