"""Held-out loss of a model."""

import logging
import math
from functools import cached_property
from time import perf_counter, time
from typing import Any

import numpy as np

from mindmoe.config.run import RunConfig
from mindmoe.data.entropy import unigram_bigram
from mindmoe.data.loader import TokenBatches
from mindmoe.host.errors import UserError
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.mesh import Coordinates, Mesh
from mindmoe.train.step import TrainStep

log = logging.getLogger(__name__)


class Evaluator:
    """Evaluates on the first batches of the held-out set, the same ones every time.

    Args:
        step: evaluates a micro-batch on this rank.
        config: the run; eval_batches global batches are used, or as many as there are.
        batches: held-out batches.
        mesh: the rank grid.
        at: this rank's place.
    """

    def __init__(self, step: TrainStep, config: RunConfig, batches: TokenBatches, mesh: Mesh, at: Coordinates):
        self.step, self.batches, self.train = step, batches, config.train
        self.mesh, self.at = mesh, at
        # Whole global batches only, so that the tokens evaluated are the same under every layout.
        self.num_batches = min(config.train.eval_batches, batches.num_samples // config.train.global_batch_size)

    @cached_property
    def entropies(self) -> tuple[float, float]:
        """Unigram and bigram entropy of the very tokens that are evaluated [nats per token]."""
        size = self.train.global_batch_size
        batches = [self.batches.batch(index, 0, size) for index in range(self.num_batches)]
        # (B, S) and the last label -> (B, S + 1), the rows as the data set holds them
        rows = [np.concatenate([batch.input_ids, batch.labels[:, -1:]], axis=1) for batch in batches]
        return unigram_bigram(np.concatenate(rows))

    @cached_property
    def text_bytes(self) -> int | None:
        """The bytes of UTF-8 text of the very tokens that are evaluated, None where the tokenizer cannot be had."""
        try:
            return self.batches.text_bytes(self.num_batches)
        except UserError as error:
            log.warning("bits per byte are not known: %s", error)
            return None

    def run(self, done: int) -> dict[str, Any]:
        """The eval record of this moment; every rank must call it."""
        started = perf_counter()
        size, micro = self.train.global_batch_size, self.train.micro_batch_size
        sums = np.zeros(2, np.float64)
        for index in range(self.num_batches):
            # Data rank r takes every dp-th micro-batch, as in training.
            for start in range(self.at.dp * micro, size, self.mesh.dp * micro):
                batch = self.batches.batch(index, start, start + micro)
                sums += [self.step.evaluate(batch), float(batch.loss_mask.sum())]
        sums[1] *= self.mesh.dp / self.mesh.world  # every rank of a data replica counted the same rows
        total, count = host_sum(sums, self.step.groups["world"])
        loss = float(total / count)
        unigram, bigram = self.entropies
        return {
            "kind": "eval",
            "step": done,
            "time": time(),
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),  # exp overflows a double above 709
            "bits_per_byte": float(total) / math.log(2) / self.text_bytes if self.text_bytes else None,
            "tokens": round(float(count)),
            "seconds": perf_counter() - started,
            "unigram_entropy": unigram,
            "bigram_entropy": bigram,
        }
