"""When a run that failed is started again: not after a mistake, not for ever, and later each time."""

from dataclasses import dataclass

from mindmoe.launch.config import LaunchConfig
from mindmoe.train.guard import EXIT_OVERTAKEN

_FINAL = {
    0: "it has finished",
    2: "a mistake of the config or the data does not go away",
    3: "a loss that is not finite comes again",
    EXIT_OVERTAKEN: "another start has taken it over",
    129: "it was asked to stop",
    130: "it was asked to stop",
    143: "it was asked to stop",
}
STOPPED = (129, 130, 143)  # exit codes of a run that a signal has asked to save and stop
_LONGEST = 600.0  # [s] between two starts


@dataclass(slots=True)
class Restarts:
    """Counts the restarts of a run since its last progress, which is a newer checkpoint.

    Attributes:
        config: how many restarts without progress are made, and the wait before the first.
        without_progress: restarts since the newest checkpoint became newer.
        best_step: the newest checkpoint seen.
    """

    config: LaunchConfig
    without_progress: int = 0
    best_step: int = 0

    def again(self, code: int, step: int) -> tuple[float | None, str]:
        """Whether to start again after a failure.

        Args:
            code: exit code of the run.
            step: the newest checkpoint now.

        Returns:
            The seconds to wait before the next start, None for no more, and the reason.
        """
        if code in _FINAL:
            return None, _FINAL[code]
        progressed = step > self.best_step
        self.without_progress = 0 if progressed else self.without_progress
        self.best_step = max(step, self.best_step)
        allowed = self.config.restarts
        if self.without_progress >= allowed:
            if not allowed:
                return None, "launch.restarts=0 asks for no restart"
            return None, f"{allowed} restarts (launch.restarts) have brought no newer checkpoint than step {step}"
        wait = min(self.config.backoff * 2.0**self.without_progress, _LONGEST)
        self.without_progress += 1
        return wait, f"restart {self.without_progress} of {allowed} without a newer checkpoint, from step {step}"
