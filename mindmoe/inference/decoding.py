"""Next-token logits of growing sequences: each token passes through the model once, its keys and values are kept."""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.models.decoder import CausalLM


class Generation:
    """A batch of sequences of equal length, from empty on.

    A prompt goes through in pieces of `chunk` tokens, the last one filled up, and later tokens one at a time: two
    compiled graphs serve any prompt.

    Args:
        net: the model.
        capacity: most tokens of a sequence, at most the positions the model's ops are bound to.
        batch: sequences.
        chunk: tokens of a piece.
        graph: compile, or run op by op.
    """

    def __init__(self, net: CausalLM, capacity: int, *, batch: int = 1, chunk: int = 128, graph: bool = True):
        self.capacity, self.chunk = capacity, min(chunk, capacity)
        self.length, self.before = 0, np.full((batch, 1), -1, np.int32)
        # Parameters of a fixed size, written in place: a compiled graph would not see new tensors.
        cache = net.cache(batch, capacity)

        def extend(input_ids: Tensor, start: Tensor, last: Tensor, before: Tensor) -> Tensor:
            return net.extend(input_ids, start, last, before, cache)

        self._extend = ms.jit(extend) if graph else extend

    def restart(self) -> None:
        """Forgets everything."""
        # The cache keeps old values; positions from `length` on are never read.
        self.length, self.before = 0, np.full_like(self.before, -1)

    def extend(self, tokens: np.ndarray) -> np.ndarray:
        """Appends tokens (B, N) and returns the logits (B, V) of what follows.

        N is at least 1, and `length` + N at most `capacity`.
        """
        assert 0 < tokens.shape[1] <= self.capacity - self.length, (tokens.shape, self.length, self.capacity)
        at, logits = 0, None
        while at < tokens.shape[1]:
            left = tokens.shape[1] - at
            # Only two shapes occur, chunk and 1, each compiled once. A chunk that would reach beyond the capacity goes
            # token by token.
            size = self.chunk if left > 1 and self.length + self.chunk <= self.capacity else 1
            piece = np.zeros((tokens.shape[0], size), np.int32)
            count = min(left, size)
            piece[:, :count] = tokens[:, at : at + count]
            # Tensors, because Python numbers would be constants and compile a graph for each position.
            start, last = (Tensor(np.array([value], np.int32)) for value in (self.length, count - 1))
            logits = self._extend(Tensor(piece), start, last, Tensor(self.before))
            self.before = np.ascontiguousarray(piece[:, count - 1 : count])
            # Not by `size`: what filled the piece up is overwritten by what comes next.
            self.length += count
            at += count
        assert logits is not None
        return logits.asnumpy()
