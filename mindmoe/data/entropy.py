"""Empirical entropies of token rows: what a model that knows only frequencies could reach."""

import numpy as np
from numpy.typing import NDArray


def _entropy_sum(counts: NDArray[np.int64]) -> float:
    """sum c * log(c) of positive counts [nats]."""
    values = counts.astype(np.float64)
    return float(np.sum(values * np.log(values)))


def unigram_bigram(rows: NDArray[np.integer]) -> tuple[float, float]:
    """The entropies of the next token in these rows, the comparison line for a loss on the same tokens.

    Counted over the predictions that a causal model makes: row[t + 1] given row[t], within each row. Both are
    taken from the counts of the very same tokens, so on few tokens the bigram figure is far below what any
    bigram model would reach on new text.

    Args:
        rows: (n, L) token ids, L >= 2: input tokens with the last label behind them, (n, seq_length + 1).

    Returns:
        Unigram entropy H(row[t+1]) and conditional bigram entropy H(row[t+1] | row[t]) [nats per token].

    Raises:
        ValueError: there is no pair of tokens.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] < 2:
        raise ValueError(f"rows of shape {rows.shape} hold no pair of neighbouring tokens")
    first = rows[:, :-1].astype(np.int64).ravel()
    second = rows[:, 1:].astype(np.int64).ravel()
    total = first.size
    _, first_counts = np.unique(first, return_counts=True)
    _, second_counts = np.unique(second, return_counts=True)
    # A pair as one number: first * V + second.
    _, pair_counts = np.unique(first * (int(rows.max()) + 1) + second, return_counts=True)
    # H = log N - 1/N sum c log c; and H(second | first) = H(pair) - H(first), where the log N cancel.
    unigram = np.log(total) - _entropy_sum(second_counts) / total
    bigram = (_entropy_sum(first_counts) - _entropy_sum(pair_counts)) / total
    return float(unigram), float(bigram)
