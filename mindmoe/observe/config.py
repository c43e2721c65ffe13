"""What is shown and recorded."""

from mindmoe.config.schema import NonNegativeInt32, PositiveInt32, Section


class ObserveConfig(Section):
    """`log_every` steps a line goes to the console, metrics.jsonl and TensorBoard.

    Every `routing_every` steps the chosen experts of a micro-batch are kept for `mindmoe report --routing` and
    `mindmoe ckpt place`, L * T * K * 2 bytes before compression; 0 keeps none.
    """

    log_every: PositiveInt32 = 1
    tensorboard: bool = True
    routing_every: NonNegativeInt32 = 0
