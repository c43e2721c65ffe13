"""The composition root: builds every part of a run and hands each what it needs."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.config import RunConfig
from mindmoe.env import Place, threads_per_rank
from mindmoe.model.decoder import CausalLM
from mindmoe.model.shapes import param_specs
from mindmoe.ops.select import OpSet, OpShape, select_ops
from mindmoe.optim.adamw import AdamW
from mindmoe.parallel.groups import Group, alone, connect, create_groups
from mindmoe.parallel.mesh import Coordinates, Mesh, MeshAxis
from mindmoe.train.step import TrainStep

log = logging.getLogger(__name__)
_AXES: tuple[MeshAxis, ...] = ("world", "dp", "tp", "pp", "ep", "cp", "edp", "dp_cp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """The parts of a run on this rank."""

    config: RunConfig
    place: Place
    mesh: Mesh
    at: Coordinates
    groups: dict[MeshAxis, Group]
    kernels: OpSet
    net: CausalLM
    optimizer: AdamW
    step: TrainStep


def start_device(config: RunConfig, place: Place) -> None:
    """Selects the device and, with several ranks, joins the cluster."""
    ms.set_device({"cpu": "CPU", "ascend": "Ascend"}[config.train.device])
    if config.train.device == "cpu":
        ms.device_context.cpu.op_tuning.threads_num(threads_per_rank(config.launch.threads, place.local_world))
    if place.world > 1:
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


def build_model(config: RunConfig, kernels: OpSet, mesh: Mesh, rank: int) -> CausalLM:
    """The model of a rank with its initial weights."""
    return CausalLM(config.model, config.moe, kernels, mesh=mesh, rank=rank, seed=config.seed)


def build_trainer(config: RunConfig, place: Place) -> Trainer:
    """Every part of a resolved run on this rank; the device must have been started."""
    mesh = Mesh.build(config.parallel, place.world)
    groups = (
        create_groups(mesh, place.rank, config.train.device)
        if place.world > 1
        else {axis: alone(axis) for axis in _AXES}
    )
    kernels = build_kernels(config, place)
    net = build_model(config, kernels, mesh, place.rank)
    specs = param_specs(config.model, config.moe)
    optimizer = AdamW(net.trainable_params(), specs, config.optim, kernels)
    step = TrainStep(net, optimizer, specs, config.moe, groups, kernels, graph=config.train.mode == "graph")
    return Trainer(
        config=config,
        place=place,
        mesh=mesh,
        at=mesh.coordinates(place.rank),
        groups=groups,
        kernels=kernels,
        net=net,
        optimizer=optimizer,
        step=step,
    )


def gemm_peak(linear: Callable[..., Tensor], size: int = 1024, repeats: int = 5) -> float:
    """The best matrix-product rate of this rank right now [FLOP/s], the denominator of MFU on the CPU.

    Args:
        linear: the op that the model multiplies with, so that the peak is that of its precision.
        size: order of the square matrices.
        repeats: the fastest of so many counts.
    """
    x, w = (Tensor(np.random.default_rng(seed).standard_normal((size, size), np.float32)) for seed in (0, 1))
    best = float("inf")
    for _ in range(repeats):
        started = perf_counter()
        linear(x, w, None).asnumpy()
        best = min(best, perf_counter() - started)
    return 2.0 * size**3 / best
