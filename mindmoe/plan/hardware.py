"""Accelerators as data: what a card, a node and the network between nodes can do, and what programs reach of it.

One YAML file per accelerator under `hardware/`, each figure with its source. `efficiency` is one set of constants
per accelerator: nothing is tuned per model or per published row.
"""

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from mindmoe.config.load import load_section
from mindmoe.config.schema import Fraction, NonNegativeFp32, PositiveFp32, PositiveInt32, Section, Share
from mindmoe.host.env import user_cache
from mindmoe.host.errors import ConfigError, UserError
from mindmoe.host.files import shown
from mindmoe.plan.host import HostConfig

_FOLDER = files("mindmoe.plan").joinpath("hardware")
THIS_MACHINE = "this machine"


class EfficiencyConfig(Section):
    """What real programs reach, as shares of the peaks.

    Attributes:
        gemm: of peak, by a product so large that its shape does not matter.
        grouped_gemm: the same for the routed experts' products.
        attention: of peak, by the attention kernel with infinitely wide heads; `attention_half_dim` is the head
            width at which it reaches half of that.
        hbm: of memory bandwidth, by vector kernels.
        half_depth: depth k of a product at which the pipeline through the cores is half full [elements].
        half_rows: rows of one expert at which a grouped product reaches half its speed.
        launch_us: idle time around each kernel [us].
        overlap_dp: share of the gradient and weight collectives of a step that hides behind computation.
        overlap_pp: share of a stage-to-stage transfer that hides behind computation.
    """

    gemm: Share
    grouped_gemm: Share
    attention: Share
    attention_half_dim: PositiveFp32
    hbm: Share
    half_depth: PositiveFp32
    half_rows: PositiveFp32
    launch_us: NonNegativeFp32
    overlap_dp: Fraction
    overlap_pp: Fraction


class LinkConfig(Section):
    """The network, per card and direction.

    Attributes:
        topology: inside a node, `mesh` gives each pair of cards its own link, `switch` gives each card one port.
        link_gb_s: the link of a pair (mesh) or the port (switch), as collectives reach it [GB/s].
        all_to_all: share of that which an all-to-all reaches.
        nic_gb_s: the card's network port to other nodes, as collectives reach it [GB/s].
        launch_us: fixed cost of one collective [us], inside a node; `hop_us` is added per doubling of the nodes.
    """

    topology: Literal["mesh", "switch"]
    link_gb_s: PositiveFp32
    all_to_all: Share
    nic_gb_s: PositiveFp32
    launch_us: NonNegativeFp32
    hop_us: NonNegativeFp32


class Hardware(Section):
    """One accelerator and the cluster built of it.

    Attributes:
        peak_tflops: dense matrix peak by number format [TFLOP/s].
        cores: matrix cores that share the tiles of a product.
        cards_per_node: cards that the fast network joins.
        communicator_mib: buffer of one process group [MiB]; `reserved_gib`: driver, runtime and kernels [GiB].
        power_w: of one card under load, its share of the host included [W].
        storage_gb_s: what one node writes to shared storage [GB/s].
        host: where ranks share the cores of one machine: what was measured of it. The other figures are then those of
            the whole machine, for the tables and for rough formulas; times come from `host`.
        sources: where each figure comes from. [V] read in a file, [S] secondary, [M] from memory, [D] derived.
    """

    name: str
    aliases: list[str] = []
    peak_tflops: dict[Literal["fp32", "bf16", "fp8"], PositiveFp32]
    cores: PositiveInt32
    memory_gib: PositiveFp32
    hbm_tb_s: PositiveFp32
    cards_per_node: PositiveInt32
    link: LinkConfig
    communicator_mib: NonNegativeFp32
    reserved_gib: NonNegativeFp32
    power_w: PositiveFp32
    storage_gb_s: PositiveFp32
    efficiency: EfficiencyConfig
    sources: dict[str, str]
    host: HostConfig | None = None

    def shared_by(self, ranks: int) -> "Hardware":
        """A card as one of so many ranks has it: itself, but on a host its share of the peaks and of the memory."""
        if self.host is None:
            return self
        peaks = {name: value / ranks for name, value in self.peak_tflops.items()}
        return self.model_copy(
            update={
                "host": self.host.model_copy(update={"ranks": ranks}),
                "peak_tflops": peaks,
                "hbm_tb_s": self.hbm_tb_s / ranks,
                "memory_gib": self.memory_gib / ranks,
                "cards_per_node": ranks,
            }
        )

    def peak(self, precision: Literal["fp32", "bf16", "fp8"] = "bf16") -> float:
        """Matrix peak [FLOP/s]; a format that is not on file is an error of the user."""
        if precision not in self.peak_tflops:
            raise UserError(f"{self.name} has no {precision} peak on file", "plan with train.precision=bf16")
        return self.peak_tflops[precision] * 1e12


def _read(path: Path) -> Hardware:
    try:
        return load_section(Hardware, path=path)
    except ConfigError as error:
        raise UserError(
            f"{shown(str(path), 300)} does not describe an accelerator ({error})",
            "compare it with the files in mindmoe/plan/hardware",
        ) from None


@cache
def _known() -> dict[str, Hardware]:
    found = {}
    for entry in _FOLDER.iterdir():
        if entry.name.endswith(".yaml"):
            with as_file(entry) as path:
                hardware = _read(path)
            for name in (hardware.name, *hardware.aliases):
                found[name.lower()] = hardware
    return found


def hardware_names() -> list[str]:
    """Names of the accelerators on file, without aliases."""
    return sorted({hardware.name for hardware in _known().values()})


def hardware_on_file(name: str) -> Hardware:
    """An accelerator by name or alias.

    Raises:
        UserError: not on file.
    """
    if name.lower() not in _known():
        raise UserError(f"hardware {shown(name)} is not on file", f"use one of {', '.join(hardware_names())}")
    return _known()[name.lower()]


def measured_file() -> Path:
    """Where `mindmoe doctor --measure` writes what it measured."""
    return user_cache() / "this-machine.yaml"


def load_hardware(name: str) -> Hardware:
    """An accelerator by name or alias, `this machine`, or a YAML file of the same form (say, one of measured figures).

    Raises:
        UserError: neither on file nor a readable description.
    """
    if name.lower() in _known():
        return _known()[name.lower()]
    if name.lower() == THIS_MACHINE:
        if not measured_file().is_file():
            raise UserError(f"{THIS_MACHINE!r} was not measured yet", "run `mindmoe doctor --measure`")
        return _read(measured_file())
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _read(path)
    raise UserError(
        f"hardware '{shown(name)}' is not on file",
        f"use one of {', '.join(hardware_names())}, {THIS_MACHINE!r} or a YAML file",
    )
