"""Runs one stage's list of actions: the only place where a pipeline schedule meets tensors.

A process alone is a pipeline of one stage. A stage keeps the input of each micro-batch that is in flight and computes
the forward pass of its piece again in the backward pass, so a stage's memory is that of one piece and one micro-batch,
whatever the schedule. The last piece, whose output nobody waits for, does both at once and computes nothing twice, but
for two cases: zb_h1 computes the forward pass in both halves of a backward pass, and where the balancing loss is of the
counts of the whole batch, every forward pass comes before any backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.ops.contract import OpSet
from mindmoe.parallel.collectives import primitives, recorded
from mindmoe.parallel.groups import Group
from mindmoe.pipeline.schedule import (
    Action,
    ScheduleName,
    Transfer,
    receive_before,
    steps_of,
    transfer_after,
)

Arguments = tuple[Tensor, ...]
Report = tuple[Tensor, ...]
Absorb = Callable[[int, tuple[Tensor, ...]], None]


class StageProgram:
    """What a stage does with one of its pieces.

    A backward pass takes the arguments of the forward pass, and behind them the gradient of the piece's output unless
    that is the loss.

    Args:
        objective: of the piece: `parts` makes its output and its share of the balancing losses, `step_counts` what
            its micro-batches tell each other.
        params: its trainable parameters.
        compiled_with: the ops, where passes are compiled whole, as those of a process alone may be.
    """

    def __init__(self, objective: Any, params: list[ms.Parameter], compiled_with: OpSet | None):
        self.first, self.last = objective.net.first, objective.net.last
        self.step_counts, self.counts_first = objective.step_counts, objective.over == "exact"
        weights = ms.ParameterTuple(params)

        # A scalar with the gradients that the piece needs: that of sum(y * dy) with dy held fixed is dy times the
        # Jacobian of y, and `balance` is this piece's own share of the loss.
        def share(*arguments: Tensor) -> tuple[Tensor, Report]:
            *given, dy = arguments
            (y, balance), report = objective.parts(*given)
            return (y * dy).sum() + balance, report

        total = objective if self.last else share
        both = ms.value_and_grad(total, None if self.first else 0, weights, has_aux=True)  # token ids have no gradient

        # one form for all pieces: gradient of the input (None for token ids), of the weights, report
        def gradients(*arguments: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...], Report]:
            (_, report), grads = both(*arguments)
            return (None, grads, report) if self.first else (*grads, report)

        self.forward: Callable[..., Any] = objective.parts
        self.gradients: Callable[..., Any] = gradients
        if compiled_with is not None:
            self.forward, self.gradients = ms.jit(objective.parts), _compiled(gradients, compiled_with)
        # The two halves of a backward pass that zb_h1 splits; each computes the forward pass again.
        self.input_gradient: Any = None if self.first else ms.value_and_grad(total, 0, None, has_aux=True)
        self.weight_gradients = ms.value_and_grad(total, None, weights, has_aux=True)


def _compiled(gradients: Callable[..., Any], kernels: OpSet) -> Callable[..., Any]:
    """`gradients` compiled; the host sleeps until all of them are there, where MindSpore's own wait would spin."""

    @ms.jit
    def announced(*arguments: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...], Report]:
        dx, grads, report = gradients(*arguments)
        # The mark depends on every gradient, so it runs last; as a part of the report it stays in the graph.
        return dx, grads, (kernels.arrive(ops.depend(report[0], grads)), *report[1:])

    def awaited(*arguments: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...], Report]:
        made = announced(*arguments)
        kernels.wait()
        return made

    return awaited


@dataclass
class _InFlight:
    """What a stage keeps of the micro-batches under way, and messages between their making and their use.

    `counts` are by chunk. What they tell a micro-batch stays with its arguments, so that computing its forward pass
    again neither counts it twice nor sees those that came after it.
    """

    counts: list[Any]
    arguments: dict[tuple[int, int], Arguments] = field(default_factory=dict)
    arrived: dict[Transfer | None, Tensor] = field(default_factory=dict)
    leaving: dict[Transfer | None, Tensor] = field(default_factory=dict)
    reports: dict[tuple[int, int], Report] = field(default_factory=dict)


class PipelineExecutor:
    """Executes the schedule of this rank's stage.

    Args:
        schedule: its name.
        programs: of this stage's pieces, by chunk.
        group: the pipeline ranks.
        message: shape of the hidden states that travel.
    """

    def __init__(self, schedule: ScheduleName, programs: list[StageProgram], group: Group, message: tuple[int, ...]):
        self.schedule, self.programs, self.group, self.message = schedule, programs, group, message
        self.stage, self.stages, self.chunks = group.index, group.size, len(programs)
        self.split_backward = group.size > 1 and schedule == "zb_h1"
        self.counts_first = programs[0].counts_first

    def run(self, micro_batches: list[Arguments], absorb: Absorb) -> dict[tuple[int, int], Report]:
        """One step.

        Args:
            micro_batches: of each what the objective of a whole network takes, input_ids first.
            absorb: takes a chunk's number and the gradients of its parameters, once for each micro-batch.

        Returns:
            What each chunk reported of each micro-batch, by (micro-batch, chunk).
        """
        flight = _InFlight([program.step_counts() for program in self.programs])
        steps = steps_of(self.schedule, self.stages, len(micro_batches), self.chunks, self.counts_first)
        for step in steps[self.stage]:
            if isinstance(step, Action):
                self._act(step, flight, micro_batches, absorb)
            elif step.source == self.stage:  # a transfer is listed on both of its stages
                self._send(step, flight.leaving.pop(step))
            else:
                flight.arrived[step] = self._message_from(step.source)
        return flight.reports

    def _act(self, action: Action, flight: _InFlight, micro_batches: list[Arguments], absorb: Absorb) -> None:
        """Computes; arguments as for `run`."""
        key, program = (action.microbatch, action.chunk), self.programs[action.chunk]
        # The last piece runs forward and backward at once, in B, and `exact` needs the counts of all micro-batches:
        # both are told in B. Else F tells, and B computes with what F was told.
        counts, told_late = flight.counts[action.chunk], program.last or self.counts_first
        before = receive_before(action, self.stage, self.stages, self.chunks)
        after = transfer_after(action, self.stage, self.stages, self.chunks)
        if action.kind == "F":
            ids, *rest = micro_batches[action.microbatch]
            flight.arguments[key] = (ids if program.first else flight.arrived.pop(before), *rest)
            if not told_late:
                flight.arguments[key] += counts.known()
            # the last piece leaves its forward pass to B
            if self.counts_first or not program.last:
                (y, _), flight.reports[key] = program.forward(*flight.arguments[key])
                counts.add(flight.reports[key])
                if after is not None:
                    flight.leaving[after] = y
        elif action.kind == "B":
            if told_late:
                flight.arguments[key] += counts.known()
            # the gradient of the piece's output goes last among the arguments
            if not program.last:
                flight.arguments[key] += (flight.arrived.pop(before),)
            if not self.split_backward:
                dx, grads, flight.reports[key] = program.gradients(*flight.arguments.pop(key))
                absorb(action.chunk, grads)
            elif after is not None:
                # W still needs the arguments, so they stay; the first piece has no input gradient and leaves all to W
                (_, flight.reports[key]), dx = program.input_gradient(*flight.arguments[key])
            # the others, and all under `exact`, were counted in F
            if program.last and not self.counts_first:
                counts.add(flight.reports[key])
            if after is not None:
                flight.leaving[after] = dx
        else:
            # W, the last use of the arguments
            absorb(action.chunk, program.weight_gradients(*flight.arguments.pop(key))[1])

    def evaluate(self, micro_batch: Arguments) -> Report:
        """The forward pass of one micro-batch alone; what the last of this stage's pieces reports."""
        ids, *rest = micro_batch
        report: Report = ()
        for chunk, program in enumerate(self.programs):
            action = Action("F", 0, chunk)
            # a single micro-batch goes from piece to piece in their order: nobody waits in a circle
            source = receive_before(action, self.stage, self.stages, self.chunks)
            x = ids if source is None else self._message_from(source.source)
            (y, _), report = program.forward(x, *rest)
            after = transfer_after(action, self.stage, self.stages, self.chunks)
            if after is not None:
                self._send(after, y)
        return report

    def _send(self, transfer: Transfer, x: Tensor) -> None:
        to, num_bytes = transfer.target, float(x.size * x.itemsize)
        recorded(self.group, "send", num_bytes, primitives(self.group).send, ops.stop_gradient(x), to, peer=to)

    def _message_from(self, source: int) -> Tensor:
        return recorded(
            self.group, "receive", 0.0, primitives(self.group).receive, self.message, ms.float32, source, peer=source
        )
