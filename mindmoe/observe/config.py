"""What is shown and recorded."""

from pydantic import PositiveInt

from mindmoe.schema import Section


class ObserveConfig(Section):
    """`log_every` steps a line goes to the console, metrics.jsonl and TensorBoard."""

    log_every: PositiveInt = 1
    tensorboard: bool = True
