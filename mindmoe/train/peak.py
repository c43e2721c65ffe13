"""The peak that MFU and HFU are shares of: declared for an accelerator, measured on a CPU."""

from time import perf_counter

import numpy as np
from mindspore import Tensor

from mindmoe.config.run import RunConfig
from mindmoe.models.gpt_oss.parameters import flops_per_token, recomputed_flops, utilization
from mindmoe.ops.contract import OpSet
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.groups import Group
from mindmoe.plan.hardware import load_hardware

_SIZES = (256, 512, 1024)  # orders of the square products; which is fastest depends on caches and threads
_REPEATS = 3
_RISE = 1.05  # what is told


class Peak:
    """The peak of all ranks together [FLOP/s], and what a rate of tokens is of it.

    An accelerator's is the one on file for `launch.hardware`. On a CPU, and for a precision that is not on file, it is
    the best rate at which the run's own op multiplies matrices of several sizes, on all ranks at once; it is measured
    anew after 1, 4, 16, 64 .. steps, for a busy machine shows less than it has, and the largest counts. Shares are
    never cut at 1: one above it says that the peak was measured too low.

    Args:
        config: the run.
        kernels: the ops of this rank.
        world: the group of all ranks.
    """

    def __init__(self, config: RunConfig, kernels: OpSet, world: Group):
        self.linear, self.world, self.precision = kernels.linear_out, world, config.train.precision
        length = config.train.seq_length
        self.model_flops = flops_per_token(config.model, config.moe, length)
        self.all_flops = self.model_flops + recomputed_flops(config.model, config.moe, length, config.parallel)
        # On a CPU nothing is declared: what its cores reach depends on threads, clocks and neighbours.
        hardware = None if config.train.device == "cpu" else load_hardware(config.launch.hardware)
        self.measured = hardware is None or self.precision not in hardware.peak_tflops
        if hardware is None or self.measured:
            self.value = self._measure()
            self.source = f"measured {self.precision} GEMM peak of this machine: {self.value / 1e9:.0f} GFLOP/s"
        else:
            self.value = world.size * hardware.peak(self.precision)
            cards = f"{world.size} {hardware.name}"
            self.source = f"{self.precision} peak of {cards} on file: {self.value / 1e12:.0f} TFLOP/s"

    def shares(self, tokens_per_s: float) -> tuple[float, float]:
        """MFU and HFU of a rate."""
        return (
            utilization(self.model_flops, tokens_per_s, self.value),
            utilization(self.all_flops, tokens_per_s, self.value),
        )

    def after(self, done: int) -> str | None:
        """Measures again where it is due after `done` steps, on all ranks; what to tell if the peak rose much."""
        # A power of 2 has one bit, and one of 4 has it at an even place: its length in bits is odd.
        if not self.measured or done & (done - 1) or done.bit_length() % 2 == 0:
            return None
        before, self.value = self.value, max(self.value, self._measure())
        if self.value < _RISE * before:
            return None
        return (
            f"the {self.precision} GEMM peak measured again is {self.value / 1e9:.0f} GFLOP/s, it was "
            f"{before / 1e9:.0f}: MFU and HFU are shares of it from here on"
        )

    def _measure(self) -> float:
        # All ranks measure at once, as they compute at once: what they can do together is less than the sum of each
        # alone.
        return float(host_sum(np.array([max(self._rate(size) for size in _SIZES)]), self.world)[0])

    def _rate(self, size: int) -> float:
        """The best rate of products of square matrices on this rank [FLOP/s]."""
        x, w = (Tensor(np.random.default_rng(seed).standard_normal((size, size), np.float32)) for seed in (0, 1))
        best = float("inf")
        for _ in range(_REPEATS):
            started = perf_counter()
            # `asnumpy` waits for the product, which otherwise only has been launched.
            self.linear(x, w, None).asnumpy()
            best = min(best, perf_counter() - started)
        # A multiplication and an addition for each of size^3 terms.
        return 2.0 * size**3 / best
