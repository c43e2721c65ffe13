"""A fixed piece of work that says how fast the machine is at the moment.

Clocks change, and what other guests do on the same processor comes and goes within minutes. Timings of ops and steps
are therefore taken in units of this work, done right before and after; its typical time gives them back their seconds.
"""

import statistics
import time
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.ops.cpu.linear import Linear
from mindmoe.ops.cpu.pack import absent

_ROWS, _COLUMNS = 1024, 512
_CALLS = 5


class Yardstick:
    """Measures by processor time of one thread."""

    def __init__(self) -> None:
        op = Linear("bf16", "bf16").biased
        x, w, b = (Tensor(np.full(shape, 0.1, np.float32)) for shape in ((_ROWS, 512), (_COLUMNS, 512), (_COLUMNS,)))
        self._run: Callable[[], object] = lambda: op.forward(x.astype(ms.bfloat16), w, b, absent(), op.settings)
        self.seconds: list[float] = []
        self._time()

    def in_units(self, measure: Callable[[], float]) -> float:
        """What `measure` says [s], over the time that the fixed work takes just then.

        Args:
            measure: returns seconds.
        """
        before = self._time()
        seconds = measure()
        around = (before + self._time()) / 2
        self.seconds.append(around)
        return seconds / around

    def _time(self) -> float:
        """Median of some calls [s]."""
        times = []
        for _ in range(_CALLS):
            began = time.process_time()
            self._run()
            ms.runtime.synchronize()
            times.append(time.process_time() - began)
        return statistics.median(times)
