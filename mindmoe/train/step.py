"""One optimizer step: micro-batches, gradient sum over ranks, clipping, update.

Three compiled calls: gradients of a micro-batch, reduction with the gradient norm, update. Loss and norm reach the
host before the update, so a step that is not finite never touches the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from mindmoe.data.loader import Batch
from mindmoe.model.decoder import CausalLM
from mindmoe.model.shapes import ParamSpec
from mindmoe.moe.balance import updated_selection_bias
from mindmoe.moe.config import MoeConfig
from mindmoe.ops.select import OpSet
from mindmoe.optim.adamw import AdamW, clip_scale
from mindmoe.parallel.collectives import build_all_reduce_many, host_sum
from mindmoe.parallel.groups import Group
from mindmoe.parallel.mesh import MeshAxis
from mindmoe.parallel.sharding import replica_axes
from mindmoe.position import during
from mindmoe.train.objective import Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step computed, equal on every rank.

    `routing` holds counts (L, E), entropy (L) and dropped (L), sums over the global batch, None in a dense model;
    `stop` says that some rank was asked to stop.
    """

    loss: float
    grad_norm: float
    stop: bool
    compute_seconds: float
    update_seconds: float
    aux_loss: float = 0.0
    z_loss: float = 0.0
    routing: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are numbers."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.grad_norm))


class TrainStep:
    """Runs steps on a model and its optimizer.

    Args:
        net: the model of this rank.
        optimizer: updates net's trainable parameters.
        specs: the table of parameters.
        moe: routing section, None for a dense model.
        groups: this rank's groups by axis.
        kernels: holds the norm.
        graph: compile each call, or run it op by op.
    """

    def __init__(
        self,
        net: CausalLM,
        optimizer: AdamW,
        specs: dict[str, ParamSpec],
        moe: MoeConfig | None,
        groups: dict[MeshAxis, Group],
        kernels: OpSet,
        graph: bool,
    ):
        self.optimizer, self.moe, self.groups = optimizer, moe, groups
        self.clip_norm = optimizer.config.clip_norm
        self.selection_biases = [param for param in net.get_parameters() if param.name.endswith("selection_bias")]
        params = list(optimizer.params)
        objective = Objective(net, moe, groups["dp_cp"])
        self._gradients = _compiled(ms.value_and_grad(objective, None, optimizer.params, has_aux=True), graph)
        self._add = _compiled(_sum_pairwise, graph)
        self._reduce = _compiled(
            _build_reduction([specs[param.name] for param in params], params, groups, kernels), graph
        )
        self._update = _compiled(optimizer.build_update(), graph)

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
        token_weight = Tensor(np.float32(1.0 / num_valid))
        micro_weight = Tensor(np.float32(1.0 / len(micro_batches)))
        reports: list[list[np.ndarray]] = []
        grads: tuple[Tensor, ...] = ()
        for batch in micro_batches:
            with during("gradients over dp_cp", self.groups["dp_cp"].ranks):
                (_, report), partial = self._gradients(*as_tensors(batch), token_weight, micro_weight)
                grads = self._add(*grads, *partial) if grads else partial
                reports.append([part.asnumpy() for part in report])
        with during("sum of gradients over dp_cp", self.groups["dp_cp"].ranks):
            *summed, squared = self._reduce(*grads)
            norm = float(np.sqrt(squared.asnumpy()))
        report = [np.sum(parts, axis=0) for parts in zip(*reports, strict=True)]
        flat = np.concatenate([part.reshape(-1) for part in report] + [np.array([stop], np.float32)])
        flat = host_sum(flat, self.groups["dp_cp"])
        result = _unpack(flat, report, num_valid, norm, perf_counter() - started)
        if not result.finite:
            return result
        updating = perf_counter()
        scale = Tensor(np.float32(clip_scale(norm, self.clip_norm)))
        with during("update"):
            self._update(Tensor(np.float32(lr)), scale, Tensor(np.float32(step + 1)), *summed).asnumpy()
        self._update_biases(result)
        return replace(result, update_seconds=perf_counter() - updating)

    def _update_biases(self, result: StepResult) -> None:
        """Moves the selection biases towards balance, from the counts of the global batch."""
        if not self.selection_biases:
            return
        assert self.moe is not None and result.routing is not None
        for bias, counts in zip(self.selection_biases, result.routing[0], strict=True):
            bias.set_data(Tensor(updated_selection_bias(bias.asnumpy(), counts, self.moe.balance.bias_rate)))


def as_tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four arrays of a batch on the device."""
    return Tensor(batch.input_ids), Tensor(batch.labels), Tensor(batch.loss_mask), Tensor(batch.segment_ids)


def _compiled(function: Callable[..., Any], graph: bool) -> Callable[..., Any]:
    return ms.jit(function) if graph else function


def _sum_pairwise(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The first half plus the second half, element by element."""
    half = len(tensors) // 2
    summed: tuple[Tensor, ...] = ()
    for i in range(half):
        summed = (*summed, tensors[i] + tensors[half + i])
    return summed


def _build_reduction(
    specs: list[ParamSpec], params: list[Parameter], groups: dict[MeshAxis, Group], kernels: OpSet
) -> Callable[..., tuple[Tensor, ...]]:
    """Returns reduce(*grads) -> (*summed grads, squared norm of the whole gradient)."""
    dense = tuple(i for i, spec in enumerate(specs) if replica_axes(spec) == "dp_cp")
    expert = tuple(i for i, spec in enumerate(specs) if replica_axes(spec) == "edp")
    sum_dense = build_all_reduce_many([params[i].shape for i in dense], groups["dp_cp"])
    sum_expert = build_all_reduce_many([params[i].shape for i in expert], groups["edp"])
    place = {i: at for at, i in enumerate((*dense, *expert))}
    order = tuple(place[i] for i in range(len(specs)))
    square_sum = kernels.square_sum

    def reduce(*grads: Tensor) -> tuple[Tensor, ...]:
        summed = sum_dense(*[grads[i] for i in dense])
        if expert:
            first = ops.depend(grads[expert[0]], summed)
            summed = (*summed, *sum_expert(first, *[grads[i] for i in expert[1:]]))
        ordered: tuple[Tensor, ...] = ()
        for at in order:
            ordered = (*ordered, summed[at])
        return (*ordered, square_sum(ordered))

    return reduce


def _unpack(flat: np.ndarray, parts: list[np.ndarray], num_valid: float, norm: float, seconds: float) -> StepResult:
    """The reduced vector taken apart again; its last element counts the ranks that were asked to stop."""
    bounds = np.cumsum([part.size for part in parts])
    values = [piece.reshape(part.shape) for piece, part in zip(np.split(flat, bounds)[:-1], parts, strict=True)]
    dense = StepResult(
        loss=float(values[0][0]) / num_valid,
        grad_norm=norm,
        stop=bool(flat[-1] > 0),
        compute_seconds=seconds,
        update_seconds=0.0,
    )
    if len(values) == 1:
        return dense
    _, aux, z, counts, entropy, dropped = values
    return replace(dense, aux_loss=float(aux[0]), z_loss=float(z[0]), routing=(counts, entropy, dropped))
