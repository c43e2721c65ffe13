"""The training loop: length, batch, precision, execution mode, evaluation."""

from typing import Literal

from pydantic import model_validator

from mindmoe.config.schema import NonNegativeInt32, PositiveInt32, Section


class TrainConfig(Section):
    """Batch sizes are in sequences. `global_batch_size` = micro_batch_size * dp * accumulation steps.

    `precision`: `fp32`, or `bf16` (GEMM operands in bf16 with fp32 accumulation; fp32 weights, norms, router
    scores, softmax and loss). `mode`: `graph` compiles the step of a process alone, `pynative` runs it op by op;
    several ranks, and steps that recompute, always run op by op.
    `kernels`: `auto` takes the C++ pack on a CPU with a compiler, else plain MindSpore ops (`reference`). `ascend`
    takes the Ascend C kernels that kernels/build_ascend.sh installs; they have not run on a card yet.
    """

    steps: PositiveInt32
    seq_length: PositiveInt32
    global_batch_size: PositiveInt32
    micro_batch_size: PositiveInt32
    precision: Literal["fp32", "bf16"] = "fp32"
    mode: Literal["graph", "pynative"] = "graph"
    eval_every: NonNegativeInt32 = 100
    eval_batches: PositiveInt32 = 8
    device: Literal["cpu", "ascend"] = "cpu"
    kernels: Literal["auto", "reference", "cpu", "ascend"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} must be a multiple of "
                f"micro_batch_size={self.micro_batch_size}: change one of them"
            )
        return self
