"""Process groups: lists of ranks turned into communicators, created in the same order on every rank."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import mindspore as ms
from mindspore.mint.distributed import distributed

from mindmoe.host.errors import UserError
from mindmoe.parallel.mesh import Mesh, MeshAxis
from mindmoe.parallel.sharding import ordered_groups

WORLD = {"cpu": "mccl_world_group", "ascend": "hccl_world_group"}
_CREATED: set[str] = set()
"""Communicators of this process; MindSpore keeps them by name as long as it runs."""
_BACKEND = {"cpu": "mccl", "ascend": "hccl"}
_TARGET = {"cpu": "CPU", "ascend": "Ascend"}


# Frozen because groups are keys: of the cached primitives, and of the gradients to sum.
@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A communicator and this rank's place in it. In a group of one every collective is the identity.

    Attributes:
        axis: what the group runs along: a mesh axis, or what else its ranks share.
        name: MindSpore's name of the communicator, empty for a group of one.
        ranks: global ranks in order of their place.
        index: this rank's place.
        stand_in: whether the other ranks are not there.
    """

    axis: str
    name: str
    ranks: tuple[int, ...]
    index: int
    stand_in: bool = False

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


def alone(axis: str = "world", rank: int = 0) -> Group:
    """The group of one rank."""
    return Group(axis=axis, name="", ranks=(rank,), index=0)


def set_device(device: str) -> None:
    """Makes `cpu` or `ascend` the device of this process.

    Raises:
        UserError: MindSpore cannot use it, such as a package without its backend.
    """
    try:
        ms.set_device(_TARGET[device])
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"MindSpore cannot use train.device={device}: {said}",
            "install the package and the driver of the device, or set train.device=cpu",
        ) from None


def serve(device: str) -> None:
    """Serves the cluster as its scheduler until every rank has left; for the process that msrun started as that."""
    set_device(device)
    connect(device)


def connect(device: str) -> None:
    """Joins the cluster that msrun started."""
    ms.communication.init(_BACKEND[device])
    # mint's send asks for this process's rank in hccl_world_group, whatever the backend: its cache answers.
    distributed._GROUP_RANK_CACHE[WORLD["ascend"]] = ms.communication.get_rank()


class Groups:
    """The groups of one rank, by mesh axis or by their ranks.

    Args:
        mesh: the rank grid.
        rank: this rank.
        device: `cpu` or `ascend`.
        more: further groups of any ranks, the same on every rank.
        stand_in: whether the other ranks are not there; then no communicator is made.
    """

    def __init__(
        self, mesh: Mesh, rank: int, device: str, more: Iterable[tuple[int, ...]] = (), stand_in: bool = False
    ):
        self.mesh, self.rank, self.stand_in = mesh, rank, stand_in
        # An axis that holds all ranks uses the group that MindSpore made itself.
        self._names: dict[tuple[int, ...], str] = {tuple(range(mesh.world)): WORLD[device]}
        wanted = {group for axis in get_args(MeshAxis) for group in mesh.groups(axis)} | set(more)
        # All ranks go through the same sorted list, so the members of a group meet at its creation. The name says the
        # ranks: it is the same on all of them, and axes of equal ranks share one communicator.
        for ranks in ordered_groups(wanted):
            if rank in ranks and ranks not in self._names:
                self._names[ranks] = "mindmoe_" + "_".join(map(str, ranks))
                if not stand_in and self._names[ranks] not in _CREATED:
                    ms.communication.create_group(self._names[ranks], list(ranks))
                    _CREATED.add(self._names[ranks])

    def __getitem__(self, axis: MeshAxis) -> Group:
        """This rank's group of a mesh axis."""
        return self.of(self.mesh.group(axis, self.rank), axis)

    def of(self, ranks: tuple[int, ...], axis: str) -> Group:
        """The group of these ranks, which must have been asked for at construction."""
        if len(ranks) == 1:
            return alone(axis, self.rank)
        name, index = self._names[ranks], ranks.index(self.rank)
        return Group(axis=axis, name=name, ranks=ranks, index=index, stand_in=self.stand_in)
