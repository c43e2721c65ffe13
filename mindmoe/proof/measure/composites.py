"""What MindSpore's own ops do around collectives, timed with stand-ins for the partners: cases for `measure.kernels`.

Splitting the vocabulary, the sequence or the experts costs more than the exchange: the loss is no longer one op of the
pack, and tokens are packed, gathered, sliced and summed by MindSpore.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.moe.dispatch.all_to_all import RowExchange
from mindmoe.moe.dispatch.rows import pack_tokens, unpack_tokens
from mindmoe.ops.contract import OpShape
from mindmoe.ops.cpu.cross_entropy import CrossEntropyPart
from mindmoe.ops.cpu.pack import Precision
from mindmoe.ops.select import cpu_ops
from mindmoe.parallel.collectives import build_all_gather, build_reduce_scatter
from mindmoe.parallel.groups import Group
from mindmoe.parallel.tensor import VocabCrossEntropy, build_gather_sequence, build_row_linear
from mindmoe.plan import host
from mindmoe.plan.host import Both, OpName
from mindmoe.proof.measure.steps import MODEL

Composite = tuple[OpName, Both, Callable[..., Any], tuple[Tensor, ...], Tensor]
"""Name, counts, function, its arguments, and the gradient of its result."""

_PAIR = Group(axis="measure", name="", ranks=(0, 1), index=0, stand_in=True)
_SHAPES = ((4, 512, 256), (1, 512, 256))  # batch, length, hidden
_VOCABULARY, _EXPERTS, _TOP_K = 4096, 32, 4
_RNG = np.random.default_rng(1)


def composites(precision: Precision) -> Iterator[Composite]:
    """Everything that is timed so; groups have two ranks."""
    for batch, length, dim in _SHAPES:
        tokens = batch * length
        yield (
            "split_loss",
            host.split_loss(tokens, dim, _VOCABULARY),
            _loss(precision, tokens),
            (_real(tokens, dim), _real(_VOCABULARY, dim)),
            Tensor(np.float32(1.0)),
        )
        half, whole = _real(batch, length // 2, dim), _real(batch, length, dim)
        yield "split_sequence", host.around(4.0 * tokens * dim), _sequence, (half, whole, _real(dim)), half
        gates, ids = _real(tokens, _TOP_K), np.argsort(_RNG.random((tokens, _EXPERTS)), 1)[:, :_TOP_K]
        chosen, flat = Tensor(ids.astype(np.int32)), _real(tokens, dim)
        rows = host.around(4.0 * tokens * _TOP_K * dim)
        yield "routed_rows", rows, _rows(precision, chosen), (flat, gates), flat
        gathered = host.around(2 * 4.0 * tokens * (dim + 2 * _TOP_K))
        yield "gathered_tokens", gathered, lambda x, g, ids=chosen: _tokens(x, g, ids), (flat, gates), flat


def _real(*shape: int) -> Tensor:
    return Tensor(0.1 * _RNG.standard_normal(shape, np.float32))


def _loss(precision: Precision, tokens: int) -> Callable[[Tensor, Tensor], Tensor]:
    loss = VocabCrossEntropy(_PAIR, CrossEntropyPart(precision))
    labels, mask = Tensor(_RNG.integers(0, _VOCABULARY, tokens, np.int32)), ops.ones((tokens,), ms.float32)
    return lambda x, w: loss(x, w, labels, mask)[0]


def _sequence(half: Tensor, partial: Tensor, bias: Tensor) -> Tensor:
    """One gather and one scatter of the sequence, with the bias and the residual that follow."""
    whole = build_gather_sequence(_PAIR)(half)
    return build_row_linear(lambda x, *_: x, _PAIR)(whole + partial, bias, bias, half)


def _rows(precision: Precision, ids: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Rows to the ranks of their experts and back, through no experts."""
    model = ModelConfig.model_validate({**MODEL, "num_hidden_layers": 1})
    shape = OpShape(model=model, moe=None, seq_length=ids.shape[0], precision=precision)
    kernels = replace(cpu_ops(shape, 1), expert_ffn=lambda rows, *_: rows)
    local, exchange = Tensor(np.zeros((_EXPERTS // 2, 1), np.float32)), RowExchange(kernels, _EXPERTS, _PAIR)
    return lambda x, g: exchange(x, g, ids, (local,) * 4)


def _tokens(x: Tensor, gates: Tensor, ids: Tensor) -> Tensor:
    """All tokens to all ranks and their sums back."""
    everywhere = build_all_gather(_PAIR, 0)(pack_tokens(x, gates, ids))
    tokens, all_gates, _ = unpack_tokens(everywhere, _TOP_K)
    return build_reduce_scatter(_PAIR, 0)(tokens * all_gates.sum(1, keepdims=True))
