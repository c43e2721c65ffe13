"""A layout's step time and memory: layers summed over stages, stages through the schedule, then the step's end.

`CostModel` remembers what layouts share (a layer's time, a split) and evaluates all ZeRO stages and recomputation
policies of a layout together, so that a search of some hundred thousand layouts takes seconds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import accumulate
from math import inf

import numpy as np

from mindmoe.models.gpt_oss.parameters import utilization
from mindmoe.pipeline.schedule import Durations, Kind, build_schedule, simulate
from mindmoe.plan import network
from mindmoe.plan.architecture import Architecture, LayerShape
from mindmoe.plan.compute import Precision, Term, Work, dispatch_time, head_terms, layer_terms
from mindmoe.plan.hardware import Hardware
from mindmoe.plan.host_terms import (
    TENSORS_A_LAYER,
    Machine,
    crowded,
    end_of_step,
    host_head_terms,
    host_layer_terms,
    once_a_step,
)
from mindmoe.plan.layout import DISPATCHERS, RECOMPUTES, ZEROS, Dispatcher, Layout, Split
from mindmoe.plan.memory import (
    ACCELERATOR,
    PUBLISHED,
    Array,
    Memory,
    in_flight,
    layer_params,
    memory_terms,
    on_cpu,
    pick,
)
from mindmoe.plan.network import RankSpan
from mindmoe.plan.routing import Percentile, imbalance

_STEADY_ROUNDS = 7  # micro-batches, in units of the stages, after which a step grows linearly
_OPTIMIZER_TRAFFIC = 34.0  # bytes a parameter: gradient read for its norm and again, states read and written
_FORWARD, _BACKWARD, _WEIGHT = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is trained, whatever the layout.

    Attributes:
        routing_time: imbalance that the step time reckons with; `balanced` where a benchmark forces balance.
        routing_memory: imbalance that must still fit.
        max_imbalance: bound that a capacity factor puts on the imbalance.
        ours: whether mindmoe trains it: stages compute their forward pass again, and weights are fp32. Published runs
            of others are not ours.
    """

    architecture: Architecture
    seq_length: int
    global_batch_size: int
    precision: Precision = "bf16"
    routing_time: Percentile = "p50"
    routing_memory: Percentile = "p99"
    max_imbalance: float = inf
    ours: bool = False

    def imbalance(self, ep: int, percentile: Percentile) -> float:
        """Rows of the busiest expert rank over the mean."""
        architecture = self.architecture
        return min(self.max_imbalance, imbalance(architecture.experts, architecture.top_k, ep, percentile))

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.seq_length * self.global_batch_size

    @property
    def flops(self) -> float:
        """Model FLOPs of one step."""
        return self.tokens * self.architecture.flops_per_token(self.seq_length)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The planner's answer for one layout.

    Attributes:
        step_s: time of one step [s].
        parts: that time by cause [s]; the micro-batches' terms are those of the slowest stage.
        memory: of the fullest stage, number `memory_stage`, under the workload's imbalance.
    """

    layout: Layout
    workload: Workload
    hardware: Hardware
    step_s: float
    parts: Mapping[str, float] = field(repr=False)
    memory: Memory
    memory_stage: int

    @property
    def tokens_per_s(self) -> float:
        """Of the whole cluster."""
        return self.workload.tokens / self.step_s

    @property
    def mfu(self) -> float:
        """Model FLOPs per second over the bf16 peak of all cards, or the fp32 peak of a run in fp32."""
        peak = self.hardware.peak("fp32" if self.workload.precision == "fp32" else "bf16")
        per_token = self.workload.architecture.flops_per_token(self.workload.seq_length)
        return utilization(per_token, self.tokens_per_s, self.layout.cards * peak)

    @cached_property
    def limiter(self) -> str:
        """The largest part of the step besides matrix products, with its share."""
        rest = {name: seconds for name, seconds in self.parts.items() if name not in ("gemm", "experts")}
        name = max(rest, key=lambda key: rest[key])
        return f"{name} {100 * rest[name] / self.step_s:.0f}%"


@dataclass(frozen=True, slots=True)
class _LayerTimes:
    """Running sums over the layers: `passes[recompute, pass, n]` is the time of the first n layers [s].

    Attributes:
        head: time of the head by pass [s]; `head_layers` the same in units of a mean layer, to two digits.
    """

    passes: Array
    head: Array
    head_layers: float


@dataclass(frozen=True, slots=True)
class Screening:
    """Step time [s] and memory of the fullest rank [bytes] over (layout, ZeRO stage, recomputation policy)."""

    step_s: Array
    memory: Array


@cache
def split_layers(
    count: int, stages: int, chunks: int, head_layers: float, how: Split, least: int = 0
) -> tuple[int, ...]:
    """Layers of each piece, in the order of the forward pass.

    `balanced` makes the last piece, which also holds the head (worth `head_layers` layers), so small that the
    slowest piece is as fast as can be. `even` does so only where the layers do not divide evenly. The last piece keeps
    at least `least` layers. With more pieces than layers the head, and then the embedding, is a piece of its own, as
    Megatron counts them.
    """
    pieces = stages * chunks
    if pieces > count:
        return ((0,) * (pieces - count - 1) + (1,) * count + (0,))[:pieces]
    if pieces == 1 or (how == "even" and count % pieces == 0):
        return (count // pieces,) * pieces

    def slowest(last: int) -> tuple[float, int]:
        return max(-(-(count - last) // (pieces - 1)), last + head_layers), -last

    most = min(count - (pieces - 1), -(-count // pieces))  # no piece but the head's may be empty
    last = min(range(min(least, most), max(most, 0) + 1), key=slowest)
    each, extra = divmod(count - last, pieces - 1)
    # The extra layers go last to the first stage, which holds most activations, and to the stage of the head.
    order = sorted(range(pieces - 1), key=lambda piece: (piece % stages in (0, stages - 1), piece))
    heavy = set(order[:extra])
    return (*(each + (piece in heavy) for piece in range(pieces - 1)), last)


class CostModel:
    """Estimates layouts of one workload on one kind of hardware."""

    def __init__(self, hardware: Hardware, workload: Workload):
        self.hardware = hardware
        self.workload = workload
        self._terms: dict[tuple[Work, LayerShape], list[Term]] = {}
        self._times: dict[Work, _LayerTimes] = {}
        self._replicas: dict[tuple[int, ...], Array] = {}
        self._counts: dict[tuple[int, tuple[int, ...]], Array] = {}

    def work(self, layout: Layout) -> Work:
        """The part of a layout on which a layer's time depends."""
        return Work(
            seq_length=self.workload.seq_length,
            tp=layout.tp,
            cp=layout.cp,
            ep=layout.ep,
            etp=layout.etp,
            tokens=layout.micro_batch_size * self.workload.seq_length // layout.cp,
            dispatcher=layout.dispatcher,
            imbalance=self.workload.imbalance(layout.ep, self.workload.routing_time),
            precision=self.workload.precision,
        )

    def terms(self, work: Work, layer: LayerShape) -> list[Term]:
        """The terms of a layer."""
        key = work, layer
        if key not in self._terms:
            build = host_layer_terms if self.hardware.host else layer_terms
            self._terms[key] = build(self.hardware, self.workload.architecture, layer, work)
        return self._terms[key]

    def head_terms(self, work: Work) -> list[Term]:
        """The terms of the head."""
        build = host_head_terms if self.hardware.host else head_terms
        return build(self.hardware, self.workload.architecture, work)

    def best_dispatcher(self, layout: Layout, kinds: Sequence[Dispatcher] = DISPATCHERS) -> Dispatcher:
        """The fastest way to reach the experts; the others differ in nothing but this time and a buffer."""
        architecture, work = self.workload.architecture, self.work(layout)
        last = architecture.layers[-1]

        def seconds(kind: Dispatcher) -> float:
            chosen = replace(work, dispatcher=kind)
            if self.hardware.host is None:
                return dispatch_time(self.hardware, architecture.hidden_size, last, chosen)
            terms = self.terms(chosen, last)
            return sum(term.forward + term.backward for term in terms if term.category == "ep comm")

        return min(kinds, key=seconds)

    def _layer_times(self, work: Work) -> _LayerTimes:
        if work not in self._times:
            architecture = self.workload.architecture
            kinds = np.array([_pass_times(self.terms(work, layer)) for layer in architecture.kinds])  # kind, rc, pass
            per_layer = kinds[list(architecture.kind_numbers)].transpose(1, 2, 0)
            sums = np.concatenate([np.zeros((*per_layer.shape[:2], 1)), np.cumsum(per_layer, axis=2)], axis=2)
            head = _pass_times(self.head_terms(work))[0]
            mean = sums[0, :, -1].sum() / len(architecture.layers)
            self._times[work] = _LayerTimes(sums, np.array(head), round(sum(head) / mean, 2))
        return self._times[work]

    def split(self, layout: Layout) -> tuple[int, ...]:
        """Layers of each piece, in the order of the forward pass."""
        return self._split(layout, self._layer_times(self.work(layout)))

    def _split(self, layout: Layout, times: _LayerTimes) -> tuple[int, ...]:
        count, least = len(self.workload.architecture.layers), int(self.workload.ours)
        return split_layers(count, layout.pp, layout.chunks, times.head_layers, layout.split, least)

    def _piece_times(self, layout: Layout, times: _LayerTimes) -> Array:
        """Time of each piece over (recomputation policy, pass, piece) [s], with exposed stage-to-stage sends."""
        bounds = list(accumulate(self._split(layout, times), initial=0))
        pieces = times.passes[:, :, bounds[1:]] - times.passes[:, :, bounds[:-1]]
        pieces[:, :, -1] += times.head
        if layout.pp > 1 and self.workload.ours:  # a stage keeps inputs only
            forward, backward = pieces[:, _FORWARD].copy(), pieces[:, _BACKWARD].copy()
            pieces[:, _BACKWARD] += forward
            if layout.schedule == "zb_h1":
                pieces[:, _WEIGHT] += forward + backward
        if layout.pp > 1:
            rows = layout.micro_batch_size * self.workload.seq_length / (layout.cp * layout.tp)
            elements = rows * self.workload.architecture.hidden_size
            if self.hardware.host is None:
                crossing = network.send(self.hardware, layout.replicas * layout.tp, 2.0 * elements)
            else:
                crossing = Machine(self.hardware, self.workload.precision).message(4.0 * elements)
            pieces[:, :_WEIGHT] += (1 - self.hardware.efficiency.overlap_pp) * crossing
        return pieces

    def _stage_times(self, layout: Layout, pieces: Array) -> Array:
        """Time of each stage for one micro-batch over (recomputation policy, pass, stage) [s]."""
        return pieces.reshape(*pieces.shape[:2], layout.chunks, layout.pp).sum(axis=2)

    def _pipeline_closed_form(self, layout: Layout, stages: Array) -> Array:
        """Time of all micro-batches by recomputation policy [s]: exact for equal stages, near for unequal ones."""
        totals = stages.sum(axis=1)
        slowest = totals.max(axis=-1)
        steady = layout.microbatches(self.workload.global_batch_size) * slowest
        if layout.schedule == "zb_h1":
            bubble = np.maximum(0.0, stages[:, _FORWARD] + stages[:, _BACKWARD] - stages[:, _WEIGHT])
            running = steady + bubble.sum(axis=-1) - bubble.max(axis=-1)
        else:
            running = steady + (totals.sum(axis=-1) - slowest) / layout.chunks
        busy = layout.microbatches(self.workload.global_batch_size) * totals.mean(axis=-1)
        return crowded(self.hardware, running, busy)

    def _pipeline_simulated(self, layout: Layout, pieces: Array) -> float:
        """Time of all micro-batches [s] from the schedule's lists; long steps continue the steady state."""
        stages = layout.pp
        forward, backward, weight = pieces
        merged = layout.schedule != "zb_h1"

        def times(piece: int) -> dict[Kind, float]:
            late = 0.0 if merged else float(weight[piece])
            return {"F": float(forward[piece]), "B": float(backward[piece] + weight[piece]) - late, "W": late}

        durations: Durations = [
            [times(chunk * stages + stage) for chunk in range(layout.chunks)] for stage in range(stages)
        ]

        def run(count: int) -> float:
            return simulate(build_schedule(layout.schedule, stages, count, layout.chunks), durations).makespan

        count = layout.microbatches(self.workload.global_batch_size)
        long = (_STEADY_ROUNDS + 1) * stages
        if count <= long:
            return run(count)
        known, before = run(long), run(long - stages)
        return known + (count - long) * (known - before) / stages

    def _replica_times(self, layout: Layout) -> Array:
        """Time [s] of what replicas exchange once a step, for each micro-batch, and of the optimizer, by ZeRO stage.

        Returns:
            Array over (once, each, optimizer; ZeRO stage; 1).
        """
        key = layout.dp, layout.tp, layout.pp, layout.ep, layout.cp, layout.etp
        if key in self._replicas:
            return self._replicas[key]
        hardware, architecture = self.hardware, self.workload.architecture
        kinds = np.array([layer_params(layer, layout) for layer in architecture.kinds])
        params = kinds[list(architecture.kind_numbers)].sum(axis=0) / layout.pp
        params[0] += architecture.embedding_params / layout.tp
        groups = RankSpan(layout.replicas, layout.tp), RankSpan(layout.expert_replicas, layout.ep * layout.etp)
        times = np.zeros((3, len(ZEROS), 1))
        for held, group in zip(params, groups, strict=True):
            gradients = network.all_gather(hardware, group, 4.0 * held)
            weights = network.all_gather(hardware, group, (4.0 if self.workload.ours else 2.0) * held)
            times[0, :, 0] += [2 * gradients, gradients + weights, weights, 0.0]
            times[1, :, 0] += [0.0, 0.0, gradients, gradients + 2 * weights]
            moved = _OPTIMIZER_TRAFFIC * held * np.array([1.0, *[1.0 / group.size] * 3])
            times[2, :, 0] += moved / (hardware.hbm_tb_s * 1e12 * hardware.efficiency.hbm)
        self._replicas[key] = times
        return times

    def _end_of_step(self, layout: Layout, window: Array) -> tuple[Array, Array]:
        """Exposed gradient and weight collectives, and the optimizer [s], over (ZeRO stage, recomputation policy).

        Args:
            window: time of one micro-batch on the slowest stage, behind which a step's one exchange can hide [s].
        """
        if self.hardware.host is not None:
            return self._end_on_host(layout)
        once, each, update = self._replica_times(layout)
        count = layout.microbatches(self.workload.global_batch_size)
        overlap = self.hardware.efficiency.overlap_dp
        exposed = np.maximum((1 - overlap) * once, once - window)
        exposed = exposed + count * np.maximum((1 - overlap) * each, each - overlap * window)
        return exposed, update

    def _end_on_host(self, layout: Layout) -> tuple[Array, Array]:
        """The same where nothing hides behind anything, over (ZeRO stage, recomputation policy)."""
        params, groups = self._held(layout)
        exchange, update = (
            np.zeros(len(ZEROS)),
            np.full(len(ZEROS), once_a_step(self.hardware, self.workload.precision)),
        )
        tensors = TENSORS_A_LAYER * len(self.workload.architecture.layers) // layout.pp // 2
        count = layout.microbatches(self.workload.global_batch_size)
        for held, group in zip(params, groups, strict=True):
            parts = end_of_step(self.hardware, self.workload.precision, held, tensors, group.size, count)
            exchange += parts[0]
            update += parts[1]
        return np.repeat(exchange[:, None], len(RECOMPUTES), axis=1), update[:, None]

    def _held(self, layout: Layout) -> tuple[Array, tuple[RankSpan, RankSpan]]:
        """Mean dense and expert parameters of a rank, and the ranks that hold the same."""
        architecture = self.workload.architecture
        kinds = np.array([layer_params(layer, layout) for layer in architecture.kinds])
        params = kinds[list(architecture.kind_numbers)].sum(axis=0) / layout.pp
        params[0] += (1 if architecture.tied_embeddings else 2) * architecture.embedding_params / layout.tp / layout.pp
        return params, (RankSpan(layout.replicas, layout.tp), RankSpan(layout.expert_replicas, layout.ep * layout.etp))

    def _stage_counts(self, pp: int, split: tuple[int, ...]) -> Array:
        """Layers over (kind, pipeline stage)."""
        if (pp, split) not in self._counts:
            architecture = self.workload.architecture
            counts = np.zeros((len(architecture.kinds), pp))
            layer = 0
            for piece, size in enumerate(split):
                for number in architecture.kind_numbers[layer : layer + size]:
                    counts[number, piece % pp] += 1
                layer += size
            self._counts[pp, split] = counts
        return self._counts[pp, split]

    def _memory_terms(self, layouts: Sequence[Layout], percentile: Percentile) -> dict[str, Array]:
        """Terms over (layout, ZeRO stage, recomputation policy, pipeline stage) of layouts with equal degrees."""
        times, first = self._layer_times(self.work(layouts[0])), layouts[0]
        count = first.microbatches(self.workload.global_batch_size)
        counts = np.stack([self._stage_counts(layout.pp, self._split(layout, times)) for layout in layouts])
        held = np.array([in_flight(layout.schedule, layout.pp, count, layout.chunks) for layout in layouts])
        chunks = np.array([[layout.chunks] for layout in layouts])
        tokens = first.micro_batch_size * self.workload.seq_length // first.cp
        chunked = chunks if self.workload.ours and first.pp > 1 else None
        holds = PUBLISHED if not self.workload.ours else ACCELERATOR
        if self.hardware.host is not None:
            holds = on_cpu(self.workload.precision)
        return memory_terms(
            holds,
            self.workload.architecture,
            first,
            counts=counts,
            held=held / chunks,
            chunks=chunked,
            tokens=tokens,
            imbalance=self.workload.imbalance(first.ep, percentile),
            seq_length=self.workload.seq_length,
            several=count > 1,
            communicator=self.hardware.communicator_mib * 2.0**20,
            reserved=self.hardware.reserved_gib * 2.0**30,
        )

    def memories(self, layout: Layout, percentile: Percentile | None = None) -> list[Memory]:
        """Memory of a rank of each pipeline stage; `percentile` replaces the workload's imbalance."""
        terms = self._memory_terms([layout], percentile or self.workload.routing_memory)
        return [pick(terms, layout.zero, layout.recompute, stage) for stage in range(layout.pp)]

    def memory(self, layout: Layout, percentile: Percentile | None = None) -> tuple[Memory, int]:
        """Memory of the fullest rank and its pipeline stage."""
        stages = self.memories(layout, percentile)
        fullest = max(range(layout.pp), key=lambda stage: stages[stage].total)
        return stages[fullest], fullest

    def screen(self, layouts: Sequence[Layout]) -> Screening:
        """Every ZeRO stage and recomputation policy of layouts that differ in their schedule alone.

        The pipeline is in closed form: exact for equal stages, near for unequal ones.
        """
        times = self._layer_times(self.work(layouts[0]))
        stages = np.stack([self._stage_times(layout, self._piece_times(layout, times)) for layout in layouts])
        running = np.stack(
            [self._pipeline_closed_form(layout, stage) for layout, stage in zip(layouts, stages, strict=True)]
        )
        exposed, update = self._end_of_step(layouts[0], stages.sum(axis=2).max(axis=-1)[:, None])
        total = sum(self._memory_terms(layouts, self.workload.routing_memory).values())
        shape = len(layouts), len(ZEROS), len(RECOMPUTES), layouts[0].pp
        return Screening(running[:, None] + exposed + update, np.broadcast_to(total, shape).max(axis=-1))

    def estimate(self, layout: Layout) -> Estimate:
        """Step time, from the simulated schedule, and memory of a legal layout."""
        policy = RECOMPUTES.index(layout.recompute)
        pieces = self._piece_times(layout, self._layer_times(self.work(layout)))
        stages = self._stage_times(layout, pieces).sum(axis=1)
        slowest = int(stages[policy].argmax())
        window = stages[policy, slowest]
        running = self._pipeline_simulated(layout, pieces[policy])
        busy = layout.microbatches(self.workload.global_batch_size) * stages[policy].mean()
        running = float(crowded(self.hardware, np.array(running), busy))
        exposed_all, update_all = self._end_of_step(layout, stages.max(axis=-1))
        zero = ZEROS.index(layout.zero)
        exposed, update = float(exposed_all[zero, policy]), float(update_all[zero, 0])
        count = layout.microbatches(self.workload.global_batch_size)
        parts = {name: count * seconds for name, seconds in self.stage_parts(layout, slowest).items()}
        parts["pp comm"] = max(0.0, count * window - sum(parts.values()))
        parts |= {"bubble": max(0.0, running - count * window), "dp comm": exposed, "optimizer": update}
        memory, fullest = self.memory(layout)
        return Estimate(
            layout=layout,
            workload=self.workload,
            hardware=self.hardware,
            parts=parts,
            step_s=running + exposed + update,
            memory=memory,
            memory_stage=fullest,
        )

    def slowest_stage(self, layout: Layout) -> int:
        """The stage that takes longest for a micro-batch."""
        pieces = self._piece_times(layout, self._layer_times(self.work(layout)))
        return int(self._stage_times(layout, pieces)[RECOMPUTES.index(layout.recompute)].sum(axis=0).argmax())

    def stage_terms(self, layout: Layout, stage: int) -> list[tuple[int, Term]]:
        """The terms of a stage for one micro-batch, each with the number of layers that have it."""
        work, counts = self.work(layout), self._stage_counts(layout.pp, self.split(layout))[:, stage]
        layers: Counter[Term] = Counter()
        for number, kind in zip(counts, self.workload.architecture.kinds, strict=True):
            for term in self.terms(work, kind) if number else ():
                layers[term] += int(number)
        if stage == layout.pp - 1:
            layers.update(self.head_terms(work))
        return [(number, term) for term, number in layers.items()]

    def stage_parts(self, layout: Layout, stage: int) -> dict[str, float]:
        """Time of a stage for one micro-batch [s] by category, recomputation apart."""
        parts: dict[str, float] = {"recompute": 0.0}
        for layers, term in self.stage_terms(layout, stage):
            seconds = layers * (term.forward + term.backward + term.weight)
            parts[term.category] = parts.get(term.category, 0.0) + seconds
            parts["recompute"] += layers * term.repeated(layout.recompute)
            if self.workload.ours and layout.pp > 1:
                again = 2 * term.forward + term.backward if layout.schedule == "zb_h1" else term.forward
                parts["recompute"] += layers * again
        return parts


def _pass_times(terms: list[Term]) -> list[list[float]]:
    """Sums of the terms, [recomputation policy][pass]; what is recomputed belongs to the backward pass."""
    forward = sum(term.forward for term in terms)
    backward = sum(term.backward for term in terms)
    weight = sum(term.weight for term in terms)
    return [[forward, backward + sum(term.repeated(policy) for term in terms), weight] for policy in RECOMPUTES]
