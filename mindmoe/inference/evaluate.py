"""`mindmoe eval RUN`: a finished or running run on held-out text."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mindmoe.inference.opened import open_run
from mindmoe.train.preflight import open_held_out


def evaluate(run: Path, data: str | None) -> int:
    """`mindmoe eval RUN [--data PATH]`: the newest checkpoint of a run on held-out text."""
    opened = open_run(run)
    config = opened.config
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"valid": data})})
    batches = open_held_out(config)
    from mindmoe.train.evaluate import Evaluator

    trainer = opened.trainer
    record = Evaluator(trainer.step, config, batches, trainer.mesh, trainer.at).run(opened.step)
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
