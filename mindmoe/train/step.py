"""One optimizer step: micro-batches, gradient sum over ranks, clipping, update.

Loss and norm reach the host before the update, so a step that is not finite never touches the weights.
"""

from dataclasses import dataclass, field, replace
from time import perf_counter

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from mindmoe.data.loader import Batch
from mindmoe.host.position import during
from mindmoe.moe.balance import updated_selection_bias
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.statistics import RoutingSums
from mindmoe.ops.contract import OpSet
from mindmoe.optim.optimizer import Optimizer, clip_scale
from mindmoe.optim.owned import Owned
from mindmoe.optim.reduction import Reduction
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.groups import Groups
from mindmoe.pipeline.executor import PipelineExecutor
from mindmoe.train.objective import Objective, Report
from mindmoe.train.routing import RouterStates, Sums

Grads = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step computed, equal on every rank.

    `routing` is None in a dense model; `signals` and `sums` are what the router told of itself, by name, over the
    global batch (mindmoe/train/routing.py); `stop` says that some rank was asked to stop.
    """

    loss: float
    grad_norm: float
    stop: bool
    compute_seconds: float
    update_seconds: float
    aux_loss: float = 0.0
    seq_aux_loss: float = 0.0
    z_loss: float = 0.0
    routing: RoutingSums | None = None
    signals: Sums = field(default_factory=dict)
    sums: Sums = field(default_factory=dict)

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
        sink: whose gradient is a sum that the router asked for, None without one.
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
        states: what the router keeps between steps, None in a dense model.
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
        states: RouterStates | None,
    ):
        self.parts, self.optimizer, self.moe, self.num_layers = parts, optimizer, moe, num_layers
        self.groups, self.zero, self.executor, self.positions = groups, zero, executor, positions
        self.bias_rate = moe.balance.bias_rate if moe is not None else 0.0
        self.clip_norm = optimizer.config.clip_norm
        self.square_sum = kernels.square_sum
        self.states, self.reads = states, moe.router.token_reads if moe is not None else ()
        self.chosen: list[np.ndarray] = []  # where recorded: experts (layers, T, K) of each part's first micro-batch
        self.tapped: list[Sums] = []  # what the backward pass of each micro-batch of this step told the router
        # Reductions are never compiled: collectives must start in the order of the program, the same on every rank.
        self._reduce = [part.reduction.build() for part in parts]
        update = optimizer.build_update()
        self._update = ms.jit(update) if compile_update else update

    def count_valid(self, micro_batches: list[Batch]) -> float:
        """Labels of the global batch that count [tokens], of which `micro_batches` are this rank's part."""
        # Summed over dp alone: the ranks of one data replica read the same rows.
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
        self, step: int, grads: Grads, reports: list[list[Sums]], num_valid: float, lr: float, *, stop: bool
    ) -> StepResult:
        """Sums up what `gradients` made and updates the weights unless the result is not finite."""
        result = self._result(reports, grads, num_valid, stop)
        # Every rank has the same sums, so all of them return here or none does, and no collective is left waiting.
        if not result.finite:
            return result
        with during("update", number=step):
            # Tensors, not Python numbers: those are constants of a compiled update, which would be compiled anew for
            # each value.
            scale = Tensor(np.float32(clip_scale(result.grad_norm, self.clip_norm)))
            self._update(Tensor(np.float32(lr)), scale, Tensor(np.float32(step + 1)), *grads).asnumpy()
            # Under ZeRO 1 and 2 the update moved this rank's master parts only; the model sees them from here on.
            for part in self.parts:
                part.owned.publish()
            self._update_biases(result)
            if self.states is not None and result.routing is not None:
                self.states.update(result.routing.counts, result.signals, result.sums, step + 1)
        return result

    def gradients(self, micro_batches: list[Batch], num_valid: float) -> tuple[Grads, list[list[Sums]]]:
        """The gradient of the batch for what this rank updates, and what each part reported of each micro-batch."""
        # Cross-entropy is a mean over tokens, of which micro-batches hold different numbers; balancing losses are means
        # over micro-batches. Both factors are inside the objective, so that gradients of micro-batches need only be
        # added.
        scalars = (Tensor(np.float32(1.0 / num_valid)), Tensor(np.float32(1.0 / len(micro_batches))))
        sums: list[Grads] = [() for _ in self.parts]
        self.tapped = []

        def absorb(chunk: int, grads: Grads) -> None:
            if self.parts[chunk].sink is not None:
                # The sink stands last in `differentiated`; its gradient is a sum for the router, and no weight moves by
                # it.
                *rest, tapped = grads
                grads = tuple(rest)
                self.tapped.append({self.parts[chunk].objective.net.sink_sum: tapped.asnumpy()})
            # Under ZeRO 2 a rank keeps the sum of its own parts alone, at the price of a reduction for each
            # micro-batch.
            if self.zero == 2:
                grads = self._reduce[chunk](*grads)
            if sums[chunk]:
                held, sums[chunk] = list(sums[chunk][::-1]), ()  # each is freed once it is added
                with during("adding up gradients"):
                    sums[chunk] = tuple(held.pop() + grad for grad in grads)
            else:
                sums[chunk] = tuple(grads)

        with during("copying data"):
            batches = [self.arguments(batch, *scalars) for batch in micro_batches]
        with during("gradients", self.groups["stage"].ranks):
            made = self.executor.run(batches, absorb)
            reports = [
                [_named(part, made[i, chunk]) for i in range(len(batches))] for chunk, part in enumerate(self.parts)
            ]
        self.chosen = [of_part[0]["ids"] for of_part in reports] if self.parts[0].records_routing else []
        # Once a step: the sum over ranks of the sums over micro-batches.
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
        report = self.executor.evaluate(self.arguments(batch, one, one))
        # All ranks of a tensor group report the cross-entropy of the same tokens, which counts once.
        return float(report[0].asnumpy()[0]) if self.groups["tp"].index == 0 else 0.0

    def arguments(self, batch: Batch, token_weight: Tensor, micro_weight: Tensor) -> tuple[Tensor, ...]:
        """What an objective takes: the tokens of this context rank, the weights, and what the router reads."""
        arrays = [batch.input_ids, batch.labels, batch.loss_mask, batch.segment_ids]
        arrays += [batch.read(name) for name in self.reads]
        if self.positions is not None:
            # (B, S) -> (B, S / cp), in the order in which this context rank holds its tokens.
            arrays = [array[:, self.positions] for array in arrays]
        tensors = [Tensor(np.ascontiguousarray(array)) for array in arrays]
        return (*tensors[:4], token_weight, micro_weight, *tensors[4:])

    def _result(self, reports: list[list[Sums]], grads: Grads, num_valid: float, stop: bool) -> StepResult:
        """What all ranks report, summed in one exchange."""
        with during("sum of gradients", self.groups["world"].ranks):  # where the host waits for the reductions
            squared = self._square(grads).asnumpy()
        experts = self.moe.num_experts if self.moe else 0
        sums = np.zeros(6, np.float64)  # cross-entropy, aux, z, squared norm, ranks asked to stop, aux of sequences
        counts = np.zeros((self.num_layers, experts))
        per_layer = np.zeros((2, self.num_layers))  # entropy, dropped
        for part, of_part in zip(self.parts, reports, strict=True):
            for report in of_part:
                sums[0] += report["cross_entropy"][0] if self.groups["tp"].index == 0 else 0.0
                if self.moe:
                    # Rows of layers that other stages hold stay zero here; the sum over all ranks fills them in.
                    rows = slice(part.layers.start, part.layers.stop)
                    # Reports are sums over layers. Unlike the cross-entropy, they count on every rank of a tensor
                    # group, because each routes tokens of its own.
                    sums[1:3] += report["aux"][0] / self.num_layers, report["z"][0] / self.num_layers
                    sums[5] += report["seq_aux"][0] / self.num_layers if "seq_aux" in report else 0.0
                    counts[rows] += report["counts"]
                    per_layer[:, rows] += report["entropy"], report["dropped"]
        # Each gradient is counted on one rank, so squares add up to the squared norm of the whole gradient.
        sums[3] = squared
        sums[4] = stop
        signals, common = (
            ({}, {}) if self.states is None else self.states.collect(reports, self.tapped, self.num_layers)
        )
        # One exchange for all figures: laid flat, summed, and cut apart again at the same places.
        arrays = [sums, counts, per_layer, *signals.values(), *common.values()]
        flat = host_sum(np.concatenate([array.reshape(-1) for array in arrays]), self.groups["world"])
        pieces = np.split(flat, np.cumsum([array.size for array in arrays])[:-1])
        _, counts, (entropy, dropped), *told = (
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
            routing=RoutingSums(counts, entropy, dropped) if self.moe else None,
            # `told` holds the signals first and the common sums behind them, as `arrays` does.
            signals=dict(zip(signals, told, strict=False)),
            sums=dict(zip(common, told[len(signals) :], strict=True)),
        )

    def _square(self, grads: Grads) -> Tensor:
        """The squared norm of the gradients that this rank counts, so that over all ranks each counts once."""
        counted, start = [], 0
        for part in self.parts:
            # `grads` are those of all parts in a row, `place` counts within a part.
            counted += [grads[start + place] for place in part.owned.counted]
            start += len(part.owned.tensors)
        return self.square_sum(tuple(counted)) if counted else Tensor(np.float32(0.0))

    def _update_biases(self, result: StepResult) -> None:
        """Moves the selection biases towards balance, from the counts of the global batch."""
        for part in self.parts:
            for layer, bias in part.biases.items():
                assert self.moe is not None and result.routing is not None
                counts = result.routing.counts[layer]
                moved = updated_selection_bias(bias.asnumpy(), counts, self.bias_rate)
                ops.assign(bias, Tensor(moved))  # in place: a compiled step would not see a new tensor


def _named(part: Part, report: Report) -> dict[str, np.ndarray]:
    """A report as arrays by name: here what was computed becomes figures."""
    return {name: told.asnumpy() for name, told in zip(part.objective.names, report, strict=True)}
