"""One optimizer step: micro-batches, gradient sum over ranks, clipping, update.

Loss and norm reach the host before the update, so a step that is not finite never touches the weights.
"""

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from mindmoe.data.loader import Batch
from mindmoe.moe.balance import updated_selection_bias
from mindmoe.moe.config import MoeConfig
from mindmoe.ops.contract import OpSet
from mindmoe.optim.optimizer import Optimizer, clip_scale
from mindmoe.optim.owned import Owned
from mindmoe.optim.reduction import Reduction
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.groups import Groups
from mindmoe.pipeline.executor import PipelineExecutor
from mindmoe.position import during
from mindmoe.train.objective import Objective
from mindmoe.train.routing import build_controllers

Grads = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step computed, equal on every rank.

    `routing` holds counts (L, E), entropy (L) and dropped (L), sums over the global batch, None in a dense model;
    `signals` is what the controllers of dynamic routing read (mindmoe/train/routing.py);
    `stop` says that some rank was asked to stop.
    """

    loss: float
    grad_norm: float
    stop: bool
    compute_seconds: float
    update_seconds: float
    aux_loss: float = 0.0
    seq_aux_loss: float = 0.0
    z_loss: float = 0.0
    routing: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    signals: tuple[np.ndarray, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are numbers."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.grad_norm))


@dataclass
class Part:
    """A piece of the network on this rank with what its gradients go through.

    Attributes:
        layers: numbers of its layers.
        objective: of the piece.
        params: its trainable parameters.
        owned: those that this rank updates.
        reduction: of their gradients.
        biases: selection biases by layer number.
        sink: whose gradient is the sums of a gradient tap, None without one.
    """

    layers: range
    objective: Objective
    params: list[Parameter]
    owned: Owned
    reduction: Reduction
    biases: dict[int, Parameter] = field(default_factory=dict)
    sink: Parameter | None = None

    @property
    def records_routing(self) -> bool:
        """Whether reports end in the chosen experts."""
        return self.objective.record_routing

    @property
    def differentiated(self) -> list[Parameter]:
        """The trainable parameters, and the sink behind them."""
        return self.params if self.sink is None else [*self.params, self.sink]


class TrainStep:
    """Runs steps on the pieces of this rank and their optimizer.

    Args:
        parts: by chunk; one where the network is whole.
        optimizer: updates what the parts own.
        moe: routing section, None for a dense model.
        num_layers: of the whole network.
        groups: this rank's groups.
        kernels: holds the norm.
        compile_update: whether the update is compiled. Not where memory is what counts: a compiled function keeps its
            last arguments, here all gradients.
        zero: stage.
        executor: runs this rank's stage of the pipeline; a process alone is one of one stage.
        positions: which tokens of a sequence this rank holds, None for all.
    """

    def __init__(
        self,
        parts: list[Part],
        optimizer: Optimizer,
        *,
        moe: MoeConfig | None,
        num_layers: int,
        groups: Groups,
        kernels: OpSet,
        compile_update: bool,
        zero: int,
        executor: PipelineExecutor,
        positions: np.ndarray | None,
    ):
        self.parts, self.optimizer, self.moe, self.num_layers = parts, optimizer, moe, num_layers
        self.groups, self.zero, self.executor, self.positions = groups, zero, executor, positions
        self.bias_rate = moe.balance.bias_rate if moe is not None else 0.0
        self.clip_norm = optimizer.config.clip_norm
        self.square_sum = kernels.square_sum
        self.controllers = build_controllers(parts, moe)
        self.chosen: list[np.ndarray] = []  # where recorded: experts (layers, T, K) of each part's first micro-batch
        self.tapped: list[np.ndarray] = []  # sums of the gradient tap, of each micro-batch of this step
        self._reduce = [part.reduction.build() for part in parts]
        update = optimizer.build_update()
        self._update = ms.jit(update) if compile_update else update

    def count_valid(self, micro_batches: list[Batch]) -> float:
        """Labels of the global batch that count [tokens], of which `micro_batches` are this rank's part."""
        own = np.array([sum(float(batch.loss_mask.sum()) for batch in micro_batches)])
        return max(1.0, float(host_sum(own, self.groups["dp"])[0]))

    def run(self, step: int, micro_batches: list[Batch], num_valid: float, lr: float, stop: bool) -> StepResult:
        """Runs step number `step` (from 0); the weights change unless the result is not finite.

        Args:
            step: step number.
            micro_batches: this rank's micro-batches.
            num_valid: counted tokens of the global batch [tokens].
            lr: learning rate.
            stop: whether this rank was asked to stop.
        """
        started = perf_counter()
        grads, reports = self.gradients(micro_batches, num_valid)
        seconds = perf_counter() - started
        result = self.finish(step, grads, reports, num_valid, lr, stop=stop)
        return replace(result, compute_seconds=seconds, update_seconds=perf_counter() - started - seconds)

    def finish(
        self, step: int, grads: Grads, reports: list[list[tuple[Any, ...]]], num_valid: float, lr: float, *, stop: bool
    ) -> StepResult:
        """Sums up what `gradients` made and updates the weights unless the result is not finite."""
        result = self._result(reports, grads, num_valid, stop)
        if not result.finite:
            return result
        with during("update", number=step):
            scale = Tensor(np.float32(clip_scale(result.grad_norm, self.clip_norm)))
            self._update(Tensor(np.float32(lr)), scale, Tensor(np.float32(step + 1)), *grads).asnumpy()
            for part in self.parts:
                part.owned.publish()
            self._update_biases(result)
            if self.controllers is not None:
                self.controllers.update(result, step + 1)
        return result

    def gradients(self, micro_batches: list[Batch], num_valid: float) -> tuple[Grads, list[list[tuple[Any, ...]]]]:
        """The gradient of the batch for what this rank updates, and what each part reported of each micro-batch."""
        scalars = (Tensor(np.float32(1.0 / num_valid)), Tensor(np.float32(1.0 / len(micro_batches))))
        sums: list[Grads] = [() for _ in self.parts]
        self.tapped = []

        def absorb(chunk: int, grads: Grads) -> None:
            if self.parts[chunk].sink is not None:
                *rest, tapped = grads
                grads = tuple(rest)
                self.tapped.append(tapped.asnumpy())
            if self.zero == 2:
                grads = self._reduce[chunk](*grads)
            if sums[chunk]:
                held, sums[chunk] = list(sums[chunk][::-1]), ()  # each is freed once it is added
                with during("adding up gradients"):
                    sums[chunk] = tuple(held.pop() + grad for grad in grads)
            else:
                sums[chunk] = tuple(grads)

        with during("copying data"):
            batches = [self.as_tensors(batch) for batch in micro_batches]
        with during("gradients", self.groups["stage"].ranks):
            made = self.executor.run(batches, scalars, absorb)
            reports = [
                [tuple(value.asnumpy() for value in made[i, chunk]) for i in range(len(batches))]
                for chunk in range(len(self.parts))
            ]
        self.chosen = [of_part[0][-1] for of_part in reports] if self.parts[0].records_routing else []
        if self.zero != 2:
            sums = [reduce(*grads) for reduce, grads in zip(self._reduce, sums, strict=True)]
        return tuple(grad for grads in sums for grad in grads), reports

    def set_aux_coef(self, value: float) -> None:
        """Changes the weight of the load-balancing loss; the objectives must have been built to read it anew."""
        for part in self.parts:
            ops.assign(part.objective.aux_coef, Tensor(np.float32(value)))

    def evaluate(self, batch: Batch) -> float:
        """This rank's share of the summed cross-entropy of a micro-batch; the shares of all ranks add up to it."""
        one = Tensor(np.float32(1.0))
        report = self.executor.evaluate(self.as_tensors(batch), (one, one))
        return float(report[0].asnumpy()[0]) if self.groups["tp"].index == 0 else 0.0

    def as_tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """The arrays of a batch on the device, the tokens of this context rank only.

        They are input_ids, labels, loss_mask and segment_ids, each (B, S), and id, domain and place of each token and
        the token before it in its document, -1 for none (B, S, 4).
        """
        shape = batch.input_ids.shape
        domains, places = np.broadcast_to(batch.domains[:, None], shape), np.broadcast_to(np.arange(shape[1]), shape)
        before = np.full(shape, -1)
        inside = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
        before[:, 1:][inside] = batch.input_ids[:, :-1][inside]
        tokens = np.stack((batch.input_ids, domains, places, before), -1).astype(np.int32)
        arrays: tuple[np.ndarray, ...] = (batch.input_ids, batch.labels, batch.loss_mask, batch.segment_ids, tokens)
        if self.positions is not None:
            arrays = tuple(np.ascontiguousarray(array[:, self.positions]) for array in arrays)
        return tuple(Tensor(array) for array in arrays)

    def _result(self, reports: list[list[tuple[Any, ...]]], grads: Grads, num_valid: float, stop: bool) -> StepResult:
        """What all ranks report, summed in one exchange."""
        with during("sum of gradients", self.groups["world"].ranks):  # where the host waits for the reductions
            squared = self._square(grads).asnumpy()
        experts = self.moe.num_experts if self.moe else 0
        sums = np.zeros(6, np.float64)  # cross-entropy, aux, z, squared norm, ranks asked to stop, aux of sequences
        counts = np.zeros((self.num_layers, experts))
        per_layer = np.zeros((2, self.num_layers))  # entropy, dropped
        for part, of_part in zip(self.parts, reports, strict=True):
            for report in of_part:
                values = report[:6]
                sums[0] += values[0][0] if self.groups["tp"].index == 0 else 0.0
                if self.moe:
                    rows = slice(part.layers.start, part.layers.stop)
                    sums[1:3] += values[1][0] / self.num_layers, values[2][0] / self.num_layers
                    sums[5] += values[1][1:].sum() / self.num_layers
                    counts[rows] += values[3]
                    per_layer[:, rows] += values[4], values[5]
        sums[3] = squared
        sums[4] = stop
        signals = [] if self.controllers is None else self.controllers.collect(reports, self.tapped, self.num_layers)
        arrays = [sums, counts, per_layer, *signals]
        flat = host_sum(np.concatenate([array.reshape(-1) for array in arrays]), self.groups["world"])
        pieces = np.split(flat, np.cumsum([array.size for array in arrays])[:-1])
        _, counts, (entropy, dropped), *signals = (
            piece.reshape(array.shape) for piece, array in zip(pieces, arrays, strict=True)
        )
        return StepResult(
            loss=float(flat[0]) / num_valid,
            aux_loss=float(flat[1]),
            seq_aux_loss=float(flat[5]),
            z_loss=float(flat[2]),
            grad_norm=float(np.sqrt(flat[3])),
            stop=bool(flat[4] > 0),
            compute_seconds=0.0,
            update_seconds=0.0,
            routing=(counts, entropy, dropped) if self.moe else None,
            signals=tuple(signals),
        )

    def _square(self, grads: Grads) -> Tensor:
        """The squared norm of the gradients that this rank counts, so that over all ranks each counts once."""
        counted, start = [], 0
        for part in self.parts:
            counted += [grads[start + place] for place in part.owned.counted]
            start += len(part.owned.tensors)
        return self.square_sum(tuple(counted)) if counted else Tensor(np.float32(0.0))

    def _update_biases(self, result: StepResult) -> None:
        """Moves the selection biases towards balance, from the counts of the global batch."""
        for part in self.parts:
            for layer, bias in part.biases.items():
                assert self.moe is not None and result.routing is not None
                counts = result.routing[0][layer]
                moved = updated_selection_bias(bias.asnumpy(), counts, self.bias_rate)
                ops.assign(bias, Tensor(moved))  # in place: a compiled step would not see a new tensor
