"""Every legal layout of a run on a number of cards: which fit, which are fastest, and why the others are out.

What is legal says `parallel.legality`, asked as soon as a layout is known so far as a rule reads. Degrees, micro-batch,
schedule, ZeRO stage and recomputation are enumerated in full; only the dispatcher is chosen on the spot, for with given
degrees the fastest is best for every other choice. The pipeline is in closed form at first; the schedules of the best
layouts are then simulated, and that decides.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.parallel.legality import facts, in_order, refusal
from mindmoe.pipeline.schedule import ScheduleName
from mindmoe.plan.layout import CONFIG_RECOMPUTE, DISPATCHERS, RECOMPUTES, ZEROS, Dispatcher, Layout
from mindmoe.plan.step import CostModel, Estimate

MICRO_BATCHES = (1, 2, 4, 8)
MAX_CHUNKS = 8
OUT_OF_MEMORY = "does not fit the memory of a card"
_USUAL_TP, _USUAL_PIECE = 8, 1024  # more tensor ranks, or shorter pieces of a sequence, only add exchanges
_MESHES_SIMULATED = 16  # meshes whose best layouts are simulated
_LAYOUTS_SIMULATED = 4  # layouts of each of these
_POLICIES = list(product(ZEROS, RECOMPUTES))
_POLICIES_OF_OURS = len(ZEROS) * len(CONFIG_RECOMPUTE)
_DEGREES = ("dp", "tp", "pp", "ep", "cp", "etp")


@dataclass(frozen=True, slots=True)
class Family:
    """A layout for all its ZeRO stages and recomputation policies, over (ZeRO, recomputation).

    Attributes:
        legal: which of them the run can have.
        step_s: time [s].
        memory: of the fullest rank [bytes].
    """

    layout: Layout
    legal: NDArray[np.bool_]
    step_s: NDArray[np.float64]
    memory: NDArray[np.float64]

    def member(self, flat: int) -> Layout:
        """The layout under the policies with flat index `flat`."""
        zero, recompute = _POLICIES[flat]
        return replace(self.layout, zero=zero, recompute=recompute)


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


class Legality:
    """The rules, asked of the layouts of a run on a number of cards, each as soon as it can be."""

    def __init__(self, run: RunConfig, model: CostModel, cards: int):
        chosen = {"cp_method": "ring", "split": "even", "mode": "pynative", "node_size": model.hardware.cards_per_node}
        self._known = facts({"model": run.model, "moe": run.moe, "train": run.train}, cards=cards) | chosen
        fixed = self._known.keys() - {"micro_batch_size"}
        self._of_mesh, self._of_dispatcher, self._of_pipeline, self._of_policy = in_order(
            {*fixed, *_DEGREES}, ["dispatcher"], ["micro_batch_size", "schedule", "chunks"], ["zero", "recompute"]
        )
        read = {name for rule in self._of_policy for name in rule.reads}
        self._policy_key = sorted(read - fixed - {"zero", "recompute"})
        self._policies: dict[tuple[object, ...], tuple[NDArray[np.bool_], Counter[str]]] = {}

    def mesh(self, layout: Layout) -> str | None:
        """Why the degrees cannot be."""
        return refusal(self._of_mesh, self._known | layout.facts())

    def dispatchers(self, layout: Layout) -> list[Dispatcher]:
        """What may carry tokens under these degrees."""
        known = self._known | layout.facts()
        return [kind for kind in DISPATCHERS if not refusal(self._of_dispatcher, known | {"dispatcher": kind})]

    def pipeline(self, layout: Layout) -> str | None:
        """Why the micro-batches and the schedule cannot be."""
        return refusal(self._of_pipeline, self._known | layout.facts())

    def policies(self, layout: Layout) -> tuple[NDArray[np.bool_], Counter[str]]:
        """Which ZeRO stages and recomputation policies there are, and how many each rule refuses."""
        known = self._known | layout.facts()
        key = tuple(known[name] for name in self._policy_key)
        if key not in self._policies:
            legal, refused = np.zeros((len(ZEROS), len(RECOMPUTES)), bool), Counter[str]()
            for flat, (zero, recompute) in enumerate(_POLICIES):
                if recompute in CONFIG_RECOMPUTE:
                    policy = {"zero": zero, "recompute": CONFIG_RECOMPUTE[recompute]}
                    reason = refusal(self._of_policy, known | policy)
                    legal.flat[flat] = reason is None
                    refused.update([reason] if reason else [])
            self._policies[key] = legal, refused
        return self._policies[key]


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


def meshes(cards: int, experts: int) -> Iterator[Layout]:
    """All degrees that number the cards, those of the experts' grid too, whether a run can have them or not."""
    for pp in _divisors(cards):
        stage = cards // pp
        grids = [(ep, etp) for etp in _divisors(stage) for ep in _divisors(stage // etp)] if experts else [(1, 1)]
        for tp in _divisors(stage):
            for cp in _divisors(stage // tp):
                for ep, etp in grids:
                    yield Layout(dp=stage // (tp * cp), tp=tp, pp=pp, ep=ep, cp=cp, etp=etp)


def _usual(model: CostModel, mesh: Layout) -> bool:
    """Whether degrees are of the kind that is fast: tensor groups in a node, long pieces, experts whole or in tp."""
    long = mesh.cp == 1 or model.workload.seq_length // mesh.cp >= _USUAL_PIECE
    return mesh.tp <= min(_USUAL_TP, model.hardware.cards_per_node) and mesh.etp in (1, mesh.tp) and long


def _families(
    model: CostModel, legality: Legality, among: Iterable[Layout], rejected: Counter[str]
) -> Iterator[Family]:
    """Screens the legal layouts of some meshes; adds the illegal ones to `rejected`."""
    layers, node = len(model.workload.architecture.layers), model.hardware.cards_per_node
    for mesh in among:
        schedules = list(_schedules(mesh.pp, layers))
        if problem := legality.mesh(mesh):
            rejected[problem] += len(MICRO_BATCHES) * len(schedules) * _POLICIES_OF_OURS
            continue
        # Two hops save what travels between nodes, so there must be several.
        kinds = [kind for kind in legality.dispatchers(mesh) if kind != "two_hop" or mesh.ep > node]
        for micro_batch_size in MICRO_BATCHES:
            layout = replace(mesh, micro_batch_size=micro_batch_size)
            if mesh.ep > 1:
                layout = replace(layout, dispatcher=model.best_dispatcher(layout, kinds))
            candidates = []
            for schedule, chunks in schedules:
                candidate = replace(layout, schedule=schedule, chunks=chunks)
                if problem := legality.pipeline(candidate):
                    rejected[problem] += _POLICIES_OF_OURS
                else:
                    candidates.append(candidate)
                    rejected.update(legality.policies(candidate)[1])
            if candidates:
                screening = model.screen(candidates)
                policies = [legality.policies(candidate)[0] for candidate in candidates]
                yield from map(Family, candidates, policies, screening.step_s, screening.memory)


def _mesh(layout: Layout) -> tuple[int, ...]:
    """What tells layouts apart in the list of the best."""
    return layout.tp, layout.pp, layout.ep, layout.etp


def search(run: RunConfig, model: CostModel, cards: int) -> SearchResult:
    """The best layouts of a run on `cards` cards.

    Meshes of an unusual kind are looked at only where none of the usual fits.

    Args:
        run: whose layouts are looked for.
        model: of the run's workload.
        cards: how many.

    Raises:
        UserError: no layout is legal and fits.
    """
    limit = model.hardware.memory_gib * 2.0**30
    legality, rejected = Legality(run, model, cards), Counter[str]()
    families: list[Family] = []
    every = list(meshes(cards, model.workload.architecture.experts))
    for usual in (True, False):
        among = [mesh for mesh in every if _usual(model, mesh) is usual]
        families += _families(model, legality, among, rejected)
        legal, step_s, memory = (
            np.array([getattr(family, name).ravel() for family in families]) for name in ("legal", "step_s", "memory")
        )
        fits = legal.astype(bool) & (memory <= limit)  # as bools where there are no families
        if fits.any():
            break
    if not legal.any():
        raise UserError(
            f"no layout of {cards} cards is legal: {_reasons(rejected)}",
            "change the number of cards or train.global_batch_size",
        )
    rejected[OUT_OF_MEMORY] += int((legal & ~fits).sum())
    memory = np.where(legal, memory, np.inf)
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
