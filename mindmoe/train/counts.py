"""What the micro-batches of a step tell each other for the load-balancing loss (docs/balancing.md)."""

from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Tensor

from mindmoe.moe.config import AuxOver


class StepCounts:
    """How often a piece's experts were chosen in this step; made anew for each step.

    Args:
        over: the definition of the loss.
        names: of what a report holds, in its order.
        size: layers of the piece and experts, (L, E).
        all_reduce: sum over the ranks of the stage.
    """

    def __init__(
        self, over: AuxOver, names: Sequence[str], size: tuple[int, int], all_reduce: Callable[[Tensor], Tensor]
    ):
        self.over, self.names, self.all_reduce = over, names, all_reduce
        self.counts, self.passes = Tensor(np.zeros(size, np.float32)), 0
        self.of_batch: tuple[Tensor, ...] = ()

    def add(self, report: tuple[Tensor, ...]) -> None:
        """Takes what the forward pass of a micro-batch reported, each micro-batch once, in their order."""
        if self.over != "micro":
            self.counts, self.passes = self.counts + report[self.names.index("counts")], self.passes + 1

    def known(self) -> tuple[Tensor, ...]:
        """What the objective of the next micro-batch is told: counts (L, E), and a weight.

        `running`: this rank's counts of the micro-batches so far, and 1 / number of those that the share will be of,
        the next one included. `exact`: the counts of all ranks, and 1 / number of micro-batches; all must have been
        added, and the sum over the ranks is taken at the first call. `micro`: nothing.
        """
        if self.over == "micro":
            return ()
        if self.over == "running":
            return self.counts, Tensor(np.float32(1.0 / (self.passes + 1)))
        # By now every forward pass has been added; all ranks of the stage come here at the same point of the schedule.
        if not self.of_batch:
            self.of_batch = self.all_reduce(self.counts), Tensor(np.float32(1.0 / self.passes))
        return self.of_batch
