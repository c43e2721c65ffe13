"""Held-out loss of a model, during training and by itself."""

import math
from functools import cached_property
from pathlib import Path
from time import perf_counter, time
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.config import RunConfig
from mindmoe.data.entropy import unigram_bigram
from mindmoe.data.loader import TokenBatches
from mindmoe.model.decoder import CausalLM
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.groups import Group
from mindmoe.train.step import as_tensors


class Evaluator:
    """Evaluates on the first batches of the held-out set, the same ones every time.

    Args:
        net: the model.
        config: the run; eval_batches global batches are used, or as many as there are.
        batches: held-out batches.
        group: ranks that share the rows.
    """

    def __init__(self, net: CausalLM, config: RunConfig, batches: TokenBatches, group: Group):
        self.batches, self.group, self.train = batches, group, config.train
        self.num_batches = min(config.train.eval_batches, batches.num_samples // config.train.global_batch_size)

        def loss_sum(input_ids: Tensor, labels: Tensor, loss_mask: Tensor, segment_ids: Tensor) -> Tensor:
            return net(input_ids, labels, loss_mask, segment_ids)[0]

        self._loss_sum = ms.jit(loss_sum) if config.train.mode == "graph" else loss_sum

    @cached_property
    def entropies(self) -> tuple[float, float]:
        """Unigram and bigram entropy of the very tokens that are evaluated [nats per token]."""
        size = self.train.global_batch_size
        batches = [self.batches.batch(index, 0, size) for index in range(self.num_batches)]
        rows = [np.concatenate([batch.input_ids, batch.labels[:, -1:]], axis=1) for batch in batches]
        return unigram_bigram(np.concatenate(rows))

    def run(self, step: int) -> dict[str, Any]:
        """The eval record of this moment; every rank must call it."""
        started = perf_counter()
        size, micro = self.train.global_batch_size, self.train.micro_batch_size
        sums = np.zeros(2, np.float64)
        for index in range(self.num_batches):
            for start in range(self.group.index * micro, size, self.group.size * micro):
                batch = self.batches.batch(index, start, start + micro)
                sums += [float(self._loss_sum(*as_tensors(batch)).asnumpy()), float(batch.loss_mask.sum())]
        total, count = host_sum(sums, self.group)
        loss = float(total / count)
        unigram, bigram = self.entropies
        per_token = self.batches.bytes_per_token
        return {
            "kind": "eval",
            "step": step,
            "time": time(),
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": loss / math.log(2) / per_token if per_token else None,
            "tokens": int(count),
            "seconds": perf_counter() - started,
            "unigram_entropy": unigram,
            "bigram_entropy": bigram,
        }


def main(run: Path, data: str | None) -> int:
    """`mindmoe eval RUN [--data PATH]`: the newest checkpoint of a run on held-out text."""
    from rich.console import Console
    from rich.table import Table

    from mindmoe.train.inference import open_run
    from mindmoe.train.preflight import open_held_out

    opened = open_run(run)
    config = opened.config
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"valid": data})})
    batches = open_held_out(config)
    record = Evaluator(opened.net, config, batches, opened.group).run(opened.step)
    table = Table(title=f"{run} at step {opened.step} on {data or 'its held-out set'}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, key, unit in (
        ("loss", "loss", "nats/token"),
        ("perplexity", "perplexity", ""),
        ("bits per byte", "bits_per_byte", ""),
        ("unigram entropy", "unigram_entropy", "nats/token"),
        ("bigram entropy", "bigram_entropy", "nats/token"),
        ("tokens", "tokens", ""),
    ):
        value = record[key]
        shown = "unknown" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        table.add_row(name, f"{shown} {unit}".strip())
    Console().print(table)
    return 0
