"""Load balancing: losses computed from router statistics, and the bias update that needs no loss."""

import numpy as np
from mindspore import Tensor, ops

from mindmoe.moe.config import MoeConfig


def balance_loss(moe: MoeConfig, counts: Tensor, prob_sum: Tensor, num_tokens: float, counted: float) -> Tensor:
    """This rank's share of a load-balancing loss of all layers; shares add up over ranks.

    The loss E * sum_e f_e P_e, 1 when balanced, of all tokens together (arXiv 2101.03961 eq. 4) or of each sequence by
    itself (arXiv 2412.19437 eq. 17-20), then averaged over sequences.

    Args:
        moe: sizes.
        counts: (L, E) assignments of every rank's tokens, or (L, B, E) of the whole of each of this rank's sequences,
            no gradient.
        prob_sum: of the same shape, sums over this rank's tokens of the normalised scores.
        num_tokens: tokens of every rank in this micro-batch.
        counted: tokens that `counts` are of: `num_tokens`, or those of a sequence.

    Returns:
        Scalar, averaged over layers, without a coefficient.
    """
    # f_e of the papers. Counts are constants: P_e alone has a gradient.
    fraction = ops.stop_gradient(counts) / (counted * moe.num_experts_per_tok)
    # P_e is prob_sum / num_tokens with the tokens of all ranks, so the shares of ranks add up to the mean.
    return moe.num_experts * (fraction * prob_sum).sum() / (num_tokens * counts.shape[0])


def z_loss(z_sum: Tensor, num_tokens: float) -> Tensor:
    """This rank's share of the z-loss (arXiv 2202.08906 eq. 5), averaged over layers, without its coefficient.

    Args:
        z_sum: (L) this rank's sum over tokens of logsumexp(logits)^2.
        num_tokens: tokens of every rank in this micro-batch.
    """
    return z_sum.sum() / (num_tokens * z_sum.shape[0])


def updated_selection_bias(bias: np.ndarray, counts: np.ndarray, rate: float) -> np.ndarray:
    """The bias after one step: experts below the mean load become easier to choose (arXiv 2408.15664 algorithm 1).

    Args:
        bias: (E) fp32.
        counts: (E) assignments of the whole global batch.
        rate: step size.

    Returns:
        (E) fp32 with zero mean, so that the bias shifts load between experts and never the scale of the scores.
    """
    # The sign alone, however far off an expert is.
    stepped = bias + rate * np.sign(counts.mean() - counts)
    return (stepped - stepped.mean()).astype(np.float32)
