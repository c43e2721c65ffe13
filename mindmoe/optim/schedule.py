"""Learning rate as a pure function of the step (dry)."""

import math

from mindmoe.optim.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of a step.

    Args:
        config: schedule and rates.
        step: step number, from 0.
        total_steps: steps of the whole run.

    Returns:
        Linear warm-up from lr / warmup_steps, then the schedule of OptimConfig down to min_lr_ratio * lr.
    """
    if step < config.warmup_steps:
        # step + 1, here and below: the first step is not lost on a rate of 0, and the last one has the final rate
        return config.lr * (step + 1) / config.warmup_steps
    floor = config.lr * config.min_lr_ratio
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        # at least one step of decay, and never inside the warm-up
        start = max(config.warmup_steps, total_steps - max(1, round(config.decay_fraction * total_steps)))
    else:
        start = config.warmup_steps
    progress = min(1.0, max(0.0, (step + 1 - start) / max(1, total_steps - start)))
    if config.schedule == "cosine":
        # half a cosine, from 0 to 1, in place of a line
        progress = 0.5 * (1.0 - math.cos(math.pi * progress))
    return config.lr + (floor - config.lr) * progress
