"""The collectives of one decoder layer on one rank, forward and backward (dry)."""

from collections.abc import Sequence
from dataclasses import dataclass

from mindmoe.config.run import RunConfig
from mindmoe.moe.dispatch.sizes import capacity_rows, chunk_tokens, node_grid
from mindmoe.parallel.ledger import Call
from mindmoe.parallel.mesh import Mesh, MeshAxis

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """Calls of an operation in the forward pass, and those of its part of the backward pass."""

    forward: Sequence[Call]
    backward: Sequence[Call]


class RankGroups:
    """The groups of one rank; equal groups are one object.

    Args:
        mesh: the rank grid.
        rank: which.
    """

    def __init__(self, mesh: Mesh, rank: int):
        self.mesh, self.rank = mesh, rank
        self._kept: dict[Shape, Shape] = {}

    def kept(self, ranks: Shape) -> Shape:
        """The first tuple that was equal."""
        return self._kept.setdefault(ranks, ranks)

    def of(self, kind: str, axis: MeshAxis, shape: Shape, dtype: str = "Float32") -> list[Call]:
        """A call over a mesh axis; none in a group of one."""
        return self.over(kind, axis, self.mesh.group(axis, self.rank), shape, dtype)

    def over(self, kind: str, name: str, ranks: Shape, shape: Shape, dtype: str = "Float32") -> list[Call]:
        """A call over any ranks."""
        return [Call(kind, name, self.kept(ranks), shape, dtype)] if len(ranks) > 1 else []


def gather(on: RankGroups, axis: MeshAxis, part: Shape) -> list[Op]:
    """Gathers parts; the gradients are reduce-scattered."""
    size = on.mesh.degree(axis)
    return _op(on.of("all_gather", axis, part), on.of("reduce_scatter", axis, (size, *part)))


def scatter(on: RankGroups, axis: MeshAxis, part: Shape) -> list[Op]:
    """Sums and keeps own part; the gradients are gathered."""
    size = on.mesh.degree(axis)
    return _op(on.of("reduce_scatter", axis, (size, *part)), on.of("all_gather", axis, part))


def zero_gather(ranks: Shape, columns: int) -> list[Op]:
    """Gathers weights that lie in parts on their replicas."""
    return _op(
        [Call("all_gather", "replicas", ranks, (columns,))],
        [Call("reduce_scatter", "replicas", ranks, (len(ranks), columns))],
    )


def exchange(calls: list[Call]) -> list[Op]:
    """An exchange whose gradients go back in an equal one."""
    return _op(calls, calls)


def forward_only(calls: list[Call]) -> list[Op]:
    """Calls without gradient."""
    return _op(calls, [])


def _op(forward: list[Call], backward: list[Call]) -> list[Op]:
    return [Op(forward, backward)] if forward or backward else []


class BlockCalls:
    """The calls of every decoder layer of a run, its attention half and its FFN half; all layers have the same.

    Args:
        config: the run, op by op.
        on: this rank.
    """

    def __init__(self, config: RunConfig, on: RankGroups):
        self.config, self.on, mesh = config, on, on.mesh
        train, model = config.train, config.model
        self.batch, self.length, self.dim = train.micro_batch_size, train.seq_length // mesh.cp, model.hidden_size
        self.part = (self.batch, self.length // mesh.tp, self.dim)
        self.attention = [*gather(on, "tp", self.part), *self._context(), *scatter(on, "tp", self.part)]
        self.ffn = self._ffn()

    def _context(self) -> list[Op]:
        mesh, model, on = self.on.mesh, self.config.model, self.on
        if mesh.cp == 1:
            return []
        heads, kv_heads = model.num_attention_heads // mesh.tp, max(1, model.num_key_value_heads // mesh.tp)
        if self.config.parallel.cp_method == "ulysses":
            width = heads // mesh.cp * model.head_dim
            kv_width = max(1, kv_heads // mesh.cp) * model.head_dim
            shape = (mesh.cp, self.batch, self.length, width + 2 * kv_width)
            documents = self.config.data.document_attention
            segments = on.of("all_gather", "cp", (self.batch, self.length), "Int32") if documents else []
            back = on.of("all_to_all", "cp", (mesh.cp, self.batch, self.length, width))
            return [*exchange(on.of("all_to_all", "cp", shape)), *forward_only(segments), *exchange(back)]
        keys, dim = (self.batch, kv_heads, self.length), model.head_dim
        turn, turn_back = (on.of("shift", "cp", (*keys, width)) for width in (2 * dim + 1, 4 * dim + 1))
        return [Op(turn * (mesh.cp - 1), turn_back * mesh.cp)]

    def _ffn(self) -> list[Op]:
        on, moe, mesh = self.on, self.config.moe, self.on.mesh
        dense = [*gather(on, "tp", self.part), *scatter(on, "tp", self.part)]
        if moe is None:
            return dense
        shared = dense if moe.num_shared_experts else []
        if mesh.ep_etp == 1:
            return shared
        tokens, packed = self.batch * self.part[1], self.dim + 2 * moe.router.slots(moe)
        dispatcher = self.config.parallel.chosen_dispatcher
        if dispatcher == "all_gather":
            enter, leave = gather(on, "ep_etp", (tokens, packed)), scatter(on, "ep_etp", (tokens, self.dim))
            return [*shared, *enter, *leave]
        enter, leave = gather(on, "etp", (tokens, packed)), scatter(on, "etp", (tokens, self.dim))
        if dispatcher == "two_hop":
            return [*shared, *self._two_hop(packed)]
        if moe.dispatch.kind == "capacity":
            chunk = chunk_tokens(moe, self.config.train.seq_length)
            slots = tokens * mesh.etp // chunk * capacity_rows(moe, chunk)
            sent = (mesh.ep, moe.num_experts // mesh.ep, slots)
            out = exchange(on.of("all_to_all", "ep", (*sent, self.dim + 1)))
            return [*shared, *enter, *out, *exchange(on.of("all_to_all", "ep", (*sent, self.dim))), *leave]
        return [*shared, *enter, *self._rows("ep", mesh.group("ep", on.rank), moe.num_experts), *leave]

    def _rows(self, name: str, ranks: Shape, experts: int) -> list[Op]:
        """Counts, then rows to the ranks of their experts and back; how many follows the routing."""
        on, local = self.on, experts // len(ranks)
        rows = on.over("all_to_all_v", name, ranks, (-1, self.dim))
        counts = on.over("all_to_all", name, ranks, (len(ranks), local))
        return [*forward_only(counts), *exchange(rows), *exchange(rows)]

    def _two_hop(self, packed: int) -> list[Op]:
        on, moe = self.on, self.config.moe
        assert moe is not None
        grid = node_grid(on.mesh.group("ep", on.rank), self.config.parallel.node_size)
        across, inside = (next(group for group in groups if on.rank in group) for groups in grid)
        first, second = "ep across nodes", "ep inside a node"
        return [
            *forward_only(on.over("all_to_all", first, across, (len(across), 1))),
            *exchange(on.over("all_to_all_v", first, across, (-1, packed))),
            *self._rows(second, inside, moe.num_experts // len(across)),
            *exchange(on.over("all_to_all_v", first, across, (-1, self.dim))),
        ]
