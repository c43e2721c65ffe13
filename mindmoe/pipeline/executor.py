"""Runs one stage's list of actions: the only place where a pipeline schedule meets tensors.

A stage keeps the input of each micro-batch that is in flight and computes the forward pass of its piece again in the
backward pass, so a stage's memory is that of one piece and one micro-batch, whatever the schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindmoe.parallel.collectives import primitives, recorded
from mindmoe.parallel.groups import Group
from mindmoe.pipeline.schedule import (
    Action,
    Schedule,
    Transfer,
    count_chunks,
    receive_before,
    stage_steps,
    transfer_after,
)

Arguments = tuple[Tensor, ...]
Absorb = Callable[[int, tuple[Tensor, ...]], None]


class StageProgram:
    """What a stage does with one of its pieces.

    Args:
        objective: of the piece: `parts` makes its output and its share of the balancing losses.
        params: its trainable parameters.
    """

    def __init__(self, objective: Any, params: list[ms.Parameter]):
        self.first, self.last = objective.net.first, objective.net.last
        weights = ms.ParameterTuple(params)
        differentiated = _Differentiated(objective)
        both = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        inputs_only = ops.GradOperation(get_all=True, sens_param=True)
        weights_only = ops.GradOperation(get_by_list=True, sens_param=True)

        def forward(*arguments: Tensor) -> Any:
            return objective.parts(*arguments)

        def backward(dy: Tensor, dbalance: Tensor, *arguments: Tensor) -> Any:
            inputs, grads = both(differentiated, weights)(*arguments, (dy, dbalance))
            return inputs[0], grads

        def backward_input(dy: Tensor, dbalance: Tensor, *arguments: Tensor) -> Any:
            return inputs_only(differentiated)(*arguments, (dy, dbalance))[0]

        def backward_weights(dy: Tensor, dbalance: Tensor, *arguments: Tensor) -> Any:
            return weights_only(differentiated, weights)(*arguments, (dy, dbalance))

        self.forward, self.backward = forward, backward
        self.backward_input, self.backward_weights = backward_input, backward_weights


class _Differentiated(nn.Cell):
    """The part of an objective that has a gradient."""

    def __init__(self, objective: Any):
        super().__init__(auto_prefix=False)
        self.objective = objective

    def construct(
        self,
        x: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        segment_ids: Tensor,
        tokens: Tensor,
        token_weight: Tensor,
        micro_weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Output and balancing losses; only hidden states have a gradient among the arguments."""
        if self.objective.net.first:
            x = ops.stop_gradient(x)
        rest = ops.stop_gradient((labels, loss_mask, segment_ids, tokens, token_weight, micro_weight))
        return self.objective.parts(x, *rest)[0]


@dataclass
class _InFlight:
    """What a stage keeps of the micro-batches under way, and messages between their making and their use."""

    arguments: dict[tuple[int, int], Arguments] = field(default_factory=dict)
    gradients: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    arrived: dict[Transfer | None, Tensor] = field(default_factory=dict)
    leaving: dict[Transfer | None, Tensor] = field(default_factory=dict)


class PipelineExecutor:
    """Executes the schedule of this rank's stage.

    Args:
        schedule: of all stages, which exchange their messages in one order.
        programs: of this stage's pieces, by chunk.
        group: the pipeline ranks.
        message: shape of the hidden states that travel.
    """

    def __init__(self, schedule: Schedule, programs: list[StageProgram], group: Group, message: tuple[int, ...]):
        self.schedule, self.programs, self.group, self.message = schedule, programs, group, message
        self.stage, self.stages, self.chunks = group.index, len(schedule), count_chunks(schedule)
        self.steps = stage_steps(schedule)[self.stage]
        self.split_backward = any(action.kind == "W" for action in schedule[self.stage])
        self.on = primitives(group)
        self.one = Tensor(np.float32(1.0))

    def run(
        self, micro_batches: list[Arguments], scalars: Arguments, absorb: Absorb
    ) -> dict[tuple[int, int], tuple[Tensor, ...]]:
        """One step.

        Args:
            micro_batches: input_ids, labels, loss_mask, segment_ids and tokens of each.
            scalars: token_weight and micro_weight.
            absorb: takes a chunk's number and the gradients of its parameters, once for each micro-batch.

        Returns:
            What each chunk reported of each micro-batch, by (micro-batch, chunk).
        """
        flight = _InFlight()
        reports: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        for step in self.steps:
            if isinstance(step, Transfer):
                if step.source == self.stage:
                    self._send(step, flight.leaving.pop(step))
                else:
                    flight.arrived[step] = self._message_from(step.source)
            else:
                self._act(step, flight, micro_batches, scalars, absorb, reports)
        return reports

    def _act(
        self,
        action: Action,
        flight: _InFlight,
        micro_batches: list[Arguments],
        scalars: Arguments,
        absorb: Absorb,
        reports: dict[tuple[int, int], tuple[Tensor, ...]],
    ) -> None:
        """Computes; arguments as for `run`, whose reports it extends."""
        key, program = (action.microbatch, action.chunk), self.programs[action.chunk]
        before = receive_before(action, self.stage, self.stages, self.chunks)
        after = transfer_after(action, self.stage, self.stages, self.chunks)
        if action.kind == "F":
            ids, *rest = micro_batches[action.microbatch]
            x = ids if program.first else flight.arrived.pop(before)
            flight.arguments[key] = (x, *rest, *scalars)
            (y, _), reports[key] = program.forward(*flight.arguments[key])
            if after is not None:
                flight.leaving[after] = y
        elif action.kind == "B":
            flight.gradients[key] = self.one if program.last else flight.arrived.pop(before)
            if self.split_backward:
                if after is not None:
                    flight.leaving[after] = program.backward_input(*self._given(flight, key))
            else:
                dx, grads = program.backward(*self._given(flight, key))
                if after is not None:
                    flight.leaving[after] = dx
                absorb(action.chunk, grads)
                self._forget(flight, key)
        else:
            absorb(action.chunk, program.backward_weights(*self._given(flight, key)))
            self._forget(flight, key)

    def evaluate(self, micro_batch: Arguments, scalars: Arguments) -> tuple[Tensor, ...]:
        """The forward pass of one micro-batch alone; what the last of this stage's pieces reports."""
        ids, *rest = micro_batch
        report: tuple[Tensor, ...] = ()
        for chunk, program in enumerate(self.programs):
            action = Action("F", 0, chunk)
            source = receive_before(action, self.stage, self.stages, self.chunks)
            x = ids if source is None else self._message_from(source.source)
            (y, _), report = program.forward(x, *rest, *scalars)
            after = transfer_after(action, self.stage, self.stages, self.chunks)
            if after is not None:
                self._send(after, y)
        return report

    def _given(self, flight: _InFlight, key: tuple[int, int]) -> Arguments:
        return (flight.gradients[key], self.one, *flight.arguments[key])

    def _forget(self, flight: _InFlight, key: tuple[int, int]) -> None:
        del flight.arguments[key], flight.gradients[key]

    def _send(self, transfer: Transfer, x: Tensor) -> None:
        to, num_bytes = transfer.target, float(x.size * x.itemsize)
        recorded(self.group, "send", num_bytes, self.on.send, ops.stop_gradient(x), to, peer=to)

    def _message_from(self, source: int) -> Tensor:
        return recorded(self.group, "receive", 0.0, self.on.receive, self.message, ms.float32, source, peer=source)
