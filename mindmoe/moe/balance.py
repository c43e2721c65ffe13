"""Load balancing: losses computed from router statistics, and the bias update that needs no loss."""

import numpy as np
from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig


def balance_loss(
    moe: MoeConfig, counts: Tensor, prob_sum: Tensor, z_sum: Tensor, num_tokens: float
) -> tuple[Tensor, Tensor]:
    """This rank's share of the auxiliary losses of all layers; shares add up over ranks.

    Args:
        moe: coefficients and sizes.
        counts: (L, E) assignments of every rank's tokens, no gradient.
        prob_sum: (L, E) this rank's sum over tokens of the normalised scores.
        z_sum: (L) this rank's sum over tokens of logsumexp(logits)^2.
        num_tokens: tokens of every rank in this micro-batch.

    Returns:
        Load-balancing loss (arXiv 2101.03961 eq. 4: E * sum_e f_e P_e, 1 when balanced) and z-loss (arXiv 2202.08906
        eq. 5), each averaged over layers, without their coefficients.
    """
    fraction = ops.stop_gradient(counts) / (num_tokens * moe.num_experts_per_tok)
    aux = moe.num_experts * (fraction * prob_sum).sum() / (num_tokens * counts.shape[0])
    return aux, z_sum.sum() / (num_tokens * counts.shape[0])


def updated_selection_bias(bias: np.ndarray, counts: np.ndarray, rate: float) -> np.ndarray:
    """The bias after one step: experts below the mean load become easier to choose (arXiv 2408.15664 algorithm 1).

    Args:
        bias: (E) fp32.
        counts: (E) assignments of the whole global batch.
        rate: step size.

    Returns:
        (E) fp32 with zero mean, so that the bias shifts load between experts and never the scale of the scores.
    """
    stepped = bias + rate * np.sign(counts.mean() - counts)
    return (stepped - stepped.mean()).astype(np.float32)
