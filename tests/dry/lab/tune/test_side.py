"""The side process: answers, late answers, crashes, a missing module, and the breaker over them."""

import sys

import numpy as np
import pytest

from mindmoe.lab.tune.breaker import Breaker
from mindmoe.lab.tune.config import TuneConfig
from mindmoe.lab.tune.search import Trial, Tuner
from mindmoe.lab.tune.side import SideSolver

LATENCY = 0.5
READY = 'print(\'{"ready": "numpy"}\', flush=True)\n'
FAKES = {
    "stalls": "import time\n" + READY + "time.sleep(60)",
    "answers too late": "import sys, time\n"
    + READY
    + 'for line in sys.stdin:\n    time.sleep(2)\n    print(\'{"id": 1, "states": [0]}\', flush=True)',
    "raises": "import sys\n" + READY + "for n, line in enumerate(sys.stdin, 1):\n"
    '    print(\'{"id": %d, "error": "ValueError: no"}\' % n, flush=True)',
    "crashes": READY + "input()\nraise SystemExit(3)",
    "lacks the module": 'print(\'{"dead": "No module named mindquantum"}\', flush=True)',
    "says what is no message": "import sys\n" + READY + "for line in sys.stdin:\n"
    "    for text in ('7', '[1]', 'null', '\\x00', '{\"id\": 1', '[' * 9999, '{\"id\": NaN}', 'ready', '\"dead\"'):\n"
    "        print(text, flush=True)\n"
    '    print(\'{"id": 1, "states": [0, 99]}\', flush=True)',
    **{
        f"answers {states}": "import sys\n" + READY + f"for line in sys.stdin:\n"
        f'    print(\'{{"id": 1, "states": {states}}}\', flush=True)'
        for states in ("[]", "[-1]", "[8]", "[true]", "[0.0]", '["0"]', "{}", "null", "1")
    },
    "is ready with no name": "import time\nprint('{\"ready\": [1]}', flush=True)\ntime.sleep(60)",
    "never ends its line": "import sys\n"
    + READY
    + "for line in sys.stdin:\n    sys.stdout.write('x' * 2**25)\n    sys.stdout.flush()",
    "never starts": "import time\ntime.sleep(60)",
}


def config(**changes) -> TuneConfig:
    space = {"a": [1.0, 2.0, 4.0, 8.0], "b": [0.0, 1.0]}
    return TuneConfig.model_validate({"space": space, "initial": 4, "latency": LATENCY, "trip": 3} | changes)


def trials(count: int = 6) -> list[Trial]:
    return [Trial((n % 4, n % 2), float(n % 4) - n % 2) for n in range(count)]


@pytest.mark.parametrize("fault", FAKES)
def test_a_proposal_comes_in_time_whatever_happens(fault, monkeypatch):
    """No wait for the process is longer than the latency that is allowed; how long it then takes is the machine's."""
    waits = []
    line = SideSolver._line
    side = SideSolver("numpy", command=[sys.executable, "-c", FAKES[fault]])
    if fault not in ("never starts", "is ready with no name"):
        assert side.wait_until_ready(200.0) or side.useless
    monkeypatch.setattr(SideSolver, "_line", lambda self, timeout: waits.append(timeout) or line(self, timeout))
    tuner = Tuner(config(), (0, 0), side)
    proposal = tuner.ask(trials())
    assert max(waits, default=0.0) <= LATENCY
    assert proposal.source == "tpe" and len(proposal.levels) == 2
    tuner.close()


def test_a_healthy_process_answers_and_the_gap_is_shown():
    tuner = Tuner(config(solver="numpy", latency=200.0), (0, 0))
    assert tuner.side is not None and tuner.side.wait_until_ready(200.0)
    proposal = tuner.ask(trials())
    assert proposal.source == "numpy" and proposal.gap == 0.0  # 256 shots of 8 states leave none out
    assert proposal.levels not in {trial.levels for trial in trials()}
    tuner.close()


def test_a_slow_process_is_replaced_without_waiting():
    side = SideSolver("numpy", command=[sys.executable, "-c", FAKES["stalls"]])
    assert side.wait_until_ready(200.0)
    old = side.process.pid
    tuner = Tuner(config(), (0, 0), side)
    assert tuner.ask(trials()).source == "tpe"
    assert side.process.pid != old and "no answer" in side.problem
    tuner.close()


def test_an_interpreter_that_is_not_there_is_reported():
    tuner = Tuner(config(solver="numpy", python="no-such-python"), (0, 0))
    assert tuner.ask(trials()).source == "tpe" and "no-such-python" in tuner.side.problem
    tuner.close()


def test_the_breaker_opens_after_three_misses_and_closes_after_twenty_refusals():
    breaker = Breaker(trip=3, cooldown=20)
    for success in (False, False, True, False, False):
        assert breaker.allows()
        breaker.record(success)
    assert not breaker.is_open
    breaker.record(False)
    assert breaker.is_open and [breaker.allows() for _ in range(21)] == [False] * 20 + [True]


def test_an_open_breaker_costs_no_waiting():
    side = SideSolver("numpy", command=[sys.executable, "-c", FAKES["never starts"]])
    tuner = Tuner(config(trip=1, cooldown=2), (0, 0), side)
    assert tuner.ask(trials()).source == "tpe" and tuner.breaker.is_open
    asked = tuner.side.number
    assert tuner.ask(trials()).source == "tpe" and tuner.side.number == asked
    tuner.close()
    assert np.isfinite(tuner.breaker.remaining)
