"""Time of a layer, of the head and of a step's end on a machine whose ranks share its cores (see `host`).

The counts follow the program: its ops, the collectives that it composes of MindSpore's, and MindSpore's own vector ops
between them, by the bytes that they move. Ranks get an even share of the cores; where there are more ranks than
cores, everything takes as much longer.
"""

from collections.abc import Iterator
from math import ceil

import numpy as np
from numpy.typing import NDArray

from mindmoe.plan import host as counts
from mindmoe.plan.architecture import Architecture, LayerShape
from mindmoe.plan.compute import Category, Term, Work
from mindmoe.plan.hardware import Hardware
from mindmoe.plan.host import Both, HostConfig, OpName, OpRates, Verb, op_table, rate_of

_FP32 = 4.0
_MESSAGE = 2.0**20  # bytes of one message; mindmoe cuts longer ones
_FORWARD_SHARE = 1 / 3  # of what a layer takes beside its ops
TENSORS_A_LAYER = 17  # parameters of a layer, each summed by an op of its own over micro-batches


class Machine:
    """Times of ops and collectives for one of `ranks` ranks on a machine.

    Args:
        hardware: has a `host`, shared by `ranks`.
        precision: of the products.
    """

    def __init__(self, hardware: Hardware, precision: str):
        assert hardware.host is not None
        self.host: HostConfig = hardware.host
        self.ranks = self.host.ranks
        self.table = op_table(self.host, precision)
        self.kept = 4.0 if precision == "fp32" else 2.0
        threads = max(1, self.host.cores // self.ranks)
        crowd = max(1.0, self.ranks / self.host.cores)
        shared = self.host.scaling if self.ranks > 1 else 1.0  # other ranks keep the other cores busy
        self.serial = crowd / shared  # time of one thread over that alone on the machine
        self.pack = crowd / (threads * self.host.scaling if threads > 1 else shared)

    def op(self, name: OpName, both: Both, calls: int = 1) -> tuple[float, float]:
        """Forward and backward time of calls of an op of the pack [s]."""
        rates: OpRates = self.table[name]
        forward, backward = rates.forward.seconds(both[0]), rates.backward.seconds(both[1])
        return calls * self.pack * forward, calls * self.pack * backward

    def plain(self, moved: float, calls: int = 1) -> float:
        """Time of MindSpore's own vector ops that move so many bytes together [s]."""
        rate = self.table["plain"].forward
        return self.serial * (1e-6 * rate.us * (calls - 1) + rate.seconds(counts.plain(moved)))

    def around(self, name: OpName, moved: float) -> tuple[float, float]:
        """Forward and backward time of what surrounds a collective [s]; one thread does it."""
        rates, count = self.table[name], counts.plain(moved)
        return self.serial * rates.forward.seconds(count), self.serial * rates.backward.seconds(count)

    def verb(self, verb: Verb, size: int, passed: float) -> float:
        """Time of a collective that each of `size` ranks passes so many bytes to [s]."""
        if size == 1:
            return 0.0
        return rate_of(self.host, verb, self.ranks, size).seconds(counts.plain(passed))

    def message(self, passed: float) -> float:
        """Time of a message of so many bytes [s]."""
        rate = rate_of(self.host, "message", self.ranks, 2)
        return 1e-6 * rate.us * (ceil(passed / _MESSAGE) - 1) + rate.seconds(counts.plain(passed))

    def exchange(self, size: int, passed: float) -> float:
        """Time of an all-to-all of rows in messages, there and from everybody, one partner after the other [s]."""
        peers = size - 1
        return 2 * peers * self.message(passed / size) if peers else 0.0


def host_layer_terms(hardware: Hardware, architecture: Architecture, layer: LayerShape, work: Work) -> list[Term]:
    """Everything that takes time in one layer, as `compute.layer_terms` for accelerators."""
    on, dim = Machine(hardware, work.precision), architecture.hidden_size
    rows, tokens = work.tokens / work.tp, work.tokens
    terms = []
    for gemm in layer.gemms:
        if gemm.block == "ffn" and gemm.split == "none" and layer.experts:
            continue  # the router, below
        k, n = gemm.local(work.tp)
        terms.append(_term("gemm", gemm.name, on.op("linear", counts.linear(tokens, k, n, on.kept)), gemm.block))
    heads, kv_heads = layer.heads / work.tp, layer.local_kv_width(work.tp) / (2 * layer.qk_dim)
    context = min(layer.window or work.seq_length, work.seq_length / 2)
    pairs = counts.attention(tokens, context, heads, kv_heads, layer.qk_dim, on.kept)
    terms.append(_term("attention", "attention", on.op("attention", pairs)))
    terms.append(_term("vector", "norms", on.op("norm", counts.norm(rows, dim, on.kept), 2)))
    residual = on.plain(12.0 * rows * dim)
    forks = on.plain((7 * on.kept + 24.0) * rows * dim, 4)
    terms.append(Term("vector", "residuals, and gradients of what several read", residual, forks))
    if layer.experts:
        terms += _moe(on, layer, dim, work)
    gap = 1e-6 * on.host.layer_us * on.serial
    terms.append(Term("launch", "around ops", _FORWARD_SHARE * gap, (1 - _FORWARD_SHARE) * gap))
    if work.tp > 1:
        part, whole = _FP32 * rows * dim, _FP32 * tokens * dim
        gather, scatter = on.verb("all_gather", work.tp, part), on.verb("reduce_scatter", work.tp, whole)
        forward, backward = (gather + scatter + copies for copies in on.around("split_sequence", whole))
        terms.append(Term("tp comm", "sequence gathered and scattered", forward, backward))
    if work.cp > 1:
        turn = 2 * on.message(_FP32 * tokens * layer.local_kv_width(work.tp))
        terms.append(Term("cp comm", "keys and values go round", (work.cp - 1) * turn, 2 * work.cp * turn))
    return terms


def _term(category: Category, name: str, times: tuple[float, float], block: str = "attention") -> Term:
    return Term(category, name, times[0], times[1], ffn=float(block == "ffn"))


def _moe(on: Machine, layer: LayerShape, dim: int, work: Work) -> Iterator[Term]:
    """Router, experts, and what carries tokens to them."""
    rows, spread = work.tokens / work.tp, work.ep * work.etp
    score = on.op("linear", counts.linear(rows, dim, layer.experts, _FP32))
    route = on.op("routing", counts.routing(rows, layer.experts))
    yield _term("vector", "router", (score[0] + route[0], score[1] + route[1]), "ffn")
    arriving = rows * work.etp * layer.top_k * work.imbalance
    ffn = layer.expert_ffn / work.etp
    yield _term(
        "experts",
        "experts",
        on.op("experts", counts.experts(arriving, dim, ffn, layer.experts / work.ep, on.kept)),
        "ffn",
    )
    if spread == 1:
        return
    packed = _FP32 * rows * (dim + 2 * layer.held_slots(True))
    if work.dispatcher == "all_gather":
        carry = on.verb("all_gather", spread, packed) + on.verb("reduce_scatter", spread, spread * _FP32 * rows * dim)
        forward, backward = (carry + rest for rest in on.around("gathered_tokens", spread * packed))
        yield Term("ep comm", "all tokens to all ranks", forward, backward, ffn=1.0)
        return
    shared = on.verb("all_gather", work.etp, packed) + on.verb("reduce_scatter", work.etp, work.etp * packed)
    carried = _FP32 * rows * work.etp * layer.top_k * dim
    move = 2 * on.exchange(work.ep, carried) + shared
    told = on.verb("all_to_all", work.ep, _FP32 * layer.experts)
    forward, backward = (move + rest for rest in on.around("routed_rows", carried))
    yield Term("ep comm", "rows to the ranks of their experts", forward + told, backward, ffn=1.0)


def host_head_terms(hardware: Hardware, architecture: Architecture, work: Work) -> list[Term]:
    """The embedding, and the LM head with the loss; split over the vocabulary it is of MindSpore's own ops."""
    on, tokens, dim = Machine(hardware, work.precision), work.tokens, architecture.hidden_size
    columns = architecture.vocab_size / work.tp
    norm = on.op("norm", counts.norm(tokens / work.tp, dim, on.kept))
    gap = 1e-6 * on.host.micro_batch_us * on.serial / 2
    states, table = 8.0 * tokens * dim, _FP32 * architecture.embedding_params / work.tp
    terms = [
        Term("vector", "last norm", *norm, in_layer=False),
        Term("vector", "embedding", on.plain(states), on.plain(states + table), in_layer=False),
        Term("launch", "around a micro-batch", gap, gap, in_layer=False),
    ]
    if work.tp == 1:
        both = on.op("loss", counts.loss(tokens, dim, columns))
        return [Term("gemm", "LM head and loss", *both, in_layer=False), *terms]
    gather = on.verb("all_gather", work.tp, _FP32 * tokens / work.tp * dim)
    split = on.op("split_loss", counts.split_loss(tokens, dim, columns))
    times = split[0] + gather, split[1] + on.verb("reduce_scatter", work.tp, _FP32 * tokens * dim)
    return [Term("gemm", "LM head and loss in plain ops", *times, in_layer=False), *terms]


def end_of_step(
    hardware: Hardware, precision: str, held: float, tensors: int, replicas: int, micro_batches: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exchange of gradients and weights, and sums over micro-batches with the update [s], by ZeRO stage.

    Args:
        hardware: the machine.
        precision: of the products.
        held: parameters on this rank, of one kind of weights.
        tensors: parameters by name.
        replicas: ranks that hold the same.
        micro_batches: of a step.
    """
    on, size, count = Machine(hardware, precision), _FP32 * held, micro_batches
    share = np.array([1.0, *[1.0 / replicas] * 3])
    sums = (count - 1) * np.array([on.plain(3 * part * size, tensors) for part in (1.0, 1.0, share[2], share[3])])
    adam = on.table["update"].forward
    update = sums + on.pack * np.array([adam.seconds(counts.update(held * part)) for part in share])
    if replicas == 1:
        return np.zeros(4), update
    reduce = on.verb("all_reduce", replicas, size) + on.plain(4 * size, 2 * tensors)
    cut, whole = on.around("zero", size)
    scatter = on.verb("reduce_scatter", replicas, size) + cut
    gather = on.verb("all_gather", replicas, size / replicas) + whole
    exchange = np.array([reduce, scatter + gather, count * scatter + gather, count * (scatter + 2 * gather)])
    return exchange, update


def once_a_step(hardware: Hardware, precision: str) -> float:
    """What a step takes beside all this, with the sum of what its ranks report [s]."""
    on = Machine(hardware, precision)
    return 1e-6 * on.host.step_us * on.serial + on.verb("all_reduce", on.ranks, _FP32)


def crowded(hardware: Hardware, running: NDArray[np.float64], busy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time of a pipeline whose idle stages leave their cores to others [s].

    Args:
        hardware: the machine.
        running: the same where each stage has its even share of the cores and no more.
        busy: mean time that a stage works.
    """
    host = hardware.host
    if host is None or host.ranks <= host.cores:
        return running
    return np.maximum(running * host.cores / host.ranks, busy)
