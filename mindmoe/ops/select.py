"""Which sibling of each op a run uses: chosen once, when the model is built, and logged."""

import logging
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from mindmoe.host.errors import UserError
from mindmoe.ops.ascend import pack as ascend_pack
from mindmoe.ops.contract import OpSet, OpShape
from mindmoe.ops.cpu import pack as cpu_pack

log = logging.getLogger(__name__)

# What a sibling may build: all fields but what says which set it is.
OPS = frozenset(field.name for field in fields(OpSet)) - {"name", "shape"}


def select_ops(shape: OpShape, *, device: str, kernels: str, threads: int) -> OpSet:
    """The ops of a run.

    Args:
        shape: what they are bound to.
        device: `cpu` or `ascend`.
        kernels: `reference`, `cpu`, `ascend` (needs the installed Ascend C kernels), or `auto`: the C++ pack on a CPU
            that has a compiler, else the reference.
        threads: threads of this rank.

    Raises:
        UserError: the kernels asked for are not available here.
    """
    if kernels == "cpu" and device != "cpu":
        raise UserError(f"train.kernels=cpu does not run on train.device={device}", "set train.kernels=auto")
    if kernels == "ascend":
        return _logged(ascend_ops(shape, ascend_pack.load()), "asked for")
    # On Ascend, too, `auto` takes the reference: the Ascend C kernels are asked for by name.
    if kernels == "reference" or device != "cpu":
        return _logged(reference_ops(shape), "asked for" if kernels == "reference" else f"device {device}")
    try:
        return _logged(cpu_ops(shape, threads), "C++ pack")
    except UserError as error:
        if kernels == "cpu":
            raise  # asked for by name: no silent substitute
        log.warning("the CPU pack is not available, plain ops are several times slower: %s", error)
        return _logged(reference_ops(shape), "no CPU pack")


def _logged(chosen: OpSet, why: str) -> OpSet:
    log.info("ops: %s (%s)", chosen.name, why)
    return chosen


def reference_ops(shape: OpShape) -> OpSet:
    """Plain MindSpore ops."""
    return _assembled("reference", f"reference, {shape.precision} operands", shape)


def cpu_ops(shape: OpShape, threads: int) -> OpSet:
    """The C++ pack.

    Raises:
        UserError: it cannot be built here.
    """
    pack = cpu_pack.load()
    pack.set_threads(threads)
    name = f"cpu pack ({pack.isa}, {pack.gemm} GEMM, {threads} threads), {shape.precision} operands"
    return _assembled("cpu", name, shape, pack)


def ascend_ops(shape: OpShape, pack: ascend_pack.Pack) -> OpSet:
    """The Ascend C kernels, and the reference for the rest until MindSpore's fused ops can be tried on a card."""
    own = ", ".join(sorted(builders("ascend")))
    return _assembled("ascend", f"Ascend C for {own}, {shape.precision} operands", shape, pack)


def _assembled(sibling: str, name: str, shape: OpShape, *pack: Any) -> OpSet:
    # Whatever a sibling lacks, router aside, the reference has.
    own = {op: build(shape, *pack) for op, build in builders(sibling).items()}
    rest = {op: build(shape) for op, build in builders("reference").items() if op not in own}
    return OpSet(name=name, shape=shape, **own, **rest)


def builders(sibling: str) -> dict[str, Callable[..., Any]]:
    """The functions `build_<op>` in the files of a sibling, by op."""
    package, found = import_module(f"mindmoe.ops.{sibling}"), {}
    # All files of the folder: another form of an op is another file, and there is no list to keep.
    for file in iter_modules(package.__path__, f"{package.__name__}."):
        for name, value in vars(import_module(file.name)).items():
            op = name.removeprefix("build_")
            if op != name and op in OPS and value.__module__ == file.name:  # not what the file imports
                found[op] = value
    return found
