"""The rank grid: which ranks form which group. Pure arithmetic, no process is started.

Ranks are numbered with the tensor axis innermost, then context, then data, and the pipeline outermost, so that the
axes that talk most share a node. Expert weights see the ranks of a stage through a second grid: the same ranks
numbered with the expert-tensor axis innermost, then the expert axis, and what remains is the expert-data axis, over
which expert weights are replicated. With etp = tp, ep therefore folds data x context, as is usual.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from mindmoe.host.errors import UserError
from mindmoe.parallel.config import ParallelConfig

MeshAxis = Literal["dp", "tp", "pp", "ep", "cp", "etp", "edp", "ep_etp", "dp_cp", "stage", "world"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coordinates:
    """The place of a rank on each axis; (edp, ep, etp) and (dp, cp, tp) both number the ranks of a stage."""

    dp: int
    tp: int
    pp: int
    ep: int
    cp: int
    etp: int
    edp: int
    ep_etp: int
    dp_cp: int
    stage: int
    world: int


_FIXED: dict[MeshAxis, tuple[MeshAxis, ...]] = {
    "dp": ("tp", "pp", "cp"),
    "tp": ("dp", "pp", "cp"),
    "pp": ("stage",),
    "cp": ("dp", "tp", "pp"),
    "ep": ("etp", "pp", "edp"),
    "etp": ("ep", "pp", "edp"),
    "edp": ("etp", "pp", "ep"),
    "ep_etp": ("edp", "pp"),
    "dp_cp": ("tp", "pp"),
    "stage": ("pp",),
    "world": (),
}
"""Which coordinates the ranks of one group share. `stage` holds all ranks of a pipeline stage."""


# no slots: `places` is kept in the instance's dictionary
@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The degrees of all axes of a legal layout; see `legality`."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    cp: int = 1
    etp: int = 1

    def __post_init__(self) -> None:
        assert self.stage % self.ep_etp == 0, f"the experts' grid must fit a stage of {self}"

    @classmethod
    def build(cls, config: ParallelConfig, world: int) -> "Mesh":
        """The mesh of a run that was resolved on `world` ranks."""
        dp = world // (config.tp * config.pp * config.cp)
        mesh = cls(dp=dp, tp=config.tp, pp=config.pp, ep=config.ep, cp=config.cp, etp=config.expert_tp)
        assert mesh.world == world and config.dp in (dp, "auto"), f"{world} ranks for {config}"
        return mesh

    @property
    def dp_cp(self) -> int:
        """Number of ranks that hold the same tensor shard of dense weights."""
        return self.dp * self.cp

    @property
    def stage(self) -> int:
        """Number of ranks of a pipeline stage."""
        return self.dp * self.cp * self.tp

    @property
    def ep_etp(self) -> int:
        """Number of ranks that together hold all experts of a layer once."""
        return self.ep * self.etp

    @property
    def edp(self) -> int:
        """Number of replicas of an expert's weights."""
        return self.stage // self.ep_etp

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.stage * self.pp

    def degree(self, axis: MeshAxis) -> int:
        """Number of ranks along an axis."""
        return getattr(self, axis)

    def coordinates(self, rank: int) -> Coordinates:
        """The place of a rank on every axis."""
        if not 0 <= rank < self.world:
            raise UserError(f"rank {rank} is outside the mesh of {self.world} ranks", "check RANK_ID")
        # The first grid, (pp, dp, cp, tp) with tp innermost.
        pp, stage = divmod(rank, self.stage)
        dp_cp, tp = divmod(stage, self.tp)
        dp, cp = divmod(dp_cp, self.cp)
        # The second one numbers the same ranks of the stage as (edp, ep, etp).
        edp, ep_etp = divmod(stage, self.ep_etp)
        ep, etp = divmod(ep_etp, self.etp)
        return Coordinates(
            dp=dp, tp=tp, pp=pp, ep=ep, cp=cp, etp=etp, edp=edp, ep_etp=ep_etp, dp_cp=dp_cp, stage=stage, world=rank
        )

    def rank(self, *, dp: int = 0, tp: int = 0, pp: int = 0, cp: int = 0) -> int:
        """The rank at a place of the grid."""
        return ((pp * self.dp + dp) * self.cp + cp) * self.tp + tp

    @cached_property
    def places(self) -> list[Coordinates]:
        """The coordinates of every rank."""
        return [self.coordinates(rank) for rank in range(self.world)]

    def groups(self, axis: MeshAxis) -> list[tuple[int, ...]]:
        """All groups of an axis, each a tuple of ranks in the order of their place on it."""
        return self.partition(lambda place: tuple(getattr(place, name) for name in _FIXED[axis]))

    def partition(self, key: Callable[[Coordinates], Hashable]) -> list[tuple[int, ...]]:
        """The ranks grouped by equal keys, ascending in each group."""
        # Ranks come in ascending order, which along one axis, all others being fixed, is that of their places on it.
        members: dict[Hashable, list[int]] = {}
        for place in self.places:
            members.setdefault(key(place), []).append(place.world)
        return [tuple(group) for group in members.values()]

    def group(self, axis: MeshAxis, rank: int) -> tuple[int, ...]:
        """The ranks of the group of `axis` that `rank` belongs to."""
        return _membership(self, axis)[rank]


# by the degrees, not by instance: equal meshes share an entry
@lru_cache(maxsize=256)
def _membership(mesh: Mesh, axis: MeshAxis) -> dict[int, tuple[int, ...]]:
    return {rank: group for group in mesh.groups(axis) for rank in group}
