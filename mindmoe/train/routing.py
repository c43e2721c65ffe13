"""Moves the state of dynamic routing after a step: thresholds of every layer, and tables of gradient norms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, ops

from mindmoe.moe.config import DmrConfig, MoeConfig
from mindmoe.moe.control import ALPHA_SHIFT, LOGIT_SHIFT, Signals, updated_control, updated_table

_FIRST, _COUNT = 6, 4  # place and number of the signals in a report, see mindmoe/train/objective.py


class Controllers:
    """The state that routers read and that no gradient reaches.

    Args:
        moe: targets and rates.
        layers: layer numbers of each part of the network on this rank.
        measured: whether the report of each part holds the sums of the tables.
        controls: of each of those layers, by number.
        tables: of gradient norms, in the order of their sums.
    """

    def __init__(
        self,
        moe: MoeConfig,
        layers: list[range],
        measured: list[bool],
        controls: dict[int, Parameter],
        tables: list[Parameter],
    ):
        self.moe, self.layers, self.measured, self.controls, self.tables = moe, layers, measured, controls, tables

    def collect(
        self, reports: Sequence[Sequence[Sequence[Any]]], tapped: Sequence[np.ndarray], num_layers: int
    ) -> list[np.ndarray]:
        """Sums of the signals over this rank's micro-batches, for the whole network: (L, ..) each, the tables' (2, V).

        Args:
            reports: of each part, for each micro-batch.
            tapped: sums of the gradient tap, for each micro-batch.
            num_layers: of the whole network.
        """
        widths = [value.shape[1] for value in reports[0][0][_FIRST : _FIRST + _COUNT]]
        sums = [np.zeros((num_layers, width)) for width in widths]
        if self.tables:
            sums.append(np.zeros((2, sum(table.shape[0] for table in self.tables))))
        for total in tapped:
            sums[_COUNT] += total
        for layers, measured, of_part in zip(self.layers, self.measured, reports, strict=True):
            rows = slice(layers.start, layers.stop)
            for report in of_part:
                for total, value in zip(sums[:_COUNT], report[_FIRST : _FIRST + _COUNT], strict=True):
                    total[rows] += np.asarray(value)
                if measured:
                    sums[_COUNT] += np.asarray(report[_FIRST + _COUNT])
        return sums

    def shift(self, alpha: float | None = None, logits: float | None = None) -> None:
        """Sets what online tuning adds to the weight of difficulty, or to the factor of the logits."""
        for control in self.controls.values():
            values = control.asnumpy().copy()
            for place, value in ((ALPHA_SHIFT, alpha), (LOGIT_SHIFT, logits)):
                if value is not None:
                    values[place] = value
            ops.assign(control, Tensor(values))

    def update(self, result: Any, done: int) -> None:
        """Takes the sums of a global batch; every rank that holds a layer computes the same.

        Args:
            result: of the step: its routing holds counts (L, E) first, its signals are those of `collect`.
            done: steps completed, this one included.
        """
        margins, difficulty, tokens, scores = result.signals[:_COUNT]
        for layer, control in self.controls.items():
            of_layer = Signals(
                margins=margins[layer],
                difficulty=difficulty[layer],
                kept=float(result.routing[0][layer].sum()),
                scores=scores[layer],
            )
            moved = updated_control(control.asnumpy(), of_layer, self.moe, float(tokens[layer, 0]), done)
            ops.assign(control, Tensor(moved))  # in place: a compiled step would not see a new tensor
        assert isinstance(self.moe.router, DmrConfig)
        start, decay = 0, self.moe.router.features.decay
        for table in self.tables:
            counts, sums = result.signals[_COUNT][:, start : start + table.shape[0]]
            ops.assign(table, Tensor(updated_table(table.asnumpy(), counts, sums, decay)))
            start += table.shape[0]


def build_controllers(parts: Sequence[Any], moe: MoeConfig | None) -> Controllers | None:
    """The controllers of this rank's parts of the network, None where routing is not dynamic."""
    if moe is None or not isinstance(moe.router, DmrConfig):
        return None
    params = {tensor.spec.name: tensor.param for part in parts for tensor in part.objective.net.tensors}
    controls = {int(name.split(".")[2]): param for name, param in params.items() if name.endswith(".router.control")}
    measured = [part.objective.sums_table for part in parts]
    tables = [param for name, param in params.items() if name.endswith("_table")]
    return Controllers(moe, [part.layers for part in parts], measured, controls, tables)
