"""Pipeline schedules as data: what each stage does, in which order. Pure lists; nothing is executed here.

A schedule is one list of actions per stage. The executor runs a list, the planner simulates it, and tests prove
that it cannot deadlock. Sends and receives are not in the lists: they follow from the actions (`stage_steps`).

A stage holds `chunks` pieces of the network. Piece `chunk` of stage `s` is number `chunk * stages + s` in the order
of the forward pass, so with more than one chunk the activations travel round the ring of stages several times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

Kind = Literal["F", "B", "W"]
ScheduleName = Literal["gpipe", "1f1b", "interleaved", "zb_h1"]


@dataclass(frozen=True, slots=True)
class Action:
    """One unit of work of a stage.

    Attributes:
        kind: F forward; B backward; W the weight gradient alone. In a schedule without W, B computes both gradients;
            with W, B computes the input gradient only.
        microbatch: which micro-batch, from 0.
        chunk: which piece of the network on this stage, from 0.
    """

    kind: Kind
    microbatch: int
    chunk: int = 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """A tensor that crosses from one stage to another: an activation (F) or its gradient (B).

    Attributes:
        source, target: stages.
        action: the action that produces the tensor on `source`.
    """

    source: int
    target: int
    action: Action


Schedule = tuple[tuple[Action, ...], ...]


def build_schedule(name: ScheduleName, stages: int, microbatches: int, chunks: int = 1) -> Schedule:
    """The action lists of all stages.

    Args:
        name: which schedule.
        stages: number of pipeline stages, at least 1.
        microbatches: micro-batches of one step, at least 1.
        chunks: pieces of the network on each stage; only `interleaved` takes more than 1.

    Raises:
        ValueError: the sizes are illegal for this schedule.
    """
    if min(stages, microbatches, chunks) < 1:
        raise ValueError(f"stages={stages}, microbatches={microbatches} and chunks={chunks} must be at least 1")
    if chunks > 1 and name != "interleaved":
        raise ValueError(f"schedule {name} holds one chunk a stage but chunks={chunks}: use interleaved")
    match name:
        case "gpipe":
            # all activations of a step are held at once
            forward = [Action("F", i) for i in range(microbatches)]
            backward = [Action("B", i) for i in range(microbatches)]
            return tuple(tuple(forward + backward) for _ in range(stages))
        case "1f1b":
            # as many forwards ahead as stages follow: earlier no gradient can have come back
            return tuple(_one_f_one_b(stages - stage - 1, microbatches) for stage in range(stages))
        case "interleaved":
            if microbatches % stages:
                raise ValueError(f"microbatches={microbatches} must be a multiple of stages={stages} when interleaved")
            return tuple(_interleaved(stages, stage, microbatches, chunks) for stage in range(stages))
        case "zb_h1":
            return tuple(_zero_bubble_h1(stages, stage, microbatches) for stage in range(stages))


def _one_f_one_b(warmup: int, microbatches: int) -> tuple[Action, ...]:
    """`warmup` forwards, then forward and backward in turn, then the backwards that remain."""
    # then a stage holds warmup + 1 activations at most, however many micro-batches there are
    warmup = min(warmup, microbatches)
    actions = [Action("F", i) for i in range(warmup)]
    for i in range(warmup, microbatches):
        actions += [Action("F", i), Action("B", i - warmup)]
    actions += [Action("B", i) for i in range(microbatches - warmup, microbatches)]
    return tuple(actions)


def _interleaved(stages: int, stage: int, microbatches: int, chunks: int) -> tuple[Action, ...]:
    """Interleaved 1F1B (arXiv 2104.04473, section 2.2): micro-batches go in groups of `stages` through each chunk."""
    total = microbatches * chunks
    # One group through all chunks but the last, and two forwards more for each stage that follows this one.
    warmup = min(total, 2 * (stages - stage - 1) + (chunks - 1) * stages)

    def at(kind: Kind, index: int) -> Action:
        # index counts this stage's forwards, or backwards: `stages` micro-batches go through one chunk, then through
        # the next, which backward is the one before
        group, place = divmod(index, stages * chunks)
        chunk, offset = divmod(place, stages)
        return Action(kind, group * stages + offset, chunk if kind == "F" else chunks - 1 - chunk)

    actions = [at("F", i) for i in range(warmup)]
    for i in range(warmup, total):
        actions += [at("F", i), at("B", i - warmup)]
    actions += [at("B", i) for i in range(total - warmup, total)]
    return tuple(actions)


def _zero_bubble_h1(stages: int, stage: int, microbatches: int) -> tuple[Action, ...]:
    """ZB-H1 (arXiv 2401.10241, section 2): 1F1B whose weight gradients run `stage` micro-batches late.

    The delayed W fill the time in which 1F1B idles at the end; a stage never holds more than `stages` activations.
    """
    # these, and the W that are `stage` micro-batches late, hold `stages` activations at most
    warmup = min(stages - stage, microbatches)
    actions = [Action("F", i) for i in range(warmup)]
    for i in range(microbatches):
        actions.append(Action("B", i))
        # the first stage delays nothing: it has no time to fill at the end
        if i >= stage:
            actions.append(Action("W", i - stage))
        if i + warmup < microbatches:
            actions.append(Action("F", i + warmup))
    actions += [Action("W", i) for i in range(max(0, microbatches - stage), microbatches)]
    return tuple(actions)


def transfer_after(action: Action, stage: int, stages: int, chunks: int) -> Transfer | None:
    """What leaves `stage` after an action, None where the network or the gradient ends (and after W)."""
    # number of the piece in the order of the forward pass
    place = action.chunk * stages + stage
    if action.kind == "F" and place + 1 < stages * chunks:
        return Transfer(stage, (stage + 1) % stages, action)
    if action.kind == "B" and place > 0:
        return Transfer(stage, (stage - 1) % stages, action)
    return None


def stage_steps(schedule: Schedule) -> list[list[Action | Transfer]]:
    """What each stage does, its actions and its messages: a Transfer is a send on its source, a receive on its target.

    All stages follow one order of all messages, that of a simulated step, so a send may wait for its receive: nothing
    deadlocks on a transport that keeps no message. A message comes before what its target begins after it was made.
    """
    stages, chunks = len(schedule), count_chunks(schedule)
    split = any(action.kind == "W" for action in schedule[0])
    # Only the order matters, not the true times: a backward pass costs two forwards, and halves of it one each.
    times: dict[Kind, float] = {"F": 1.0, "B": 1.0 if split else 2.0, "W": 1.0}
    ends = simulate(schedule, [[times] * chunks for _ in range(stages)]).ends
    events: list[tuple[float, int, int, Action | Transfer]] = []
    for (stage, action), end in ends.items():
        # by start: an action after the messages of the same moment, which it may need
        events.append((end - times[action.kind], 1, stage, action))
        transfer = transfer_after(action, stage, stages, chunks)
        if transfer is not None:
            # as soon as what makes it has ended
            events.append((end, 0, stage, transfer))
    steps: list[list[Action | Transfer]] = [[] for _ in schedule]
    # Both ends list the messages in this one order, so the earliest that is not done is the next one at both of them.
    for _, _, stage, step in sorted(events, key=lambda event: event[:3]):
        steps[stage].append(step)
        if isinstance(step, Transfer):
            steps[step.target].append(step)
    return steps


@lru_cache(maxsize=8)
def steps_of(
    name: ScheduleName, stages: int, microbatches: int, chunks: int, forward_first: bool = False
) -> list[list[Action | Transfer]]:
    """`stage_steps` of a schedule by its name.

    One stage needs no schedule but 1F1B, or GPipe where all forward passes must come before the first backward pass.

    Raises:
        ValueError: the sizes are illegal for this schedule, or it does not begin with all forward passes.
    """
    if stages == 1:
        name = "gpipe" if forward_first else "1f1b"
    if forward_first and name != "gpipe":
        raise ValueError(f"schedule {name} has backward passes before the last forward pass: use gpipe")
    return stage_steps(build_schedule(name, stages, microbatches, chunks))


def receive_before(action: Action, stage: int, stages: int, chunks: int) -> Transfer | None:
    """What must arrive on `stage` before an action can start, None if it needs nothing from elsewhere."""
    place = action.chunk * stages + stage
    if action.kind == "F" and place > 0:
        before = place - 1
    elif action.kind == "B" and place + 1 < stages * chunks:
        before = place + 1
    else:
        return None
    return Transfer(before % stages, stage, Action(action.kind, action.microbatch, before // stages))


def count_chunks(schedule: Schedule) -> int:
    """Pieces of the network on each stage."""
    return 1 + max(action.chunk for action in schedule[0])


def peak_in_flight(actions: Sequence[Action]) -> int:
    """The most activations (one micro-batch through one chunk) that a stage holds at once.

    An activation lives from F until its weight gradient is done: W if the schedule has it, else B.
    """
    last: Kind = "W" if any(action.kind == "W" for action in actions) else "B"
    held = peak = 0
    for action in actions:
        held += (action.kind == "F") - (action.kind == last)
        peak = max(peak, held)
    return peak


@dataclass(frozen=True, slots=True)
class Timeline:
    """A simulated step.

    Attributes:
        makespan: time from the first action to the end of the last one.
        busy: working time of each stage.
        ends: when each action of a stage ended.
    """

    makespan: float
    busy: tuple[float, ...]
    ends: Mapping[tuple[int, Action], float] = field(repr=False)

    @property
    def bubble(self) -> float:
        """The share of all stages' time that is idle."""
        return 1.0 - sum(self.busy) / (len(self.busy) * self.makespan)


Durations = Sequence[Sequence[dict[Kind, float]]]
"""Time of an action: `durations[stage][chunk][kind]`."""


def simulate(schedule: Schedule, durations: Durations) -> Timeline:
    """Runs the lists on a clock: a stage takes its next action when it is free and what it needs has arrived.

    Transfers take no time of their own; add their exposed part to `durations`.

    Raises:
        ValueError: the lists deadlock; the message names what each blocked stage waits for.
    """
    stages, chunks = len(schedule), count_chunks(schedule)
    done: dict[tuple[int, Action], float] = {}
    clock = [0.0] * stages
    busy = [0.0] * stages
    cursor = [0] * stages
    remaining = sum(map(len, schedule))
    # Each stage goes as far as it can; if a whole round moves none, each waits for another.
    while remaining:
        before = remaining
        for stage, actions in enumerate(schedule):
            while cursor[stage] < len(actions):
                action = actions[cursor[stage]]
                ready = _ready_time(action, stage, stages, chunks, done)
                if ready is None:
                    break
                spent = durations[stage][action.chunk][action.kind]
                clock[stage] = max(clock[stage], ready) + spent
                busy[stage] += spent
                done[stage, action] = clock[stage]
                cursor[stage] += 1
                remaining -= 1
        if remaining == before:
            blocked = {
                stage: actions[cursor[stage]] for stage, actions in enumerate(schedule) if cursor[stage] < len(actions)
            }
            raise ValueError(f"the schedule deadlocks; blocked stages and their next actions: {blocked}")
    return Timeline(makespan=max(clock), busy=tuple(busy), ends=done)


def _ready_time(
    action: Action, stage: int, stages: int, chunks: int, done: dict[tuple[int, Action], float]
) -> float | None:
    """When everything an action needs is there, None while something is not."""
    needs = []
    incoming = receive_before(action, stage, stages, chunks)
    if incoming:
        needs.append((incoming.source, incoming.action))
    if action.kind == "B":
        # the own forward pass; the last piece, to which no gradient comes, needs nothing else
        needs.append((stage, Action("F", action.microbatch, action.chunk)))
    elif action.kind == "W":
        needs.append((stage, Action("B", action.microbatch, action.chunk)))
    ready = 0.0
    for need in needs:
        if need not in done:
            return None
        ready = max(ready, done[need])
    return ready
