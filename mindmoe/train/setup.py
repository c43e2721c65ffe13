"""The composition root: builds every part of a run and hands each what it needs."""

import logging
from dataclasses import dataclass

import mindspore as ms

from mindmoe.config.run import RunConfig
from mindmoe.host.env import Place, threads_per_rank
from mindmoe.models.decoder import CausalLM
from mindmoe.models.gpt_oss.parameters import param_specs, router_specs
from mindmoe.moe.dispatch.sizes import node_grid
from mindmoe.ops.contract import OpSet, OpShape
from mindmoe.ops.select import select_ops
from mindmoe.optim.optimizer import Optimizer, build_optimizer
from mindmoe.optim.owned import Owned
from mindmoe.optim.reduction import Reduction
from mindmoe.parallel.collectives import probe, table
from mindmoe.parallel.groups import Groups, connect, set_device
from mindmoe.parallel.mesh import Coordinates, Mesh, MeshAxis
from mindmoe.parallel.sequence import context_positions
from mindmoe.parallel.sharding import replica_groups
from mindmoe.parallel.unit import ShardedTensor
from mindmoe.pipeline.executor import PipelineExecutor, StageProgram
from mindmoe.pipeline.split import Piece, build_pieces, holding_stages, stage_pieces
from mindmoe.train.objective import Objective
from mindmoe.train.routing import RouterStates
from mindmoe.train.step import Part, TrainStep

log = logging.getLogger(__name__)
_AXES: tuple[MeshAxis, ...] = ("world", "stage", "dp", "tp", "pp", "ep", "cp", "etp", "edp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """The parts of a run on this rank."""

    config: RunConfig
    place: Place
    mesh: Mesh
    at: Coordinates
    groups: Groups
    kernels: OpSet
    nets: list[CausalLM]
    optimizer: Optimizer
    step: TrainStep

    @property
    def state(self) -> list[ShardedTensor]:
        """Everything that a step changes: weights, selection biases and moments."""
        found: dict[str, ShardedTensor] = {}
        start = 0
        for part in self.step.parts:
            owned = part.owned
            tensors, end = list(owned.tensors), start + len(owned.tensors)
            # The optimizer has the moments of all parts in one row; [start, end) are those of this part.
            for prefix, moments in self.optimizer.moments.items():
                tensors += owned.beside(moments[start:end], f"{prefix}.")
            start = end
            # What no gradient reaches but a step changes all the same: selection biases and the state of routers.
            tensors += [tensor for tensor in part.objective.net.tensors if not tensor.spec.trainable]
            for tensor in tensors:
                found.setdefault(tensor.spec.name, tensor)  # two chunks of a stage may hold the same weight
        return list(found.values())

    def publish(self) -> None:
        """Brings the model's parameters up to the state, after it was loaded."""
        for part in self.step.parts:
            part.owned.publish()


def start_device(config: RunConfig, place: Place, stand_in: bool = False) -> None:
    """Selects the device and, with several ranks that are there, joins the cluster."""
    set_device(config.train.device)
    if config.train.device == "cpu":
        # Otherwise this thread spins while another one launches its ops: a core lost to every rank.
        ms.runtime.launch_blocking()
        ms.device_context.cpu.op_tuning.threads_num(threads_per_rank(config.launch.threads, place.local_world))
    if place.world > 1 and not stand_in:
        connect(config.train.device)


def build_kernels(config: RunConfig, place: Place) -> OpSet:
    """The ops of a run on this rank."""
    shape = OpShape(
        model=config.model,
        moe=config.moe,
        seq_length=config.train.seq_length,
        precision=config.train.precision,
        documents=config.data.document_attention,
    )
    threads = threads_per_rank(config.launch.threads, place.local_world)
    return select_ops(shape, device=config.train.device, kernels=config.train.kernels, threads=threads)


def build_groups(config: RunConfig, mesh: Mesh, rank: int, stand_in: bool = False) -> Groups:
    """The groups of a rank: of the mesh's axes, of the replicas of every parameter, and of a two-hop dispatch."""
    pieces, tied = build_pieces(config.model, config.parallel), config.model.tie_word_embeddings
    more: set[tuple[int, ...]] = set()
    for spec in param_specs(config.model, config.moe).values():
        # Tied embeddings are held by the first and the last stage, whose copies are replicas of each other.
        stages = holding_stages(pieces, mesh.pp, spec.name, tied)
        more |= set(replica_groups(spec, mesh, stages))
    if config.parallel.dispatcher == "two_hop":
        for ranks in mesh.groups("ep"):
            # The first hop goes to the same place on another node, the second stays inside a node.
            across, inside = node_grid(ranks, config.parallel.node_size)
            more |= {*across, *inside}
    return Groups(mesh, rank, config.train.device, more, stand_in)


def compiles(config: RunConfig, world: int) -> bool:
    """Whether a step is compiled whole: that of a process alone which keeps what its backward pass needs."""
    return config.train.mode == "graph" and world == 1 and config.parallel.recompute == "none"


def build_model(config: RunConfig, kernels: OpSet, groups: Groups, piece: Piece) -> CausalLM:
    """A piece of the model on a rank with its initial weights."""
    return CausalLM(
        config.model,
        config.moe,
        kernels,
        groups=groups,
        parallel=config.parallel,
        piece=piece,
        seed=config.seed,
    )


def build_part(config: RunConfig, net: CausalLM, piece: Piece, groups: Groups, record_routing: bool) -> Part:
    """A piece with the way of its gradients."""
    trained = [tensor for tensor in net.tensors if tensor.spec.trainable]
    reduction = Reduction(trained, groups)
    # `model.layers.LAYER.mlp..`: the third word is the number of the layer.
    biases = {
        int(tensor.spec.name.split(".")[2]): tensor.param
        for tensor in net.tensors
        if tensor.spec.name.endswith("selection_bias")
    }
    # A controller may change the weight between steps, so the objective must not bake it in as a constant.
    live = config.qea is not None and config.qea.changes("moe.balance.aux_coef")
    return Part(
        layers=piece.layers,
        objective=Objective(net, config.moe, groups, record_routing, live),
        params=[tensor.param for tensor in trained],
        owned=Owned(trained, reduction),
        reduction=reduction,
        biases=biases,
        sink=net.sink,
    )


def build_states(config: RunConfig, parts: list[Part]) -> RouterStates | None:
    """What the router keeps between steps; None in a dense model."""
    if config.moe is None:
        return None
    params = {tensor.spec.name: tensor.param for part in parts for tensor in part.objective.net.tensors}
    return RouterStates(config.moe, router_specs(config.model, config.moe), [part.layers for part in parts], params)


def build_executor(
    config: RunConfig, mesh: Mesh, groups: Groups, parts: list[Part], kernels: OpSet
) -> PipelineExecutor:
    """The executor of this rank's stage."""
    train, parallel = config.train, config.parallel
    compiled_with = kernels if compiles(config, mesh.world) else None
    # Between stages hidden states are cut along the sequence by cp and by tp.
    message = (train.micro_batch_size, train.seq_length // (mesh.cp * mesh.tp), config.model.hidden_size)
    return PipelineExecutor(
        parallel.schedule,
        [StageProgram(part.objective, part.differentiated, compiled_with) for part in parts],
        groups["pp"],
        message,
    )


def build_trainer(config: RunConfig, place: Place, record_routing: bool = False, stand_in: bool = False) -> Trainer:
    """Every part of a resolved run on this rank; the device must have been started.

    Args:
        config: the run.
        place: this process.
        record_routing: whether the objectives report the chosen experts.
        stand_in: whether this process is alone and the collectives only pass for those of its rank.
    """
    mesh = Mesh.build(config.parallel, place.world)
    at = mesh.coordinates(place.rank)
    groups = build_groups(config, mesh, place.rank, stand_in)
    if mesh.world > 1 and not stand_in:
        log.info("collectives: %s", "; ".join(f"{verb}: {made_of}" for verb, made_of in table().items()))
        # Before anything else is exchanged: a broken link is named by its group here, where it would be a hang later.
        probe([groups[axis] for axis in _AXES])
    kernels = build_kernels(config, place)
    pieces = stage_pieces(build_pieces(config.model, config.parallel), at.pp, mesh.pp)
    nets = [build_model(config, kernels, groups, piece) for piece in pieces]
    parts = [build_part(config, *pair, groups, record_routing) for pair in zip(nets, pieces, strict=True)]
    owned = [tensor for part in parts for tensor in part.owned.tensors]
    # What this rank updates, in the order of the gradients that `TrainStep` hands over: part after part.
    optimizer = build_optimizer(
        [tensor.param for tensor in owned], [tensor.spec.decay for tensor in owned], config.optim, kernels
    )
    step = TrainStep(
        parts,
        optimizer,
        moe=config.moe,
        num_layers=config.model.num_hidden_layers,
        groups=groups,
        kernels=kernels,
        compile_update=compiles(config, mesh.world) and config.train.device != "cpu",
        zero=config.parallel.zero,
        executor=build_executor(config, mesh, groups, parts, kernels),
        states=build_states(config, parts),
        positions=context_positions(config.train.seq_length, mesh.cp, at.cp) if mesh.cp > 1 else None,
    )
    return Trainer(
        config=config,
        place=place,
        mesh=mesh,
        at=at,
        groups=groups,
        kernels=kernels,
        nets=nets,
        optimizer=optimizer,
        step=step,
    )
