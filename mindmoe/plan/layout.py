"""A layout: every choice the planner makes for a run.

Field names are the names of the config keys: `parallel.<field>`, except `micro_batch_size`, which is
`train.micro_batch_size`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from mindmoe.pipeline.schedule import ScheduleName

Recompute = Literal["none", "selective", "ffn", "full"]
Dispatcher = Literal["all_to_all", "two_hop", "all_gather"]
Split = Literal["balanced", "even"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "ffn", "full")
ZEROS = (0, 1, 2, 3)
DISPATCHERS: tuple[Dispatcher, ...] = ("all_to_all", "two_hop", "all_gather")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a run is laid over the cards.

    Attributes:
        dp, tp, pp, ep, cp: degrees of the mesh. Ranks are numbered tp, cp, dp, pp from the inside out; the experts
            of one layer are spread over `ep` groups of `etp` neighbouring ranks inside dp x cp x tp.
        etp: tensor degree of an expert; with 1 experts are whole, and tensor ranks count as expert ranks.
        zero: what is sharded over the replicas: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too
            (gathered for each use of each micro-batch).
        recompute: `none`; `selective` redoes norms, activation functions and permutations in the backward pass; `ffn`
            redoes the whole FFN too, with its exchange, and keeps the attention; `full` keeps each layer's input only.
        schedule, chunks: pipeline schedule and pieces of the network on each stage.
        dispatcher: how tokens reach experts: one all-to-all; two hops that send a token once to each node; or an
            all-gather of all tokens and a reduce-scatter of the results.
        micro_batch_size: sequences of one micro-batch on one data-parallel rank.
        split: `balanced` gives the last stage fewer layers because of the LM head, `even` gives all the same.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    cp: int = 1
    etp: int = 1
    zero: int = 1
    recompute: Recompute = "none"
    schedule: ScheduleName = "1f1b"
    chunks: int = 1
    dispatcher: Dispatcher = "all_to_all"
    micro_batch_size: int = 1
    split: Split = "balanced"

    @property
    def cards(self) -> int:
        """Number of ranks."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def replicas(self) -> int:
        """Ranks that hold the same dense weights: dp x cp."""
        return self.dp * self.cp

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same expert weights."""
        return self.dp * self.cp * self.tp // (self.ep * self.etp)

    def microbatches(self, global_batch_size: int) -> int:
        """Micro-batches of one step on each data-parallel rank."""
        return global_batch_size // (self.dp * self.micro_batch_size)

    def describe(self) -> str:
        """The degrees on one line."""
        parts = [f"{name}{getattr(self, name)}" for name in ("dp", "tp", "pp", "ep", "cp") if getattr(self, name) > 1]
        if self.tp > 1:
            parts.append(f"etp{self.etp}")
        return " ".join(parts) or "1 card"

    def facts(self) -> dict[str, Any]:
        """The choices by the names that the rules of `parallel.legality` read, as a run's config would have them."""
        found: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return found | {"recompute": CONFIG_RECOMPUTE.get(self.recompute), "split": "even"}


CONFIG_RECOMPUTE: Mapping[Recompute, str] = {"none": "none", "ffn": "selective", "full": "full"}
"""What mindmoe's config calls a policy; the others it does not have."""
