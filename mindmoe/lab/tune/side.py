"""QAOA in a warm side process that a training step never waits for (dry)."""

import selectors
import subprocess
import sys
from collections.abc import Sequence
from time import monotonic
from typing import Any

from mindmoe.host import strict_json
from mindmoe.host.env import solver_environment
from mindmoe.host.files import shown
from mindmoe.lab.tune.qubo import Qubo
from mindmoe.lab.tune.solver_process import encode_request

_LINE = 16 * 2**20  # [bytes] that an answer may have; more without an end of the line is none


class SideSolver:
    """Starts the process at once and again, without waiting, whenever it was too slow or has died.

    Args:
        backend: `auto`, `mindquantum` or `numpy`.
        python: interpreter of the process, by default the one that runs us.
        command: what to run instead.
    """

    def __init__(self, backend: str, python: str | None = None, command: Sequence[str] | None = None):
        self.command = list(command or [python or sys.executable, "-m", "mindmoe.lab.tune.solver_process", backend])
        self.number = self.states = 0
        self.problem = ""
        self.backend = ""
        self.useless = False
        self.process: subprocess.Popen[bytes] | None = None
        self._start()

    def submit(self, qubo: Qubo, depth: int, shots: int, seed: int) -> bool:
        """Sends a request; False if the process cannot take one now."""
        if self.useless:
            return False
        self._receive(0.0)
        if not self.backend:
            return False
        assert self.process is not None and self.process.stdin is not None
        self.number, self.states = self.number + 1, 2**qubo.num_bits
        try:
            self.process.stdin.write((encode_request(self.number, qubo, depth, shots, seed) + "\n").encode())
            self.process.stdin.flush()
        except OSError as error:
            self._restart(f"the side process ended: {error.strerror}")
            return False
        return True

    def collect(self, timeout: float) -> list[int] | None:
        """The states of the last request; None if it failed or did not come within `timeout` [s]."""
        deadline = monotonic() + timeout
        while (left := deadline - monotonic()) > 0:
            message = self._receive(left)
            if message is None and (self.process is None or self.process.poll() is not None):
                self._restart("the side process ended")
                return None
            if message and message.get("id") == self.number:
                states, error = message.get("states"), message.get("error")
                if isinstance(error, str):
                    self.problem = shown(error, 300)
                    return None
                if not _are_states(states, self.states):
                    self._restart(f"the answer is no list of states below {self.states}")
                    return None
                self.problem = ""
                return states
        self._restart(f"no answer within {timeout:.3g} s")
        return None

    def wait_until_ready(self, timeout: float) -> bool:
        """Waits for the process to be warm; False if it is not after `timeout` [s]."""
        deadline = monotonic() + timeout
        while not self.backend and not self.useless and (left := deadline - monotonic()) > 0:
            self._receive(left)
        return bool(self.backend)

    def close(self) -> None:
        """Ends the process."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _start(self) -> None:
        self.backend, self._buffer = "", b""
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=solver_environment(),
            )
        except OSError as error:
            self.problem, self.useless = f"cannot start {self.command[0]}: {error.strerror}", True

    def _restart(self, problem: str) -> None:
        self.close()
        self._start()
        self.problem = problem

    def _receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message within `timeout` [s], noting whether the process is ready or gone for good."""
        line = self._line(timeout)
        if line is None:
            return None
        try:
            message = strict_json.parse(line, "the side process")
        except strict_json.JsonError:
            return None  # a library that prints on standard output
        if not isinstance(message, dict):
            return None
        if isinstance(ready := message.get("ready"), str):
            self.backend = shown(ready)
        if isinstance(dead := message.get("dead"), str):  # it would die again: an import does not heal
            self.problem, self.useless = shown(dead, 300), True
        return message

    def _line(self, timeout: float) -> bytes | None:
        deadline = monotonic() + timeout
        assert self.process is not None and self.process.stdout is not None
        pipe = self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - monotonic())):
                    return None
                piece = pipe.read(65536)
                if not piece:
                    return None
                self._buffer += piece
                if len(self._buffer) > _LINE:
                    self._restart(f"a line of more than {_LINE} bytes")
                    return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _are_states(states: Any, count: int) -> bool:
    """Whether it is a list of at least one state, each from 0 to `count` - 1."""
    return isinstance(states, list) and bool(states) and all(type(x) is int and 0 <= x < count for x in states)
