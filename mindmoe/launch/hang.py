"""Whether a launch hangs, and which rank it hangs on.

A launch hangs when no rank has entered or left a phase for longer than such a phase may take. Then most ranks wait
in a collective, and one does not come. The rule that finds it, in this order:

1. a rank whose process is stopped by a signal;
2. a rank that others wait for and that itself waits for nobody: it is a member of the group of a collective that
   another rank is in, and has begun fewer collectives with that group;
3. ranks that wait for each other in a circle;
4. the rank with the fewest phases, when each collective has all its members;
5. nobody, when all ranks are equally far: then the network or the device is at fault.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import psutil

from mindmoe.host.position import Phase, Position, spans
from mindmoe.launch.config import LaunchConfig
from mindmoe.launch.local import EXIT_FAILED, Failure
from mindmoe.launch.ranks import Rank, dump_stacks, indented, tail


@dataclass(frozen=True, kw_only=True, slots=True)
class HangVerdict:
    """The ranks that a launch hangs on, none if they cannot be told, and the reason in words."""

    culprits: tuple[int, ...]
    reason: str


class HangWatch:
    """Looks at the positions of ranks from time to time.

    Args:
        ranks: all ranks of the launch.
        config: how long a phase may take.
    """

    def __init__(self, ranks: Sequence[Rank], config: LaunchConfig):
        self.ranks, self.config = ranks, config
        self._counts: dict[int, int] | None = None
        self._progress = 0.0

    def check(self, now: float) -> HangVerdict | None:
        """The verdict on a hang, None while there is none.

        Args:
            now: time of the look, by any steady clock [s].
        """
        if not self.config.hang_timeout:
            return None
        positions = {rank.number: at for rank in self.ranks if (at := rank.position()) is not None}
        counts = {number: at.count for number, at in positions.items()}
        if counts != self._counts:
            self._counts, self._progress = counts, now
        patience = self.config.hang_timeout
        if len(positions) < len(self.ranks) or any(_may_compile(at) for at in positions.values()):
            patience = max(patience, self.config.compile_timeout)
        if now - self._progress <= patience:
            return None
        stopped = [
            rank.number
            for rank in self.ranks
            if (process := rank.process()) is not None and process.status() == psutil.STATUS_STOPPED
        ]
        verdict = diagnose(positions, stopped)
        return HangVerdict(
            culprits=verdict.culprits,
            reason=f"no rank has made progress for {now - self._progress:.0f} s: {verdict.reason}",
        )


def hang_failure(verdict: HangVerdict, ranks: Sequence[Rank]) -> Failure:
    """The failure that a hang is, with the last words and the stacks of the ranks to blame.

    Args:
        verdict: which ranks those are.
        ranks: living ranks of this node: all of them write their stacks into their logs.
    """
    blamed = [rank for rank in ranks if rank.number in verdict.culprits]
    last_lines = {rank: tail(rank.log) for rank in blamed}
    stacks = dump_stacks(ranks)
    details = []
    for rank in blamed:
        details.append(f"  last lines of {rank.log}:\n{last_lines[rank]}")
        if rank.number in stacks:
            details.append(f"  its stacks:\n{indented(stacks[rank.number].splitlines())}")
    return Failure(
        code=EXIT_FAILED,
        rank=verdict.culprits[0] if verdict.culprits else -1,
        message=verdict.reason,
        details="\n".join(details),
        time=time.time(),
    )


def diagnose(positions: Mapping[int, Position], stopped: Collection[int] = ()) -> HangVerdict:
    """Which ranks the others wait for.

    Args:
        positions: where each rank is that has recorded anything.
        stopped: ranks whose process is stopped by a signal.
    """
    if stopped:
        places = "; ".join(f"rank {rank} in {_place(positions, rank)}" for rank in sorted(stopped))
        return HangVerdict(culprits=tuple(sorted(stopped)), reason=f"stopped by a signal: {places}")
    waits = {rank: _missing(rank, at, positions) for rank, at in positions.items()}
    awaited = set().union(*waits.values()) if waits else set()
    if guilty := sorted(rank for rank in awaited if not waits.get(rank)):
        victims = sorted(rank for rank, missing in waits.items() if missing)
        places = "; ".join(f"rank {rank} is in {_place(positions, rank)}" for rank in guilty)
        where = positions[victims[0]].phases[-1]
        wait = f"{_named(victims)} {'waits' if len(victims) == 1 else 'wait'} for it in {where.name}"
        return HangVerdict(culprits=tuple(guilty), reason=f"{places}, and {wait}")
    if awaited:
        circle = sorted(_circle(waits))
        places = "; ".join(f"rank {rank} in {_place(positions, rank)}" for rank in circle)
        return HangVerdict(culprits=tuple(circle), reason=f"{_named(circle)} wait for each other: {places}")
    return _furthest_behind(positions)


def _missing(rank: int, at: Position, positions: Mapping[int, Position]) -> set[int]:
    """The ranks that have not come to the collective that a rank is in."""
    phase = _collective(at)
    if phase is None:
        return set()
    return {
        other
        for other in phase.ranks
        if other != rank and (other not in positions or positions[other].calls.get(phase.ranks, 0) < phase.call)
    }


def _collective(at: Position) -> Phase | None:
    """The innermost phase, if others take part in it."""
    return at.phases[-1] if at.phases and at.phases[-1].ranks else None


def _circle(waits: Mapping[int, set[int]]) -> list[int]:
    """The ranks of one circle; every rank that is waited for waits itself."""
    path = [min(rank for rank, missing in waits.items() if missing)]
    while (following := min(waits[path[-1]])) not in path:
        path.append(following)
    return path[path.index(following) :]


def _furthest_behind(positions: Mapping[int, Position]) -> HangVerdict:
    counts = {rank: at.count for rank, at in positions.items()}
    least, most = min(counts.values(), default=0), max(counts.values(), default=0)
    behind = sorted(rank for rank, count in counts.items() if count == least)
    if least == most:
        place = f" in {_place(positions, behind[0])}" if behind else ""
        return HangVerdict(
            culprits=(),
            reason=f"all ranks are equally far{place}, so that no rank is to blame but the network or the devices; "
            "the stacks of all ranks are in their logs",
        )
    return HangVerdict(
        culprits=tuple(behind),
        reason=f"{_named(behind)} came least far, {least} of {most} phases: in {_place(positions, behind[0])}",
    )


def _may_compile(at: Position) -> bool:
    return at.count == 1 or any(phase.first for phase in at.phases)


def _place(positions: Mapping[int, Position], rank: int) -> str:
    return str(positions[rank]) if rank in positions else "a place it has not recorded"


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {spans(tuple(ranks))}"
