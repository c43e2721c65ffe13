"""Rotary position embedding with YaRN, as tables that attention applies (dry arithmetic, numpy only)."""

import math

import numpy as np

from mindmoe.models.gpt_oss.config import ModelConfig


def rope_tables(model: ModelConfig, seq_length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin (S, head_dim / 2) in fp32; YaRN's attention factor is multiplied in.

    Source: arXiv 2309.00071 section 3; the frequency blend and the concentration 0.1 ln(factor) + 1 as in the
    released gpt-oss model.
    """
    dim, base = model.head_dim, model.rope_theta
    # float64 up to the tables: angles grow with the position, and fp32 would lose digits of them.
    inv_freq = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    concentration = 1.0
    yarn = model.rope_scaling
    if yarn is not None and yarn.factor > 1.0:
        concentration = 0.1 * math.log(yarn.factor) + 1.0

        def turns_to_dim(turns: float) -> float:
            """The (fractional) frequency index that makes `turns` rotations over the original context."""
            wavelength = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
            return dim * math.log(wavelength) / (2 * math.log(base))

        # Frequencies below index `low` turn often enough in the original context to stay as they are, those above
        # `high` are slowed down by the factor, and a ramp lies between (YaRN's NTK-by-parts).
        low, high = turns_to_dim(yarn.beta_fast), turns_to_dim(yarn.beta_slow)
        if yarn.truncate:
            low, high = math.floor(low), math.ceil(high)
        # dim - 1, not dim / 2 - 1, as in Hugging Face.
        low, high = max(low, 0), min(high, dim - 1)
        # A step instead of a ramp where both bounds meet.
        width = max(high - low, 1e-3)
        interpolated = np.clip((np.arange(dim // 2) - low) / width, 0.0, 1.0)
        inv_freq = inv_freq / yarn.factor * interpolated + inv_freq * (1.0 - interpolated)
    # (S, hd/2)
    angles = np.outer(np.arange(seq_length, dtype=np.float64), inv_freq)
    # On both tables, so on q and on k: scores are scaled by its square.
    return (np.cos(angles) * concentration).astype(np.float32), (np.sin(angles) * concentration).astype(np.float32)
