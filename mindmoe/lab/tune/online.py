"""Tuning while a run goes on: windows that alternate between the incumbent and one candidate, and a rule (dry).

Between tests the run stays at the incumbent, so that few windows explore. A test is incumbent, candidate, incumbent,
.. , incumbent; each candidate window is compared with the two around it, which takes out the trend of training. Short
windows favour what is greedy now (arXiv 1803.02021), hence the penalty on the balance of the load; the forks of
`mindmoe ablate`, complete runs from one start, are the sounder way.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mindmoe.lab.tune.config import OnlineConfig
from mindmoe.lab.tune.search import Proposal, Trial
from mindmoe.lab.tune.space import Levels

Z_ACCEPT = -1.645  # one-sided 5%
Z_REVERT = 4.0
CV_REVERT = 2.0  # times the load CV of the incumbent
_ENOUGH = 10  # steps of a window before it is judged


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Means over the measured steps of a window.

    Attributes:
        loss: of training [nats].
        deviation: standard deviation of the loss over steps.
        cv: load CV, mean over layers.
        seconds: of a step [s].
    """

    loss: float
    deviation: float
    cv: float
    seconds: float

    @classmethod
    def of(cls, steps: Sequence[tuple[float, float, float]]) -> "Window":
        """Of (loss, cv, seconds) of each measured step."""
        loss, cv, seconds = np.array(steps, np.float64).T
        return cls(loss=loss.mean(), deviation=float(loss.std()), cv=cv.mean(), seconds=float(np.median(seconds)))


@dataclass
class _Test:
    """A candidate under way: windows of the incumbent and of the candidate so far."""

    proposal: Proposal
    levels: Levels
    before: list[Window] = field(default_factory=list)
    tried: list[Window] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What became of a candidate.

    Attributes:
        levels: of the candidate.
        value: mean objective over its windows, relative to the incumbent; negative is better.
        z: value over its standard error.
        accepted: whether it is the incumbent now.
        proposal: where it came from.
    """

    levels: Levels
    value: float
    z: float
    accepted: bool
    proposal: Proposal


class OnlineTuner:
    """Decides what the next window runs with. Ask `levels`, run a window, `tell` it.

    Args:
        config: windows, limits and weights.
        incumbent: where the run starts.
        propose: the next candidate after the trials so far, or None while there is none yet; must not block.
    """

    def __init__(self, config: OnlineConfig, incumbent: Levels, propose: Callable[[list[Trial]], Proposal | None]):
        self.config, self.incumbent, self.propose = config, incumbent, propose
        self.offset = 0.0  # objective of the incumbent relative to the first one
        self.trials = [Trial(incumbent, 0.0)]
        self.hold = self._rest
        self.test: _Test | None = None

    @property
    def levels(self) -> Levels:
        """What the coming window runs with."""
        if self.test is None or len(self.test.before) == len(self.test.tried):
            return self.incumbent
        return self.test.levels

    @property
    def exploring(self) -> bool:
        """Whether that is the candidate."""
        return self.levels != self.incumbent

    def tell(self, window: Window) -> Decision | None:
        """Takes note of a window that ran with `levels`; returns what was decided, if anything was."""
        if self.test is None:
            self.hold -= 1
            if self.hold <= 0:
                self._begin()
            return None
        (self.test.tried if self.exploring else self.test.before).append(window)
        if len(self.test.before) <= self.config.switchbacks:
            return None
        return self._decide(self._values())

    def endangered(self, steps: Sequence[tuple[float, float, float]]) -> bool:
        """Whether a candidate's window must end at once, from its measured steps so far."""
        if not self.exploring or self.test is None or len(steps) < _ENOUGH:
            return False
        now, reference = Window.of(steps), self.test.before[-1]
        error = max(reference.deviation, 1e-12) / math.sqrt(len(steps))
        return (now.loss - reference.loss) / error > Z_REVERT or now.cv > CV_REVERT * max(reference.cv, 1e-12)

    def revert(self) -> Decision:
        """Gives up the candidate under way."""
        assert self.test is not None
        return self._decide([math.inf])

    def objective(self, window: Window, before: Window, after: Window) -> float:
        """ln of the time to a loss relative to the windows around it, plus the penalty on the balance."""
        loss, cv = (before.loss + after.loss) / 2, (before.cv + after.cv) / 2
        seconds = (before.seconds + after.seconds) / 2
        penalty = max(0.0, window.cv - self.config.cv_max) ** 2 - max(0.0, cv - self.config.cv_max) ** 2
        time = math.log(window.seconds / seconds) if seconds > 0 and window.seconds > 0 else 0.0
        return time + (window.loss - loss) / self.config.slope + self.config.cv_weight * penalty

    @property
    def _rest(self) -> int:
        """Windows of the incumbent between tests, so that the share of exploring ones is kept."""
        pairs = self.config.switchbacks
        return max(1, math.ceil(pairs / self.config.explore_share) - (2 * pairs + 1))

    def _begin(self) -> None:
        proposal = self.propose(self.trials)
        if proposal is None:
            return  # the incumbent goes on; asked again after the next window
        levels = tuple(
            now + int(np.sign(wanted - now)) for now, wanted in zip(self.incumbent, proposal.levels, strict=True)
        )
        if levels == self.incumbent:
            self.hold = 1
            return
        self.test = _Test(proposal, levels)

    def _values(self) -> list[float]:
        assert self.test is not None
        around = zip(self.test.tried, self.test.before, self.test.before[1:], strict=False)
        return [self.objective(*windows) for windows in around]

    def _decide(self, values: list[float]) -> Decision:
        test = self.test
        assert test is not None
        mean = float(np.mean(values))
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
        z = mean / max(error, 1e-12) if math.isfinite(mean) and math.isfinite(error) else math.inf
        accepted = z < Z_ACCEPT
        if math.isfinite(mean):
            self.trials.append(Trial(test.levels, self.offset + mean))
        else:  # a surrogate needs a number: worse than everything seen
            self.trials.append(Trial(test.levels, max(trial.value for trial in self.trials) + 1.0))
        if accepted:
            self.incumbent, self.offset = test.levels, self.offset + mean
        self.test, self.hold = None, self._rest
        return Decision(levels=test.levels, value=mean, z=z, accepted=accepted, proposal=test.proposal)
