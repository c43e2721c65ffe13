"""Speed of each op of the CPU pack against the matrix product it is made of.

    python kernels/cpu/bench.py [--size tiny|mid|many|long] [--precision fp32|bf16] [--threads N] [--repeat N] [--json]

Calls the library directly, without MindSpore's dispatch. `GFLOP/s` counts products only (2 m n k each, attention over
visible pairs, three products per forward one in the backward pass where weights have gradients); `of peak` divides by
the best rate of MindSpore's own fp32 product on as many threads, (1024, 1024, 1024) per thread; `GB/s` counts the
inputs and outputs once. The figure is the best of the repeats, as other work on the machine only adds time; with one
thread it is processor time, which shows little of that work.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np

from mindmoe.ops.cpu.pack import Pack, load

SIZES = {
    "tiny": {"width": 256, "inner": 256, "experts": 32, "length": 512, "batch": 4},
    "mid": {"width": 512, "inner": 512, "experts": 32, "length": 512, "batch": 4},
    "many": {"width": 256, "inner": 256, "experts": 128, "length": 512, "batch": 4},
    "long": {"width": 256, "inner": 256, "experts": 32, "length": 4096, "batch": 1},
}
HEADS, KV_HEADS, HEAD_DIM, TOP_K, WORDS, WINDOW = 8, 2, 64, 4, 8192, 128
DTYPES = {"float32": b"float32", "float64": b"float64", "int32": b"int32", "uint16": b"bfloat16"}


def call(pack: Pack, name: str, arrays: list[np.ndarray]) -> Callable[[], None]:
    """A call of one entry point on inputs and outputs, prepared."""
    count = len(arrays)
    data = (ctypes.c_void_p * count)(*(a.ctypes.data for a in arrays))
    ranks = (ctypes.c_int * count)(*(a.ndim for a in arrays))
    rows = [(ctypes.c_int64 * max(1, a.ndim))(*a.shape) for a in arrays]
    shapes = (ctypes.c_void_p * count)(*(ctypes.addressof(row) for row in rows))
    dtypes = (ctypes.c_char_p * count)(*(DTYPES[a.dtype.name] for a in arrays))
    entry = getattr(ctypes.CDLL(str(pack.path)), name)

    def run(keep: tuple = (rows, arrays)) -> None:
        if entry(count, data, ranks, shapes, dtypes, None, None) != 0:
            raise RuntimeError(f"{name} failed")

    return run


def best(run: Callable[[], object], repeat: int, threads: int) -> float:
    """Least time of a call [s], after one to warm up."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    run()
    times = []
    for _ in range(repeat):
        begin = clock()
        run()
        times.append(clock() - begin)
    return min(times)


def peak(threads: int, repeat: int) -> float:
    """Best rate of oneDNN's fp32 product on all threads at once [FLOP/s], or of NumPy's where there is none."""
    found = sorted((Path(ms.__file__).parent / "lib").glob("libdnnl.so*"))
    n = 1024
    matrices = [[np.ones((n, n), np.float32) for _ in range(3)] for _ in range(threads)]
    if found:
        gemm, size, one = ctypes.CDLL(str(found[0])).dnnl_sgemm, ctypes.c_int64(n), ctypes.c_float(1)
        letter = ctypes.c_char(b"N")

    def product(abc: list[np.ndarray]) -> None:
        if not found:
            np.matmul(abc[0], abc[1], out=abc[2])
            return
        a, b, c = (ctypes.c_void_p(x.ctypes.data) for x in abc)
        gemm(letter, letter, size, size, size, one, a, size, b, size, ctypes.c_float(0), c, size)

    if threads == 1:
        return 2 * n**3 / best(lambda: product(matrices[0]), max(10, repeat), threads)
    with ThreadPoolExecutor(threads) as workers:
        return threads * 2 * n**3 / best(lambda: list(workers.map(product, matrices)), max(10, repeat), threads)


def cases(size: dict[str, int], half: bool) -> dict[str, tuple[list[np.ndarray], float]]:
    """Arrays (inputs, then outputs) and FLOPs of every op at one size."""
    rng = np.random.default_rng(0)
    width, inner, experts, length, batch = (size[k] for k in ("width", "inner", "experts", "length", "batch"))
    tokens, slots = batch * length, batch * length * TOP_K

    def real(*shape: int) -> np.ndarray:
        return 0.1 * rng.standard_normal(shape, np.float32)

    def kept(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.uint16 if half else np.float32)

    def constants(*values: float) -> np.ndarray:
        return np.array(values, np.float64)

    x, q_width, kv_width = real(tokens, width), HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    q, k, v = real(batch, length, q_width), real(batch, length, kv_width), real(batch, length, kv_width)
    table, segments, sinks = real(length, HEAD_DIM // 2), np.zeros((batch, length), np.int32), real(HEADS)
    lse, w, bias = real(batch, length, HEADS), real(q_width, width), real(q_width)
    ids = np.argsort(rng.random((tokens, experts)), 1)[:, :TOP_K].astype(np.int32)
    gates, hidden = real(tokens, TOP_K), kept(slots, 2 * inner)
    weights = [real(experts, width, 2 * inner), real(experts, 2 * inner), real(experts, inner, width),
               real(experts, width)]  # fmt: skip
    table_w, labels, mask = real(WORDS, width), rng.integers(0, WORDS, tokens, np.int32), real(tokens)
    dense, expert = 2.0 * tokens * width * q_width, 2.0 * slots * 3 * width * inner
    head, one = 2.0 * tokens * width * WORDS, constants(half)
    cosines = [table, table, sinks, segments]
    params = [real(4 << 20) for _ in range(4)]
    result: dict[str, tuple[list[np.ndarray], float]] = {
        "rms_norm_forward": ([x, real(width), constants(1e-5), real(tokens, width)], 0),
        "rms_norm_backward": ([x, x, real(width), constants(1e-5), real(tokens, width), real(width)], 0),
        "linear_forward": ([x, w, bias, bias, constants(half, 1, 0), real(tokens, q_width)], dense),
        "linear_backward": ([real(tokens, q_width), x, w, bias, constants(half, 1, 0), real(tokens, width),
                             real(q_width, width), real(q_width)], 2 * dense),
    }  # fmt: skip
    for name, window in (("full", 0), ("window", WINDOW)):
        seen = np.minimum(np.arange(1, length + 1), window or length).sum()
        pairs = 4.0 * batch * HEADS * HEAD_DIM * seen
        set_ = constants(half, window, 0.125, 1)
        result[f"attention_forward {name}"] = ([q, k, v, *cosines, set_, real(*q.shape), lse], pairs)
        result[f"attention_backward {name}"] = (
            [q, q, np.full_like(lse, 9.0), q, k, v, *cosines, set_, real(*q.shape), real(*k.shape), real(*v.shape),
             real(HEADS)], 2.5 * pairs)  # fmt: skip
    set_ = constants(half, 1.702, 7)
    result |= {
        "route_forward": (
            [real(tokens, experts), real(experts), constants(0, 1, 1, 1, 1), gates.copy(), ids.copy()], 0),
        "experts_forward": ([x, gates, ids, *weights, set_, real(tokens, width), hidden], expert),
        "experts_backward": ([x, x, gates, ids, *weights, hidden, set_, real(tokens, width), real(tokens, TOP_K),
                              *(np.empty_like(a) for a in weights)], 2 * expert),
        "cross_entropy_with_gradient": ([x, table_w, labels, mask, one, real(1), real(tokens), real(tokens, width),
                                         real(WORDS, width)], 3 * head),
        "embedding_backward": ([labels, x, table_w, real(WORDS, width)], 0),
        "square_sum": ([params[0], real(1)], 0),
        "adamw": ([*params, real(1), real(1), np.ones(1, np.float32), constants(0.9, 0.95, 1e-8, 0.1, 1), real(1)], 0),
    }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pack = load()
    pack.set_threads(options.threads or pack.threads)
    top = peak(pack.threads, options.repeat)
    rows = []
    for name, (arrays, flops) in cases(SIZES[options.size], options.precision == "bf16").items():
        seconds = best(call(pack, name.split()[0], arrays), options.repeat, pack.threads)
        rows.append({"op": name, "ms": 1e3 * seconds, "gflops": flops / seconds / 1e9, "of_peak": flops / seconds / top,
                     "gb_per_s": sum(a.nbytes for a in arrays) / seconds / 1e9})  # fmt: skip
    if options.json:
        print(json.dumps({"isa": pack.isa, "gemm": pack.gemm, "threads": pack.threads, "size": options.size,
                          "precision": options.precision, "peak_gflops": top / 1e9, "ops": rows}))  # fmt: skip
        return
    print(f"{options.size}, {options.precision}, {pack.isa}, {pack.gemm} GEMM, {pack.threads} threads, "
          f"fp32 GEMM peak {top / 1e9:.0f} GFLOP/s")  # fmt: skip
    for row in rows:
        rate = f"{row['gflops']:8.0f} {100 * row['of_peak']:6.0f} %" if row["gflops"] else " " * 17
        print(f"{row['op']:<30} {row['ms']:9.3f} ms {rate} {row['gb_per_s']:7.1f} GB/s")


if __name__ == "__main__":
    main()
