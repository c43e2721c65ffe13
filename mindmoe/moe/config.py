"""Routing: how experts are selected, how load is balanced, how tokens travel. Three independent choices."""

from typing import Literal

from pydantic import Field, model_validator

from mindmoe.config.schema import Coefficient, NonNegativeInt32, PositiveInt32, Section
from mindmoe.moe.router.topk import TopK
from mindmoe.moe.router.types import AnyRouter

AuxOver = Literal["micro", "running", "exact"]


class BalanceConfig(Section):
    """Load balancing; every term may be combined with every router, 0 switches a term off.

    `aux_coef`: Switch load-balancing loss (arXiv 2101.03961 eq. 4) of the tokens of all data ranks together, averaged
    over the micro-batches of a step. `aux_over` says of which tokens each expert's share of the load is: those of
    the micro-batch (`micro`), of the micro-batches of this step up to it (`running`, Megatron's global_aux_loss), or of
    the whole global batch (`exact`, which costs a forward pass more); with one micro-batch a step they are the same.
    The default is the loss of the papers and of Hugging Face, which existing coefficients were chosen for; the share
    of a wider batch balances less strictly, to the benefit of specialised experts (arXiv 2501.11873).
    `seq_aux_coef`: the same loss over each sequence by itself (arXiv 2412.19437 eq. 17-20); a sequence is a row of the
    batch, with all documents that are packed into it.
    `z_coef`: router z-loss (arXiv 2202.08906 eq. 5).
    `bias_rate`: step of the aux-loss-free selection bias (arXiv 2408.15664).
    """

    aux_coef: Coefficient = 0.0
    aux_over: AuxOver = "micro"
    seq_aux_coef: Coefficient = 0.0
    z_coef: Coefficient = 0.0
    bias_rate: Coefficient = 0.0


class DispatchConfig(Section):
    """Which assignments are computed: all (`dropless`), or at most capacity_factor * T * K / E an expert (`capacity`).

    The capacity holds in each chunk of `capacity_chunk` consecutive tokens of a sequence; 0 means the whole sequence.
    """

    kind: Literal["dropless", "capacity"] = "dropless"
    capacity_factor: float = Field(1.25, ge=1e-3, le=1e4)
    capacity_chunk: NonNegativeInt32 = 0


class MoeConfig(Section):
    """The mixture-of-experts FFN of every layer."""

    num_experts: int = Field(gt=0, le=65_535)  # records of routing are uint16
    num_experts_per_tok: PositiveInt32
    num_shared_experts: int = Field(0, ge=0, le=65_535)
    # A section's class follows its `type`, and may come from another package (router/types.py).
    router: AnyRouter = TopK()
    balance: BalanceConfig = BalanceConfig(aux_coef=0.001)
    dispatch: DispatchConfig = DispatchConfig()

    @model_validator(mode="after")
    def _check(self) -> "MoeConfig":
        problems = []
        if self.num_experts_per_tok > self.num_experts:
            problems.append(
                f"num_experts_per_tok={self.num_experts_per_tok} must be at most num_experts={self.num_experts}: "
                "lower num_experts_per_tok"
            )
        problems += self.router.problems(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self
