"""What each kernel must move and multiply, counted from its tiling, and the shortest time that a card allows for it.

kernels/README.md prints the bounds of gpt-oss-120b; `mindmoe.ops.ascend.timing` holds a card against them.
"""

import dataclasses

HBM = 1.6e12  # [bytes/s] of a 910B2
CUBE = 350e12  # [FLOP/s] of a 910B2 in bf16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one layer on one card; the defaults are gpt-oss-120b with 8192 tokens in bf16."""

    tokens: int = 8192
    topk: int = 4
    experts: int = 128
    hidden: int = 2880
    ffn: int = 2880
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 64
    element_bytes: int = 2


@dataclasses.dataclass(frozen=True)
class KernelWork:
    """What a kernel cannot do without: bytes of GM, and floating-point operations of the cube."""

    bytes: int
    flops: int = 0

    @property
    def bound(self) -> float:
        """Shortest time [s] that a 910B2 allows."""
        return max(self.bytes / HBM, self.flops / CUBE)


def work(s: Shape) -> dict[str, KernelWork]:
    """KernelWork of each kernel that has a bound; attention is causal over one sequence of all tokens."""
    t, k, e, d, b = s.tokens, s.topk, s.experts, s.hidden, s.element_bytes
    query, key = s.heads * t * s.head_dim * b, s.kv_heads * t * s.head_dim * b
    pairs = 2 * s.head_dim * s.heads * t * (t + 1) // 2  # operations of one product over the visible pairs
    return {
        # Of a token: E logits in, K gates and K ids of 4 bytes out.
        "moe_gating": KernelWork(t * (e * b + 8 * k)),
        "moe_gating_grad": KernelWork(t * (2 * e * b + 8 * k)),
        "moe_capacity": KernelWork(12 * t * k),
        # A row is read and written for each copy; ids in and slots out.
        "moe_permute": KernelWork(2 * t * k * d * b + 8 * t * k),
        "moe_combine": KernelWork((k + 1) * t * d * b + 8 * t * k),
        "moe_combine_grad": KernelWork((2 * k + 1) * t * d * b + 12 * t * k),
        # 2F in and F out of each assignment; backward 2F and F in, 2F out.
        "swiglu": KernelWork(3 * t * k * s.ffn * b),
        "swiglu_grad": KernelWork(5 * t * k * s.ffn * b),
        # Bytes: q and the result, k and v. FLOPs: q k^T and p v; the backward passes make the scores again, hence three
        # products for q (scores, dp, dq) and four for k and v (scores, dp, dk, dv).
        "attention": KernelWork(2 * query + 2 * key, 2 * pairs),
        "attention_grad_query": KernelWork(3 * query + 2 * key, 3 * pairs),
        "attention_grad_key_value": KernelWork(2 * query + 4 * key, 4 * pairs),
        "attention_delta": KernelWork(2 * query),
        "attention_sink": KernelWork(2 * query),
    }
