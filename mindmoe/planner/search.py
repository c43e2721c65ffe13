"""Every legal layout of a run on a number of cards: which fit, which are fastest, and why the others are out.

The search enumerates degrees, micro-batch, schedule, ZeRO stage and recomputation in full. Only the dispatcher is
chosen on the spot: for given degrees the fastest is best for every other choice. The pipeline is in closed form at
first; the schedules of the best layouts are then simulated, and that decides.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mindmoe.errors import UserError
from mindmoe.moe.config import RouterConfig
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.rules import routing_problems
from mindmoe.pipeline.schedule import ScheduleName
from mindmoe.planner.layout import (
    DISPATCHERS,
    RECOMPUTES,
    ZEROS,
    Dispatcher,
    Layout,
    batch_problem,
    mesh_problem,
    runs_here,
)
from mindmoe.planner.step import CostModel, Estimate

MICRO_BATCHES = (1, 2, 4, 8)
MAX_CHUNKS = 8
NOT_OURS = "mindmoe does not have this recomputation policy, or not with these stages"
OUT_OF_MEMORY = "does not fit the memory of a card"
_MESHES_SIMULATED = 16  # meshes whose best layouts are simulated
_LAYOUTS_SIMULATED = 4  # layouts of each of these
_POLICIES = len(ZEROS) * len(RECOMPUTES)


@dataclass(frozen=True, slots=True)
class Family:
    """A layout for all its ZeRO stages and recomputation policies: time [s] and bytes over (ZeRO, recomputation)."""

    layout: Layout
    step_s: NDArray[np.float64]
    memory: NDArray[np.float64]

    def member(self, flat: int) -> Layout:
        """The layout under the policies with flat index `flat`."""
        zero, recompute = divmod(flat, len(RECOMPUTES))
        return replace(self.layout, zero=ZEROS[zero], recompute=RECOMPUTES[recompute])


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: one layout for each choice of (tp, pp, ep, etp), the fastest that fits, fastest choice first.
        pareto: layouts that no other beats in both memory [bytes] and closed-form step time [s], by memory.
        points: (memory, step time) of every layout that fits.
        rejected: number of layouts by the reason why they are out.
    """

    best: list[Estimate]
    pareto: list[tuple[float, float, Layout]]
    points: NDArray[np.float64]
    rejected: Counter[str]

    @property
    def considered(self) -> int:
        """Number of layouts looked at."""
        return len(self.points) + self.rejected.total()


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


def _schedules(pp: int, layers: int) -> Iterator[tuple[ScheduleName, int]]:
    """The schedules and chunk counts worth a name; one stage has nothing to schedule."""
    yield "1f1b", 1
    if pp > 1:
        yield "gpipe", 1
        yield "zb_h1", 1
        for chunks in range(2, min(MAX_CHUNKS, layers // pp) + 1):
            yield "interleaved", chunks


def _meshes(model: CostModel, cards: int) -> Iterator[Layout]:
    """All degrees that multiply to the number of cards, legal or not; tensor groups stay inside a node."""
    architecture = model.workload.architecture
    experts = _divisors(architecture.experts) if architecture.experts else [1]
    for tp, pp in product(_divisors(cards), _divisors(cards)):
        if tp > min(8, model.hardware.cards_per_node) or pp > len(architecture.layers) or cards % (tp * pp):
            continue
        for cp in _divisors(cards // (tp * pp)):
            if cp > 16 or (cp > 1 and model.workload.seq_length // cp < 1024):  # shorter pieces only add exchanges
                continue
            for ep, etp in product(experts, sorted({1, tp})):
                yield Layout(dp=cards // (tp * pp * cp), tp=tp, pp=pp, ep=ep, cp=cp, etp=etp)


def _routing_problem(model: CostModel, layout: Layout) -> str | None:
    """Why the router refuses the layout, in words of one key; `mindmoe config validate` names the settings."""
    moe = model.workload.moe
    if moe is None or isinstance(moe.router, RouterConfig):
        return None
    parallel = ParallelConfig(
        dp=layout.dp, tp=layout.tp, pp=layout.pp, cp=layout.cp, schedule=layout.schedule, chunks=layout.chunks
    )
    refused = next(routing_problems(moe, parallel), None)
    return None if refused is None else f"moe.router.type={moe.router.type} does not work so spread"


def _families(model: CostModel, cards: int, rejected: Counter[str]) -> Iterator[Family]:
    """Screens every legal layout; adds the illegal ones to `rejected`."""
    workload = model.workload
    layers = len(workload.architecture.layers)
    for mesh in _meshes(model, cards):
        schedules = list(_schedules(mesh.pp, layers))
        problem = mesh_problem(workload.architecture, mesh, workload.seq_length)
        if problem:
            rejected[problem] += len(MICRO_BATCHES) * len(schedules) * _POLICIES
            continue
        for micro_batch_size in MICRO_BATCHES:
            layout = replace(mesh, micro_batch_size=micro_batch_size)
            if mesh.ep > 1:
                layout = replace(layout, dispatcher=model.best_dispatcher(layout, _dispatchers(model, layout)))
            candidates = []
            for schedule, chunks in schedules:
                candidate = replace(layout, schedule=schedule, chunks=chunks)
                problem = batch_problem(candidate, workload.global_batch_size) or _routing_problem(model, candidate)
                if problem:
                    rejected[problem] += _POLICIES
                else:
                    candidates.append(candidate)
            if candidates:
                screening = model.screen(candidates)
                yield from map(Family, candidates, screening.step_s, screening.memory)


def _dispatchers(model: CostModel, layout: Layout) -> tuple[Dispatcher, ...]:
    """What may carry tokens: mindmoe's two hops go over whole nodes, with whole experts."""
    node = model.hardware.cards_per_node
    if model.workload.ours and (layout.etp > 1 or layout.ep % node or layout.ep <= node):
        return tuple(kind for kind in DISPATCHERS if kind != "two_hop")
    return DISPATCHERS


def _mesh(layout: Layout) -> tuple[int, ...]:
    """What tells layouts apart in the list of the best."""
    return layout.tp, layout.pp, layout.ep, layout.etp


def search(model: CostModel, cards: int) -> SearchResult:
    """The best layouts of a workload on `cards` cards.

    Raises:
        UserError: no layout is legal and fits.
    """
    limit = model.hardware.memory_gib * 2.0**30
    rejected: Counter[str] = Counter()
    families = list(_families(model, cards, rejected))
    if not families:
        raise UserError(
            f"no layout of {cards} cards is legal: {_reasons(rejected)}",
            "change the number of cards or train.global_batch_size",
        )
    step_s = np.array([family.step_s.ravel() for family in families])
    memory = np.array([family.memory.ravel() for family in families])
    fits = memory <= limit
    if model.workload.ours:
        tied = model.workload.architecture.tied_embeddings
        runs = np.array([runs_here(family.layout, tied).ravel() for family in families])
        rejected[NOT_OURS] += int((~runs).sum())
        memory = np.where(runs, memory, np.inf)
        rejected[OUT_OF_MEMORY] -= int((~runs).sum())
        fits &= runs
    rejected[OUT_OF_MEMORY] += int((~fits).sum())
    if not fits.any():
        smallest, flat = np.unravel_index(memory.argmin(), memory.shape)
        raise UserError(
            f"no layout of {cards} cards fits {model.hardware.memory_gib:.0f} GiB: the smallest needs "
            f"{memory.min() / 2**30:.1f} GiB ({families[smallest].member(int(flat)).describe()})",
            "use more cards, a shorter train.seq_length or a smaller model",
        )
    rows, flats = np.nonzero(fits)
    # Among equals the least ZeRO stage and recomputation wins, for it comes first.
    order = np.argsort(step_s[rows, flats], kind="stable")
    ranked = [(int(rows[place]), int(flats[place])) for place in order]
    best = _simulate_best(model, families, ranked)
    points = np.stack([memory[rows, flats], step_s[rows, flats]], axis=1)
    pareto = [
        (memory[row, flat], step_s[row, flat], families[row].member(flat))
        for row, flat in _pareto(memory, step_s, ranked)
    ]
    return SearchResult(best=best, pareto=pareto, points=points, rejected=rejected)


def _simulate_best(model: CostModel, families: list[Family], ranked: list[tuple[int, int]]) -> list[Estimate]:
    """Simulates the first layouts of the first meshes of the ranking; the fastest of each mesh, fastest first."""
    chosen: dict[tuple[int, ...], list[Layout]] = {}
    for row, flat in ranked:
        mesh = _mesh(families[row].layout)
        if mesh not in chosen and len(chosen) == _MESHES_SIMULATED:
            continue
        group = chosen.setdefault(mesh, [])
        if len(group) < _LAYOUTS_SIMULATED:
            group.append(families[row].member(flat))
        if len(chosen) >= _MESHES_SIMULATED and all(len(group) >= _LAYOUTS_SIMULATED for group in chosen.values()):
            break
    fastest = [
        min((model.estimate(layout) for layout in group), key=lambda estimate: estimate.step_s)
        for group in chosen.values()
    ]
    return sorted(fastest, key=lambda estimate: estimate.step_s)


def _pareto(
    memory: NDArray[np.float64], step_s: NDArray[np.float64], ranked: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The layouts of the ranking (by time) that need less memory than all faster ones, by memory."""
    front: list[tuple[int, int]] = []
    least = np.inf
    for row, flat in ranked:
        if memory[row, flat] < least:
            least = memory[row, flat]
            front.append((row, flat))
    return front[::-1]


def _reasons(rejected: Counter[str]) -> str:
    return "; ".join(f"{reason} ({count})" for reason, count in rejected.most_common(3))
