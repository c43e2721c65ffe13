"""Times the ops of the CPU pack one by one on one core, and what more cores give: `kernels.py`, prints JSON.

Processor time, so that other work on the machine shows little; the scaling alone is by the clock.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mindmoe.host.env import quiet_mindspore, usable_cores

quiet_mindspore(1)

import mindspore as ms  # noqa: E402 (the threads are set first)
import numpy as np  # noqa: E402
from mindspore import Tensor, ops  # noqa: E402

from mindmoe.moe.config import BalanceConfig, MoeConfig  # noqa: E402
from mindmoe.ops.cpu.attention import Attention  # noqa: E402
from mindmoe.ops.cpu.cross_entropy import CrossEntropy  # noqa: E402
from mindmoe.ops.cpu.experts import Experts  # noqa: E402
from mindmoe.ops.cpu.linear import Linear  # noqa: E402
from mindmoe.ops.cpu.optimizer import FusedAdamW, SquareSum  # noqa: E402
from mindmoe.ops.cpu.pack import STORAGE, Precision, absent, load  # noqa: E402
from mindmoe.ops.cpu.rms_norm import RmsNorm  # noqa: E402
from mindmoe.ops.cpu.router import StaticRouter  # noqa: E402
from mindmoe.parallel.zero import ZeroBuffer  # noqa: E402
from mindmoe.plan import host  # noqa: E402
from mindmoe.plan.host import Count, OpName  # noqa: E402
from mindmoe.proof.measure.composites import composites  # noqa: E402
from mindmoe.proof.measure.yardstick import Yardstick  # noqa: E402

Case = tuple[OpName, str, Count, Callable[[], Any]]
_OTHER_DATA = np.zeros(1 << 20, np.float32)  # 4 MB: a core's own cache, not the one that all share
_SHORT = 5e-4  # [s]
_RNG = np.random.default_rng(0)
_LINEAR = [(2048, 256, 512), (2048, 512, 256), (2048, 256, 128), (512, 256, 512), (1024, 1024, 1024), (64, 256, 256)]
_ATTENTION = [(4, 512, 8, 2, 64, 0), (4, 512, 8, 2, 64, 128), (1, 512, 8, 2, 64, 0), (1, 2048, 4, 4, 64, 0)]
_EXPERTS = [(2048, 4, 256, 256, 32), (512, 4, 256, 256, 32), (2048, 2, 512, 512, 8), (2048, 4, 256, 256, 8),
            (64, 4, 256, 256, 32)]  # fmt: skip
_LOSS = [(2048, 256, 8192), (512, 256, 8192), (512, 512, 2048)]
_PLAIN = [1 << 21, 1 << 19, 1 << 12]  # elements


def real(*shape: int, dtype: ms.Type = ms.float32) -> Tensor:
    """Small random numbers."""
    return Tensor(0.1 * _RNG.standard_normal(shape, np.float32)).astype(dtype)


def matrix_cases(precision: Precision) -> Iterator[Case]:
    """Linear layers, experts and the loss."""
    kept, width = STORAGE[precision], 2.0 if precision == "bf16" else 4.0
    layer, no = Linear(precision, precision).biased, absent()
    for m, k, n in _LINEAR:
        x, w, b, y = real(m, k, dtype=kept), real(n, k), real(n), real(m, n, dtype=kept)
        counts = host.linear(m, k, n, width)
        yield "linear", "forward", counts[0], partial(layer.forward, x, w, b, no, layer.settings)
        yield "linear", "backward", counts[1], partial(layer.backward, y, x, w, b, layer.settings)
    mixture = Experts(precision).inner
    for tokens, k, dim, ffn, count in _EXPERTS:
        ids = np.argsort(_RNG.random((tokens, count)), 1)[:, :k].astype(np.int32)
        x, dy = real(tokens, dim, dtype=kept), real(tokens, dim)
        args = (real(tokens, k), Tensor(ids), real(count, dim, 2 * ffn), real(count, 2 * ffn), real(count, ffn, dim))
        bias, hidden = real(count, dim), real(tokens * k, 2 * ffn, dtype=kept)
        counts = host.experts(tokens * k, dim, ffn, count, width)
        yield "experts", "forward", counts[0], partial(mixture.forward, x, *args, bias, mixture.settings)
        yield "experts", "backward", counts[1], partial(mixture.backward, dy, x, *args, bias, hidden, mixture.settings)
    head = CrossEntropy(precision).inner
    for tokens, dim, vocab in _LOSS:
        labels, mask, one = Tensor(_RNG.integers(0, vocab, tokens, np.int32)), ops.ones((tokens,)), Tensor([1.0])
        x, w = real(tokens, dim), real(vocab, dim)
        counts = host.loss(tokens, dim, vocab)
        yield "loss", "forward", counts[0], partial(head.forward, x, w, labels, mask, head.settings)
        yield "loss", "backward", counts[1], partial(scaled, head.scale, x, w, one)


def scaled(scale: Callable[..., Tensor], x: Tensor, w: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors times a factor."""
    return scale(x, by), scale(w, by)


def attention_cases(precision: Precision) -> Iterator[Case]:
    """Attention, full and in a window."""
    kept, width = STORAGE[precision], 2.0 if precision == "bf16" else 4.0
    for batch, length, heads, kv_heads, dim, window in _ATTENTION:
        op = Attention(dim**-0.5, window, precision, precision).with_sinks
        q, do = (real(batch, length, heads * dim, dtype=kept) for _ in range(2))
        k, v = (real(batch, length, kv_heads * dim, dtype=kept) for _ in range(2))
        rest = (real(length, dim // 2), real(length, dim // 2), real(heads), ops.zeros((batch, length), ms.int32))
        out, lse = op.forward(q, k, v, *rest, op.settings)
        context = min(window, length) if window else length / 2
        counts = host.attention(batch * length, context, heads, kv_heads, dim, width)
        yield "attention", "forward", counts[0], partial(op.forward, q, k, v, *rest, op.settings)
        yield "attention", "backward", counts[1], partial(op.backward, do, out, lse, q, k, v, *rest, op.settings)


def vector_cases(precision: Precision) -> Iterator[Case]:
    """Norm, routing, MindSpore's own vector work, and the update."""
    kept, width = STORAGE[precision], 2.0 if precision == "bf16" else 4.0
    norm = RmsNorm(1e-5, precision)
    for tokens, dim in ((2048, 256), (2048, 1024), (64, 256)):
        x, w, dy = real(tokens, dim), real(dim), real(tokens, dim, dtype=kept)
        counts = host.norm(tokens, dim, width)
        yield "norm", "forward", counts[0], partial(norm.forward, x, w, norm.eps)
        yield "norm", "backward", counts[1], partial(norm.backward, dy, x, w, norm.eps)
    for tokens, count, k in ((2048, 32, 4), (512, 32, 4), (2048, 128, 4)):
        router = StaticRouter(MoeConfig(num_experts=count, num_experts_per_tok=k, balance=BalanceConfig()))
        counts, run = host.routing(tokens, count), partial(routed, router, real(tokens, count), ops.zeros((count,)))
        yield "routing", "forward", counts[0], run
        yield "routing", "backward", counts[1], run
    for size in _PLAIN:
        a, b = real(size), real(size)
        yield "plain", "forward", host.plain(12.0 * size), partial(ops.add, a, b)
        yield "plain", "backward", host.plain(12.0 * size), partial(ops.mul, a, b)
    for shapes in ([(32, 256, 512), (32, 256, 256)], [(512, 256), (256, 512)]):
        buffer = ZeroBuffer([tuple(shape) for shape in shapes], 2, 0)
        tensors = tuple(real(*shape) for shape in shapes)
        counts = host.around(4.0 * sum(tensor.size for tensor in tensors))
        yield "zero", "forward", counts[0], partial(cut, buffer, tensors)
        yield "zero", "backward", counts[1], partial(made_whole, buffer, tensors, buffer.rows(tensors))
    adam, square = FusedAdamW([True]), SquareSum()
    for size in (1 << 22, 1 << 16):
        params = [(ms.Parameter(real(size), name=f"p{size}{i}"),) for i in range(3)]
        step = partial(updated, adam, square, params, (real(size),))
        yield "update", "forward", host.update(size), step
        yield "update", "backward", host.update(size), step


def cut(buffer: ZeroBuffer, tensors: tuple[Tensor, ...]) -> Any:
    """What ZeRO does to gradients around a reduce-scatter."""
    return buffer.parts(buffer.rows(tensors)[buffer.index])


def made_whole(buffer: ZeroBuffer, tensors: tuple[Tensor, ...], rows: Tensor) -> Any:
    """What ZeRO does to updated weights around an all-gather, to their copies in the model."""
    return buffer.row(buffer.parts(rows[buffer.index])), buffer.whole(rows)


def routed(router: StaticRouter, logits: Tensor, bias: Tensor) -> Any:
    """Selection and statistics."""
    gates, ids = router.route(logits, bias)
    return gates, router.statistics(logits, ids)


def updated(adam: FusedAdamW, square: SquareSum, params: list[tuple[Tensor]], gradients: tuple[Tensor]) -> Any:
    """The gradient's square, and an update."""
    scalar = Tensor(np.float32(1.0))
    return square(gradients), adam(*params, gradients, scalar, scalar, scalar)


def composite_times(precision: Precision, yardstick: Yardstick) -> Iterator[tuple[OpName, str, Count, float]]:
    """Times [yardsticks] of what surrounds collectives; backward is what a gradient takes longer than the value."""
    grad = ops.GradOperation(get_all=True, sens_param=True)
    for op, counts, function, args, sens in composites(precision):
        forward = yardstick.in_units(partial(typical, partial(function, *args), time.process_time))
        both = yardstick.in_units(partial(typical, partial(grad(function), *args, sens), time.process_time))
        yield op, "forward", counts[0], forward
        yield op, "backward", counts[1], max(both - forward, 0.1 * forward)


def typical(run: Callable[[], Any], clock: Callable[[], float], budget: float = 0.2) -> float:
    """Median time of a call [s] in about `budget` seconds and at least three calls.

    Between calls that take longer than half a millisecond the core's cache is filled with other data, as other ops of
    a step do; shorter ones show what a call costs.
    """
    read(run())
    begin = clock()
    read(run())
    first = clock() - begin
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - started < budget and len(times) < 200):
        if first >= _SHORT:
            np.add(_OTHER_DATA, 1, out=_OTHER_DATA)
        begin = clock()
        read(run())
        times.append(clock() - begin)
    return statistics.median(times)


def read(result: Any) -> None:
    """Waits for a result."""
    while isinstance(result, tuple):
        result = result[-1]
    ms.runtime.synchronize()


def scaling(pack: Any, cores: int) -> float:
    """Speed of the pack's larger ops on all cores over that on one, divided by the cores, by the clock: the median."""
    gains = []
    for cases in (matrix_cases, attention_cases):
        for _, _, count, run in cases("bf16"):
            if count.flops < 5e8:
                continue
            pack.set_threads(1)
            alone = typical(run, time.perf_counter)
            pack.set_threads(cores)
            gains.append(alone / typical(run, time.perf_counter) / cores)
    return min(1.0, statistics.median(gains))


def main() -> int:
    """Prints one JSON object: rows of (precision, op, direction, FLOPs, bytes, yardsticks), the yardsticks, scaling."""
    ms.set_device("CPU")
    ms.runtime.launch_blocking()
    ms.device_context.cpu.op_tuning.threads_num(1)
    pack, cores = load(), usable_cores()
    pack.set_threads(1)
    rows, yardstick = [], Yardstick()
    for precision in ("bf16", "fp32"):
        for cases in (matrix_cases, attention_cases, vector_cases):
            for op, direction, count, run in cases(precision):
                took = yardstick.in_units(partial(typical, run, time.process_time))
                rows.append((precision, op, direction, count.flops, count.moved, took))
        for op, direction, count, took in composite_times(precision, yardstick):
            rows.append((precision, op, direction, count.flops, count.moved, took))
    about = {"isa": pack.isa, "gemm": pack.gemm, "cores": cores, "scaling": scaling(pack, cores)}
    json.dump({**about, "rows": rows, "yardstick": yardstick.seconds}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
