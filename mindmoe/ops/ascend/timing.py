"""Times the kernels on a card beside what the machine allows: `python -m mindmoe.ops.ascend.timing`.

`mindmoe.ops.ascend.roofline` counts the bounds.
"""

import time
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.ops.ascend.attention import Attention
from mindmoe.ops.ascend.pack import Pack, load
from mindmoe.ops.ascend.roofline import Shape, work
from mindmoe.ops.ascend.routing import CapacityLimit, Combine, Permute, Route
from mindmoe.ops.ascend.swiglu import Swiglu


def calls(pack: Pack, s: Shape, dtype: ms.Type) -> dict[str, tuple[tuple[str, ...], Callable[[], object]]]:
    """Label -> the kernels that a call launches, and the call on random tensors."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, kind: ms.Type = dtype) -> Tensor:
        return Tensor(rng.standard_normal(shape).astype(np.float32)).astype(kind)

    t, k = s.tokens, s.topk
    logits, bias = normal(t, s.experts), Tensor(np.zeros(s.experts, np.float32))
    route, permute, combine = Route(pack, k), Permute(pack, s.experts), Combine(pack)
    swiglu, attention = Swiglu(pack, 1.702, 7.0), Attention(pack, s.head_dim**-0.5)
    # The mean load as capacity: about half of the experts lose something, so the kernel does its full work.
    limit = CapacityLimit(pack, s.experts, max(1, t * k // s.experts))
    gates, ids = route(logits, bias)
    x, pairs = normal(t, s.hidden), normal(t * k, 2 * s.ffn)
    rows, slot, counts = permute(x, ids)
    q, key, value = (normal(1, n, t, s.head_dim) for n in (s.heads, s.kv_heads, s.kv_heads))
    sinks, starts = normal(s.heads, kind=ms.float32), Tensor(np.zeros((1, t), np.int32))

    def backward(op: Callable[..., Any], wrt: tuple[int, ...], *inputs: Tensor) -> Callable[[], object]:
        # A scalar of the first output, so that `grad` has something to start from.
        def total(*args: Tensor) -> Tensor:
            out = op(*args)
            return (out[0] if isinstance(out, tuple) else out).astype(ms.float32).sum()

        gradient = ms.grad(total, wrt)
        return lambda: gradient(*inputs)

    heads = ("attention", "attention_delta", "attention_grad_query", "attention_grad_key_value")
    return {
        "route": (("moe_gating",), lambda: route(logits, bias)),
        "route, backward": (("moe_gating", "moe_gating_grad"), backward(route, (0,), logits, bias)),
        "capacity limit": (("moe_capacity",), lambda: limit(ids, gates)),
        "permute": (("moe_permute",), lambda: permute(x, ids)),
        "combine": (("moe_combine",), lambda: combine(rows, slot, gates, counts)),
        "combine, backward": (
            ("moe_combine", "moe_combine_grad"),
            backward(combine, (0, 2), rows, slot, gates, counts),
        ),
        "swiglu": (("swiglu",), lambda: swiglu(pairs)),
        "swiglu, backward": (("swiglu", "swiglu_grad"), backward(swiglu, (0,), pairs)),
        "attention": (("attention",), lambda: attention(q, key, value, sinks, starts)),
        "attention, backward": (heads, backward(attention, (0, 1, 2, 3), q, key, value, sinks, starts)),
    }


def table(pack: Pack, s: Shape, dtype: ms.Type, repeats: int, synchronize: Callable[[], None]) -> str:
    """Lines of label, measured time and bound [us] and their ratio; `synchronize` waits for the device."""
    known, lines = work(s), [f"{'call':24}{'us':>12}{'bound us':>12}{'share':>8}"]
    for label, (kernels, call) in calls(pack, s, dtype).items():
        call()  # once outside the clock: compilation
        synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize()
        seconds = (time.perf_counter() - start) / repeats
        # Kernels run one after the other, and so do their bounds.
        bound = sum(known[kernel].bound for kernel in kernels)
        lines.append(f"{label:24}{seconds * 1e6:12.1f}{bound * 1e6:12.1f}{bound / seconds:8.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    ms.set_device("Ascend")
    print(table(load(), Shape(), ms.bfloat16, 20, ms.runtime.synchronize))
