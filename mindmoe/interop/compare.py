"""What an exported folder computes, beside the weights it was made from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor

from mindmoe.interop import hf
from mindmoe.interop.source import Source
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.moe.config import MoeConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitsDifference:
    """How far apart two models are on the same tokens.

    Attributes:
        largest: largest absolute difference of a logit.
        relative_rms: RMS of the differences over the RMS of the logits.
        divergence: mean Kullback-Leibler divergence of the predicted distributions [nats per token].
        same_choice: fraction of places where both find the same token likeliest.
    """

    largest: float
    relative_rms: float
    divergence: float
    same_choice: float


def difference(logits: np.ndarray, other: np.ndarray) -> LogitsDifference:
    """Compares logits (tokens, vocabulary) of two models, the first being the reference."""
    first, second = (x.astype(np.float64).reshape(-1, x.shape[-1]) for x in (logits, other))
    logs = [x - x.max(-1, keepdims=True) for x in (first, second)]
    logs = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logs]
    return LogitsDifference(
        largest=float(np.abs(first - second).max()),
        relative_rms=float(np.sqrt(np.square(first - second).mean() / np.square(first).mean())),
        divergence=float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).mean()),
        same_choice=float((first.argmax(-1) == second.argmax(-1)).mean()),
    )


def exported_difference(
    source: Source, model: ModelConfig, moe: MoeConfig, folder: Path, tokens: np.ndarray
) -> LogitsDifference:
    """The weights of a source against the folder exported from them, both in fp32 on the reference ops.

    Args:
        source: all parameters of the model.
        model, moe: of the source.
        folder: a Hugging Face folder.
        tokens: (batch, sequence) int32.
    """
    original = hf.build(model, moe, source, max_length=tokens.shape[1])
    exported = hf.load(folder, max_length=tokens.shape[1])
    segments = Tensor(np.zeros(tokens.shape, np.int32))
    both = [net.logits(Tensor(tokens), segments).asnumpy() for net in (original, exported)]
    return difference(*both)
