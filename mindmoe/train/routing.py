"""The state of a router in training: what a step tells is summed up, and the router says what becomes of its state."""

from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Parameter, Tensor, ops

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.router.base import RouterSpecs, RouterStep

Sums = dict[str, np.ndarray]


class RouterStates:
    """State that routers read and no gradient reaches.

    Args:
        moe: with the router.
        specs: what it adds to the model.
        layers: layer numbers of each part of the network on this rank.
        params: all parameters of this rank by name.
    """

    def __init__(self, moe: MoeConfig, specs: RouterSpecs, layers: list[range], params: Mapping[str, Parameter]):
        self.moe, self.specs, self.parts = moe, specs, layers
        own = [weight.name for weight in specs.layer if not weight.trainable]
        self.layers = {
            layer: {name: params[f"model.layers.{layer}.mlp.router.{name}"] for name in own}
            for part in layers
            for layer in part
        }
        self.shared = {weight.name: params[f"model.{weight.name}"] for weight in specs.shared if not weight.trainable}

    def collect(
        self,
        reports: Sequence[Sequence[Sums]],
        tapped: Sequence[Mapping[str, np.ndarray]],
        num_layers: int,
    ) -> tuple[Sums, Sums]:
        """What this rank's micro-batches told, by name: signals of all layers of the network (L, ..), and common sums.

        Args:
            reports: of each part, for each micro-batch.
            tapped: sums that came out of the backward pass, by name, for each micro-batch.
            num_layers: of the whole network.
        """
        signals = {name: np.zeros((num_layers, width)) for name, width in self.specs.signals.items()}
        sums = {name: np.zeros(shape) for name, shape in self.specs.sums.items()}
        # Sums from the backward pass come through the sink, those of the forward pass stand in the reports.
        for told in tapped:
            for name, value in told.items():
                sums[name] += value
        for layers, of_part in zip(self.parts, reports, strict=True):
            for report in of_part:
                for name, total in signals.items():
                    # Layers of other stages stay zero until the sum over all ranks.
                    total[layers.start : layers.stop] += report[name]
                for name in sums.keys() & report.keys():
                    sums[name] += report[name]
        return signals, sums

    def update(self, counts: np.ndarray, signals: Sums, sums: Sums, done: int) -> None:
        """Moves all state of this rank; every rank that holds a layer computes the same.

        Args:
            counts: (L, E) assignments of the global batch.
            signals: of `collect`, over all ranks.
            sums: of `collect`, over all ranks.
            done: steps completed, this one included.
        """
        for layer, state in self.layers.items():
            of_layer = {name: value[layer] for name, value in signals.items()}
            self._move(state, RouterStep(counts=counts[layer], signals=of_layer, sums=sums, done=done))
        # Shared state belongs to no layer, so there are no counts and signals of one.
        self._move(self.shared, RouterStep(counts=np.zeros(0), signals={}, sums=sums, done=done))

    def _move(self, state: Mapping[str, Parameter], step: RouterStep) -> None:
        if not state:
            return
        values = {name: param.asnumpy() for name, param in state.items()}
        for name, value in self.moe.router.after_step(self.moe, values, step).items():
            ops.assign(state[name], Tensor(value))  # in place: a compiled step would not see a new tensor
