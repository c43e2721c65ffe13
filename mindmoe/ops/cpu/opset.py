"""The CPU pack as a set of siblings of the reference ops.

With bf16 operands the activations between ops are stored in bf16 as well, which halves their traffic; the residual
stream, router scores, softmax, norms and loss stay in fp32.
"""

from collections.abc import Callable

from mindspore import Tensor, float32

from mindmoe.ops.cpu.attention import Attention, CachedAttention
from mindmoe.ops.cpu.cross_entropy import CrossEntropy, CrossEntropyPart
from mindmoe.ops.cpu.embedding import Embedding
from mindmoe.ops.cpu.experts import Combine, Experts, Permute
from mindmoe.ops.cpu.fork import Fork
from mindmoe.ops.cpu.linear import Linear
from mindmoe.ops.cpu.optimizer import AdamW, SquareSum
from mindmoe.ops.cpu.pack import STORAGE, load
from mindmoe.ops.cpu.progress import Arrive, build_wait
from mindmoe.ops.cpu.rms_norm import RmsNorm
from mindmoe.ops.cpu.router import StaticRouter
from mindmoe.ops.reference.swiglu import clamped_swiglu
from mindmoe.ops.rope import rope_tables
from mindmoe.ops.select import OpSet, OpShape
from mindmoe.ops.zeros import zeros_like


def cpu_ops(shape: OpShape, threads: int) -> OpSet:
    """The pack bound to a model.

    Raises:
        UserError: it cannot be built here.
    """
    pack = load()
    pack.set_threads(threads)
    model, moe, precision = shape.model, shape.moe, shape.precision
    cos, sin = (Tensor(table) for table in rope_tables(model, shape.seq_length))

    def attention(window: int) -> Callable[..., Tensor]:
        op = Attention(model.head_dim**-0.5, window, precision, precision, pack)

        def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segment_ids: Tensor) -> Tensor:
            # The op always respects documents; one document a row is how it is told not to.
            segments = segment_ids if shape.documents else zeros_like(segment_ids)
            return op(q, k, v, cos, sin, sinks, segments)

        return attend

    def cached_attention(window: int) -> Callable[..., Tensor]:
        op = CachedAttention(model.head_dim**-0.5, window, precision, precision, pack)

        def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *cache: Tensor) -> Tensor:
            return op(q, k, v, cos, sin, sinks, *cache)

        return attend

    experts = Experts(precision, model.swiglu_alpha, model.swiglu_limit, "fp32", pack)

    def expert_ffn(x: Tensor, gates: Tensor, ids: Tensor, *weights: Tensor) -> Tensor:
        return experts(x, ids, gates, *weights)

    def swiglu(h: Tensor) -> Tensor:
        return clamped_swiglu(h.astype(float32), model.swiglu_alpha, model.swiglu_limit)

    projected = CrossEntropy(precision, "forward", pack)

    def cross_entropy(x: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return projected(x, w, labels, mask)[0]

    def adamw(
        decays: list[bool], *, beta1: float, beta2: float, eps: float, weight_decay: float
    ) -> Callable[..., Tensor]:
        return AdamW(decays, beta1, beta2, eps, weight_decay, pack)

    return OpSet(
        name=f"cpu pack ({pack.isa}, {pack.gemm} GEMM, {threads} threads), {precision} operands",
        shape=shape,
        embedding=Embedding(pack),
        linear=Linear(precision, precision, pack),
        linear_out=Linear(precision, "fp32", pack),
        rms_norm=RmsNorm(model.rms_norm_eps, precision, pack),
        attention=attention,
        cached_attention=cached_attention,
        cache_dtype=STORAGE[precision],
        swiglu=swiglu,
        fork=lambda readers: Fork(readers, pack),
        router=StaticRouter(moe, pack) if moe is not None and StaticRouter.knows(moe) else None,
        expert_ffn=expert_ffn if moe is not None else None,
        permute=lambda targets: Permute(targets, pack),
        combine=Combine(pack),
        cross_entropy=cross_entropy,
        cross_entropy_part=CrossEntropyPart(precision, pack),
        adamw=adamw,
        square_sum=SquareSum(pack),
        arrive=Arrive(pack),
        wait=build_wait(pack),
    )
