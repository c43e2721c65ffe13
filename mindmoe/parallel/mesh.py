"""The rank grid: which ranks form which group. Pure arithmetic, no process is started.

Ranks are numbered with the tensor axis innermost, then context, then data, and the pipeline outermost, so that the
axes that talk most share a node. The expert axis folds data x context: expert-parallel ranks are neighbours there,
and what remains of data x context is the expert-data axis, over which expert weights are replicated.
"""

from dataclasses import dataclass
from typing import Literal

from mindmoe.errors import UserError
from mindmoe.parallel.config import ParallelConfig

MeshAxis = Literal["dp", "tp", "pp", "ep", "cp", "edp", "dp_cp", "world"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coordinates:
    """The place of a rank on each axis; `ep` and `edp` factor the place on data x context."""

    dp: int
    tp: int
    pp: int
    ep: int
    cp: int
    edp: int
    dp_cp: int
    world: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """The degrees of all axes. Any sizes are legal as long as ep divides dp * cp."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    cp: int = 1

    def __post_init__(self) -> None:
        for axis in ("dp", "tp", "pp", "ep", "cp"):
            if getattr(self, axis) < 1:
                raise UserError(f"parallel.{axis}={getattr(self, axis)} must be at least 1", f"raise parallel.{axis}")
        if self.dp_cp % self.ep:
            raise UserError(
                f"parallel.ep={self.ep} must divide dp*cp={self.dp_cp} ({self.dp}*{self.cp})",
                "lower parallel.ep or raise parallel.dp",
            )

    @classmethod
    def build(cls, config: ParallelConfig, world: int) -> "Mesh":
        """The mesh of a config on `world` cards; fills `dp: auto`.

        Raises:
            UserError: the degrees do not multiply to `world`.
        """
        rest = config.tp * config.pp * config.cp
        product = f"tp*pp*cp={rest} ({config.tp}*{config.pp}*{config.cp})"
        if config.dp == "auto":
            if world % rest:
                raise UserError(
                    f"{world} cards must be a multiple of {product}",
                    f"use a multiple of {rest} cards or lower a degree",
                )
            return cls(dp=world // rest, tp=config.tp, pp=config.pp, ep=config.ep, cp=config.cp)
        if config.dp * rest != world:
            raise UserError(
                f"parallel.dp={config.dp} times {product} is {config.dp * rest} but there are {world} cards",
                "set parallel.dp=auto or the matching number of cards",
            )
        return cls(dp=config.dp, tp=config.tp, pp=config.pp, ep=config.ep, cp=config.cp)

    @property
    def dp_cp(self) -> int:
        """Number of ranks that hold the same dense weights of a stage and tensor shard."""
        return self.dp * self.cp

    @property
    def edp(self) -> int:
        """Number of replicas of an expert's weights."""
        return self.dp_cp // self.ep

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.dp * self.tp * self.pp * self.cp

    def degree(self, axis: MeshAxis) -> int:
        """Number of ranks along an axis."""
        return getattr(self, axis)

    def coordinates(self, rank: int) -> Coordinates:
        """The place of a rank on every axis."""
        if not 0 <= rank < self.world:
            raise UserError(f"rank {rank} is outside the mesh of {self.world} ranks", "check RANK_ID")
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        dp_cp = dp * self.cp + cp
        edp, ep = divmod(dp_cp, self.ep)
        return Coordinates(dp=dp, tp=tp, pp=pp, ep=ep, cp=cp, edp=edp, dp_cp=dp_cp, world=rank)

    def rank(self, *, dp: int = 0, tp: int = 0, pp: int = 0, cp: int = 0) -> int:
        """The rank at a place of the grid."""
        return ((pp * self.dp + dp) * self.cp + cp) * self.tp + tp

    def groups(self, axis: MeshAxis) -> list[tuple[int, ...]]:
        """All groups of an axis, each a tuple of ranks in the order of their place on it."""
        fixed = {
            "dp": ("tp", "pp", "cp"),
            "tp": ("dp", "pp", "cp"),
            "pp": ("dp", "tp", "cp"),
            "cp": ("dp", "tp", "pp"),
            "ep": ("tp", "pp", "edp"),
            "edp": ("tp", "pp", "ep"),
            "dp_cp": ("tp", "pp"),
            "world": (),
        }[axis]
        members: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for rank in range(self.world):
            place = self.coordinates(rank)
            key = tuple(getattr(place, name) for name in fixed)
            members.setdefault(key, []).append((getattr(place, axis), rank))
        return [tuple(rank for _, rank in sorted(group)) for group in members.values()]

    def group(self, axis: MeshAxis, rank: int) -> tuple[int, ...]:
        """The ranks of the group of `axis` that `rank` belongs to."""
        return next(group for group in self.groups(axis) if rank in group)
